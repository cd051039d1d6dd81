"""Table 2 as Markdown, and its cells for a terminal."""

from __future__ import annotations

import math

from nextscale.paper._prompted_pictures import RECOGNISED
from nextscale.paper._table_pages import calibration_notes, heading, markdown_table, with_interval
from nextscale.paper.table_2 import HPS, IMAGE_REWARD, Row, Table2

FRECHET, KL, BITS_EQUAL, ATTENTION = "FD-VGG16 to full precision", "KL, nats per bit", "bits equal", "error of A V"
GENEVAL = "GenEval"
PAPER_HEADERS = (f"paper: {IMAGE_REWARD}", f"paper: {HPS}", f"paper: {GENEVAL}")
DIGITS = {IMAGE_REWARD: 3, HPS: 2}


def markdown(table: Table2) -> str:
    """The whole report."""
    compared = [row for row in table.rows if row.nearness is not None]
    stages = [f"stage {number + 1}" for number in range(table.model["num_stages"])]
    parts = [
        *heading(
            f"Table 2: text to image, {table.model['name']}",
            table,
            notes(table),
            "means ± half of the 95% interval, the KL ± its standard error",
        ),
        "",
        *markdown_table(
            ["method", "bits (W/A)", *headers(table), *PAPER_HEADERS], [row_cells(table, row) for row in table.rows]
        ),
        "",
    ]
    if table.rows[0].figures:
        parts += [
            "## Differences to full precision",
            "",
            "Paired by prompt, mean ± half of the 95% interval; marked * where the interval excludes 0. Another seed "
            "of full precision shows how far apart two rows are by chance alone.",
            "",
            *markdown_table(
                ["method", "bits (W/A)", *table.rows[0].figures],
                [difference_cells(row) for row in table.rows if row.differences],
            ),
            "",
        ]
    for title, cells in (
        ("Bits equal by stage", [_stage_cells(row, "bits") for row in compared]),
        ("KL by stage, nats per bit", [_stage_cells(row, "kl") for row in compared]),
        ("Error of A V by stage", [_stage_cells(row, "attention") for row in compared if not row.float_attention]),
    ):
        if cells and any(len(row) > 2 for row in cells):
            parts += [f"## {title}", "", *markdown_table(["method", "bits (W/A)", *stages], cells), ""]
    return "\n".join(parts)


def headers(table: Table2) -> list[str]:
    """Of the columns that `row_cells` has between the bits and the paper's."""
    geneval = [GENEVAL] if any(row.geneval is not None for row in table.rows) else []
    return [*table.rows[0].figures, *geneval, FRECHET, KL, BITS_EQUAL, ATTENTION]


def row_cells(table: Table2, row: Row) -> list[str]:
    """Method, bits, our figures, the paper's."""
    cells = [_figure(column, row, with_sign=False) for column in row.figures]
    if GENEVAL in headers(table):
        cells.append("" if row.geneval is None else f"{row.geneval:.3f}")
    cells.append("" if row.frechet is None else f"{row.frechet:.4g}")
    cells += _nearness_cells(row)
    paper = row.paper
    told = ["", "", ""] if paper is None else [f"{paper.image_reward:.3f}", f"{paper.hps:.2f}", f"{paper.geneval:.3f}"]
    return [row.method, row.bits, *cells, *told]


def difference_cells(row: Row) -> list[str]:
    """Method, bits, paired differences."""
    return [row.method, row.bits, *(_figure(column, row, with_sign=True) for column in row.differences)]


def notes(table: Table2) -> list[str]:
    """What a reader must know to compare the figures with others."""
    settings, comparing = table.settings, table.settings["comparing"]
    side = " x ".join(map(str, table.model["image_size"]))
    kinds = ", ".join(f"{count} {kind}".strip() for kind, count in table.prompts.items())
    found = [
        f"a picture of {side} pixels of each prompt ({kinds}): cfg_scale {settings['cfg_scale']:g}, tau "
        f"{settings['tau']:g}, top_p {settings['top_p']:g}, seed {settings['seed']}, none chosen among several; the "
        f"noise floor is full precision with seed {settings['noise_floor_seed']}",
    ]
    if RECOGNISED in table.measures:
        found.append(
            f"{RECOGNISED}: the share of pictures in which {table.measures[RECOGNISED]} sees all that was asked, each "
            "in its place. It is the caller's judge, and no published metric"
        )
    found += [
        f"{FRECHET}: the Frechet distance between the features ({table.measures['features']}) of a row's pictures and "
        "of full precision's of the same prompts and seed. It is no FID, which is of Inception's features, and it "
        "falls with the number of pictures: compare equal numbers",
        f"{KL} and {BITS_EQUAL}: the bundle is fed the bits that full precision samples, on {comparing['images']} "
        f"images of these prompts in turn, of {table.model['token_bits']} bits a token",
    ]
    observed = [row.nearness for row in table.rows if row.nearness is not None and row.nearness.attention_images]
    if observed:
        found.append(
            f"{ATTENTION}: of self-attention's product in integers to the float product of the same operands, the mean "
            f"over stages and blocks, on {observed[0].attention_images} of these images; where it is in float there is "
            "none"
        )
    scores = [table.measures[column] for column in (IMAGE_REWARD, HPS) if column in table.measures]
    if scores:
        found.append(f"{' and '.join(scores)}: by their own packages, of these prompts, which are not the paper's")
    found += calibration_notes(table)
    found.append(
        "recipes that resample calibration data match each bit's frequency in a stage: our reading of the paper's "
        "Eq. 17 to 20, whose codebook would have 2 to the power of a token's bits entries"
    )
    found.append("the paper's figures are of Infinity-2B: compare differences between rows, not values")
    return found


def _figure(column: str, row: Row, *, with_sign: bool) -> str:
    interval = (row.differences if with_sign else row.figures)[column]
    return with_interval(interval, with_sign, DIGITS.get(column, 4))


def _nearness_cells(row: Row) -> list[str]:
    found = row.nearness
    if found is None:
        return ["", "", ""]
    kl = f"{found.kl:.5f}" if not math.isfinite(found.kl_stderr) else f"{found.kl:.5f} ± {found.kl_stderr:.5f}"
    error = "in float" if row.float_attention else ""
    if found.attention_error is not None:
        error = f"{found.attention_error:.2%}"
    return [kl, f"{found.bits_equal:.2%}", error]


def _stage_cells(row: Row, what: str) -> list[str]:
    found = row.nearness
    assert found is not None
    cells = {
        "bits": [f"{share:.2%}" for share in found.stage_bits_equal],
        "kl": [f"{kl:.5f}" for kl in found.stage_kl],
        "attention": [f"{error:.2%}" for error in found.stage_attention_error],
    }[what]
    return [row.method, row.bits, *cells]
