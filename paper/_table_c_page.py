"""Table C as Markdown."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from nextscale.measure.roofline import XEON_6226R
from nextscale.measure.speed import Speed
from nextscale.measure.statistics import Interval
from nextscale.measure.time_split import PARTS
from nextscale.paper.table_c import PAPER, Row, TableC


def markdown(table: TableC) -> str:
    """The whole report."""
    return "\n".join(
        [*_heading(table), *_speeds(table), *_groups(table), *_splits(table), *_machine(table), *_prediction(table), ""]
    )


def speed_cells(row: Row, batch: int) -> list[str]:
    """images/s with its interval, ratio to full precision, the paper's ratio, KL, top-1, peak MB."""
    speed = next(speed for speed in row.speeds if speed.batch == batch)
    return [
        with_interval(speed.images_per_second),
        _ratio(speed),
        "" if row.paper_ratio is None else f"{row.paper_ratio:.2f}",
        "" if row.agreement is None else f"{row.agreement.kl:.4f}",
        "" if row.agreement is None else f"{row.agreement.top1:.1%}",
        f"{speed.peak_memory_bytes / 1e6:.0f}",
    ]


SPEED_HEADERS = ("images/s", "ratio", "paper's", "KL", "top-1", "peak MB")


def batches(table: TableC) -> list[int]:
    """The batch sizes measured, ascending."""
    return sorted({speed.batch for row in table.rows for speed in row.speeds})


def with_interval(interval: Interval) -> str:
    """0.905 ± 0.028: half the width of the 95% interval."""
    if not math.isfinite(interval.low) or not math.isfinite(interval.high):
        return f"{interval.mean:.3g}"
    digits = max(0, 2 - math.floor(math.log10(interval.mean)))
    return f"{interval.mean:.{digits}f} ± {(interval.high - interval.low) / 2:.{digits}f}"


def _heading(table: TableC) -> list[str]:
    machine, settings = table.machine, table.settings
    numbers = ", ".join(f"{name} {version}" for name, version in table.versions.items())
    model = ", ".join(f"{key} {value}" for key, value in table.model.items())
    isa = " ".join(machine.isa) or "no known ISA flags"
    return [
        f"# Table C: images per second, {table.model.get('name', 'a model')}",
        "",
        f"- model: {model}",
        f"- machine: {machine.cpu}, {machine.logical_cpus} logical CPUs, {isa}, {machine.system}",
        f"- threads {settings['threads'] or 'one per core that may be used'}; {numbers}",
        f"- the whole generation: stages with guidance, sampling, decoder; {_rounds(table)} after "
        f"{settings['warmup']} to warm up, {settings['order']}, each contender in a process of its own; means with 95% "
        "intervals, ratios paired by round",
        f"- KL (nats per token) and top-1 agreement with full precision: {table.agreement_provenance}",
        "- the paper's ratios are of VAR-d16 on an Intel Xeon Gold 6226R (its Table C)",
        f"- matrix products in onnxruntime: float32 {table.rates.float32 / 1e9:.0f}, int8 "
        f"{table.rates.int8 / 1e9:.0f} G operations/s; an image's linear layers and convolutions: "
        f"{table.operations / 1e9:.1f} G operations",
        *[f"- {row.method}: {'; '.join(row.notes)}" for row in table.rows if row.notes],
        *[f"- left out: {failure}" for failure in table.failures.values()],
        *[f"- **{warning}**" for warning in table.warnings()],
    ]


def _speeds(table: TableC) -> list[str]:
    lines = []
    for batch in batches(table):
        rows = [
            [f"{row.method}", row.bits, *speed_cells(row, batch)]
            for row in table.rows
            if any(speed.batch == batch for speed in row.speeds)
        ]
        lines += ["", f"## Batch {batch}", "", *_table(["method", "bits (W/A)", *SPEED_HEADERS], rows)]
    others = {row.name: row.speeds[0].versions for row in table.rows if row.size_bytes is None and row.speeds}
    lines += [""] * bool(others)
    lines += [f"- {name}: {', '.join(f'{k} {v}' for k, v in found.items())}" for name, found in others.items()]
    return lines


def _rounds(table: TableC) -> str:
    """How many, or until when."""
    settings = table.settings
    ends = [f"each ratio is known to {settings['half_width']:.1%}"] if settings.get("half_width") is not None else []
    ends += [f"{settings['minutes']:g} minutes are over"] if settings.get("minutes") is not None else []
    if not ends:
        return f"{settings['repetitions']} rounds"
    ends.append(f"{settings['repetitions']} are done")
    counts = [len(speed.samples) for speed in (*(s for row in table.rows for s in row.speeds), *_anchors(table))]
    least, most = min(counts), max(counts)
    done = f"{least} to {most}" if most > least else f"{least}"
    return f"rounds until {', '.join(ends[:-1])} or {ends[-1]} ({done})"


