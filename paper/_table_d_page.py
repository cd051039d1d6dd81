"""Table D as Markdown, and its cells for a terminal."""

from __future__ import annotations

import math

from nextscale.paper._table_d_operations import FLOAT_BITS
from nextscale.paper._table_pages import heading, markdown_table, with_interval
from nextscale.paper.table_d import Row, TableD

PIXELS, MIOU, PQ = "pixels of the same class", "agreement, mIoU", "agreement, PQ"
ATTENTION, INTEGER, BITS = "error of A V: mean, largest", "integer operations", "bit operations, G"
TIME, RATIO, SIZE = "ms", "times as fast", "MB"
HEADERS = (PIXELS, MIOU, PQ, ATTENTION, INTEGER, BITS, TIME, RATIO, SIZE)
COCO_HEADERS, PAPER_HEADERS = ("mIoU", "AP", "PQ"), ("paper: mIoU", "paper: AP", "paper: PQ")


def markdown(table: TableD) -> str:
    """The whole report."""
    rows = [[row.method, row.bits, *row_cells(table, row), *_paper_cells(row)] for row in table.rows]
    parts = [
        *heading(
            f"Table D: segmentation, {table.model['name']}",
            table,
            notes(table),
            "means over photographs and ratios with half of, or the whole, 95% interval",
        ),
        "",
        *markdown_table(["method", "bits (W/A)", *headers(table), *PAPER_HEADERS], rows),
        "",
    ]
    with_errors = [row for row in table.rows if row.attention_errors]
    if with_errors:
        names = dict.fromkeys(name for row in with_errors for name in row.attention_errors)
        cells = [[name, *(_percent(row.attention_errors.get(name)) for row in with_errors)] for name in names]
        titles = ["attention", *(f"{row.method} {row.bits}" for row in with_errors)]
        parts += ["## Error of A V by attention", "", *markdown_table(titles, cells), ""]
    return "\n".join(parts)


def headers(table: TableD) -> list[str]:
    """Of the columns that `row_cells` has."""
    return [*HEADERS, *(COCO_HEADERS if _has_coco(table) else ())]


def row_cells(table: TableD, row: Row) -> list[str]:
    """Our figures."""
    return [*_agreement_cells(row), *_cost_cells(row), *(_coco_cells(row) if _has_coco(table) else ())]


def notes(table: TableD) -> list[str]:
    """What a reader must know to compare the figures with others."""
    model, settings = table.model, table.settings
    height, width = model["image_size"]
    score, overlap = (settings["thresholds"][name] for name in ("score", "overlap"))
    segments = [row.agreement.segments for row in table.rows if row.agreement is not None]
    found = [
        f"{model['classes']} classes, {model['things']} of things; pictures of {width} x {height} pixels, into which "
        f"photographs are fitted; {model['multiply_adds'] / 1e9:.3g} G multiply-adds in products and convolutions",
        "BRECQ, LiteVAR and Ours learn the rounding of residual blocks as far as the graph shows them, and of other "
        "layers each by itself (GPTQ), as each row's note says; samples are not resampled. LiteVAR's rule is found in "
        "the graph: layers that read a GELU are in float",
        *([f"weights: {model['weights']}"] if model["weights"] else []),
        f"calibrated on {table.calibration}; convolutions have 8 bits in all integer rows",
        f"agreement is with full precision, on {table.photographs} photographs that nobody has annotated, and says "
        "nothing of how good either is: the share of pixels of the same class, and the mean IoU of full precision's "
        'classes, both asked for "semantic"; and the PQ of the segments asked for "panoptic", full precision\'s being '
        f"what is expected ({max(segments, default=0)} segments, of probability above {score:g} and with {overlap:.0%} "
        "of their mask)",
        f"{ATTENTION}: relative error of an attention's output, on a few of the samples, if it alone is integer, "
        "over the attentions; where they are in float there is none",
        f"{INTEGER}: share of the multiply-adds. {BITS}: multiply-adds times the bits of both operands, "
        f"{FLOAT_BITS} x {FLOAT_BITS} for floats; without what shift-and-sum adds, within "
        + ("its recipes' budget" if settings["budget"] is None else f"a budget of {settings['budget']:.2%}"),
    ]
    if settings["rounds"]:
        threads = f"{settings['threads']} threads" if settings["threads"] else "a thread for each core"
        found.append(
            f"{TIME}, {RATIO}: a run of one photograph, {settings['rounds']} rounds, {settings['order']}, {threads}"
        )
    if settings["coco"] is None:
        found.append("no mIoU, AP or PQ against annotations: they need COCO's (`--coco`)")
    else:
        found.append(
            f"mIoU, AP and PQ, in percent, are of {settings['coco']} pictures of COCO's val2017, each asked for its "
            "own task, with instances of the panoptic annotations; AP by pycocotools, mIoU and PQ by nextscale"
        )
    found += [f"{name} stays in float: {reason}" for name, reason in table.refused.items()]
    found += [
        f"{row.name}: {len(row.fallen)} operators were to be integer and multiply in float"
        for row in table.rows
        if row.fallen
    ]
    found.append(
        "the paper's figures are of OneFormer with Swin-L, trained, on COCO: compare differences between rows, not "
        "values"
    )
    return found


def _has_coco(table: TableD) -> bool:
    return table.settings["coco"] is not None


def _agreement_cells(row: Row) -> list[str]:
    found = row.agreement
    if found is None:
        return ["", "", ""]
    return [with_interval(found.pixels), f"{found.miou:.4f}", "no segments" if found.pq is None else f"{found.pq:.4f}"]


def _cost_cells(row: Row) -> list[str]:
    errors, attentions = [*row.attention_errors.values()], row.integer.get("attention")
    of_attention = f"{_percent(math.fsum(errors) / len(errors))}, {_percent(max(errors))}" if errors else ""
    if not errors and attentions is not None:
        of_attention = "in float"
    cells = [of_attention, f"{row.operations.integer:.1%}", f"{row.operations.bits / 1e9:.4g}"]
    if row.speed is None:
        return [*cells, "", "", f"{row.megabytes:.1f}"]
    ratio = row.speed.ratio
    times = f"{ratio.mean:.2f} [{ratio.low:.2f}, {ratio.high:.2f}]"
    return [*cells, f"{row.speed.seconds * 1e3:.1f}", times, f"{row.megabytes:.1f}"]


def _coco_cells(row: Row) -> list[str]:
    found = row.coco
    values = (None, None, None) if found is None else (found.miou, found.ap, found.pq)
    return ["" if value is None else f"{value:.1f}" for value in values]


def _paper_cells(row: Row) -> list[str]:
    paper = row.paper
    return ["", "", ""] if paper is None else [f"{value:.1f}" for value in (paper.miou, paper.ap, paper.pq)]


def _percent(share: float | None) -> str:
    return "" if share is None else f"{share:.2%}"