def _anchors(table: TableC) -> list[Speed]:
    return [speed for group in table.peer_groups for speed in group.anchors]


def _groups(table: TableC) -> list[str]:
    leads = [(i, lead) for i, group in enumerate(table.peer_groups) for lead in group.leads]
    if not leads:
        return []
    rounds = {(i, s.name, s.batch): len(s.samples) for i, group in enumerate(table.peer_groups) for s in group.peers}
    lines = ["", "## Beside other software", ""]
    if len(table.peer_groups) > 1:
        lines += [f"In {len(table.peer_groups)} groups, each in the same rounds as these:", ""]
        rows = [
            [str(i + 1), s.name, str(s.batch), with_interval(s.images_per_second), _ratio(s)]
            for i, group in enumerate(table.peer_groups)
            for s in group.anchors
        ]
        lines += [*_table(["group", "method", "batch", "images/s", "ratio"], rows), ""]
    rows = [
        [str(i + 1), lead.name, lead.other, str(lead.batch), f"{lead.ratio.mean:.2f}{_ends(lead.ratio, '.2f')}",
         str(rounds[i, lead.other, lead.batch])]
        for i, lead in leads
    ]  # fmt: skip
    return [*lines, *_table(["group", "images/s of", "over", "batch", "ratio", "rounds"], rows)]


def _ratio(speed: Speed) -> str:
    return "" if speed.ratio is None else f"{speed.ratio.mean:.2f}{_ends(speed.ratio, '.2f')}"


def _splits(table: TableC) -> list[str]:
    rows, stages = [], []
    for row in table.rows:
        if row.split is None or row.roofline_share is None or row.roofline_seconds is None:
            continue
        shares = [f"{seconds / row.split.total:.1%}" for seconds in (row.split.parts[part] for part in PARTS)]
        rows.append([row.method, *shares, f"{row.roofline_seconds:.3g}", f"{row.roofline_share:.0%}"])
        milliseconds = [f"{seconds * 1e3:.0f}" for seconds in row.split.stages]
        stages.append([row.method, *milliseconds, f"{row.split.total * 1e3:.0f}"])
    if not rows:
        return []
    count = max(len(row) for row in stages) - 2
    return [
        "",
        "## Where the time goes",
        "",
        "Of one profiled run at batch 1. Roofline: linear layers and convolutions at the rates above, each in the "
        "numbers it is computed with; its share is of the measured time of an image.",
        "",
        *_table(["method", *PARTS, "roofline, s", "share of roofline"], rows),
        "",
        *_table(["method, ms", *(f"stage {i + 1}" for i in range(count)), "all"], stages),
    ]


def _machine(table: TableC) -> list[str]:
    lines = ["", "## What to run", "", f"- {table.recommendation}"]
    if table.machine_speeds:
        rows = [
            [str(speed.processes), str(speed.threads), str(speed.batch), with_interval(speed.images_per_second)]
            for speed in table.machine_speeds
        ]
        lines += [
            "",
            f"`{table.machine_recipe}` in several processes at the same time, each pinned to cores of its own:",
            "",
            *_table(["processes", "threads each", "batch", "images/s of the machine"], rows),
        ]
    return lines


def _prediction(table: TableC) -> list[str]:
    rows = [
        [
            row.method,
            *(f"{found.images_per_second:.3g}" for found in row.predictions),
            f"{PAPER[row.name].images_per_second:.4f}" if row.name in PAPER else "",
        ]
        for row in table.rows
        if row.predictions
    ]
    if not rows or table.model.get("name") != "var-d16":
        return []
    cpu = XEON_6226R
    return [
        "",
        f"## Prediction for the paper's {cpu.name}",
        "",
        f"**Predicted, not measured**: the roofline of that CPU times the share of the roofline reached here. Assumed: "
        f"{cpu.cores} cores at {cpu.hertz / 1e9:.1f} GHz, AVX512-VNNI ({cpu.int8} int8 and {cpu.float32} float32 "
        f"operations per core and cycle), matrix products that reach {cpu.reached:.0%} of that, and the same share of "
        "the roofline on any number of cores, which is optimistic for many. The paper does not say how many threads it "
        "ran.",
        "",
        *_table(["method", "1 core", f"{cpu.cores} cores", "paper"], rows),
    ]


def _ends(interval: Interval, form: str) -> str:
    if not math.isfinite(interval.low) or interval.low == interval.high:
        return ""
    return f" [{interval.low:{form}}, {interval.high:{form}}]"


def _table(headers: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    return [
        f"| {' | '.join(headers)} |",
        f"|{'---|' * len(headers)}",
        *(f"| {' | '.join(cell.replace('|', '/') for cell in row)} |" for row in rows),
    ]
