"""Table 3 as Markdown."""

from __future__ import annotations

from nextscale.paper._class_scores import CLIP_SCORE
from nextscale.paper._editing import INPAINTING, OUTPAINTING, REGION, WHOLE
from nextscale.paper._table_pages import calibration_notes, heading, markdown_table, with_interval
from nextscale.paper.table_3 import PAPER_DEPTH, PAPER_SIDE, Row, Table3

PARTS = {WHOLE: "picture", REGION: "box"}


def markdown(table: Table3) -> str:
    """The whole report."""
    rows = [[*row_cells(table, row), *paper_cells(table, row)] for row in table.rows]
    differences = [difference_cells(table, row) for row in table.rows if row.differences]
    columns = titles(table)
    return "\n".join(
        [
            *heading(
                f"Table 3: editing photographs, {table.model['name']}",
                table,
                notes(table),
                "means over photographs ± half of the 95% interval",
            ),
            "",
            *markdown_table(["method", "bits (W/A)", *columns, *paper_titles(table)], rows),
            "",
            "## Differences to full precision",
            "",
            "Paired by photograph, mean ± half of the 95% interval; marked * where the interval excludes 0. Another "
            "seed of full precision shows how far apart two rows are by chance alone.",
            "",
            *markdown_table(["method", "bits (W/A)", *columns], differences),
            "",
        ]
    )


def titles(table: Table3) -> list[str]:
    """Headers of the figures' columns."""
    return [_title(table, column) for column in _columns(table)]


def paper_titles(table: Table3) -> list[str]:
    """Headers of the paper's figures: of those that ours can stand beside."""
    return ["paper: inpaint", "paper: outpaint", *(["paper: CLIP score"] if table.class_score == CLIP_SCORE else [])]


def row_cells(table: Table3, row: Row) -> list[str]:
    """Method, bits, means with intervals."""
    return [row.method, row.bits, *(with_interval(row.figures[column]) for column in _columns(table))]


def paper_cells(table: Table3, row: Row) -> list[str]:
    """The paper's figures, of `paper_titles`."""
    count = len(paper_titles(table))
    if row.paper is None:
        return [""] * count
    return [f"{value:.4f}" for value in (row.paper.inpainting, row.paper.outpainting, row.paper.clip)[:count]]


def difference_cells(table: Table3, row: Row) -> list[str]:
    """Method, bits, paired differences."""
    return [row.method, row.bits, *(with_interval(row.differences[column], True) for column in _columns(table))]


def notes(table: Table3) -> list[str]:
    """What a reader must know to compare the figures with others."""
    count, settings = table.photographs, table.settings
    side = " x ".join(map(str, table.model["image_size"]))
    found = [
        f"{count['edited']} photographs of {count['available']}, chosen by seed {settings['region_seed']}; the middle "
        f"of each, at {side} pixels; each bundle encodes them with its own encoder",
        *([f"{count['enlarged']} of them were smaller, and enlarged"] if count["enlarged"] else []),
        "a box of half the picture's sides, 25% of its area, at a random place of that seed, the same for all rows: "
        f"{INPAINTING} makes it anew; {OUTPAINTING} keeps it and makes the other 75% anew, as VAR's notebook does (the "
        "paper has 25% filled in both, and does not say where in outpainting)",
        f"no class in in- and outpainting; cfg_scale {settings['cfg_scale']:g}, top_k {settings['top_k']}, top_p "
        f"{settings['top_p']:g}, seed {settings['seed']}; the noise floor is full precision with seed "
        f"{settings['noise_floor_seed']}",
        "pictures are decoded and blended, as `nextscale edit` gives them: kept pixels are the photograph's own, so "
        "that only what was made anew, and its seam, adds to the LPIPS",
        "LPIPS (Zhang et al., 2018) is between the edited picture and the photograph, at that size; less is nearer. "
        "The paper does not name its network",
    ]
    if table.class_score is None:
        found.append("no class-conditional editing: the photographs have no labels, or none that the classifier knows")
    else:
        scored = ", ".join(
            f"{_title(table, column)} {with_interval(table.photographs_scored.get(column))}" for column in PARTS
        )
        found += [
            f"class-conditional editing makes the box anew with the photograph's class, on {count['with a class']} "
            f"photographs; it is judged, as a whole and the box alone, by {_judged(table)}; more is better",
            f"the photographs themselves: {scored}",
        ]
    found += calibration_notes(table)
    is_papers = table.model["depth"] == PAPER_DEPTH and table.model["image_size"] == [PAPER_SIDE, PAPER_SIDE]
    found.append(
        f"beside the paper's VAR-d{PAPER_DEPTH} at {PAPER_SIDE} pixels"
        + ("" if is_papers else ", another model: compare differences between rows, not values")
    )
    return [*found, *table.notes]


def _judged(table: Table3) -> str:
    if table.class_score == CLIP_SCORE:
        return (
            f'the CLIP score, the cosine of the features that {table.classifier} has of the picture and of "a photo of '
            '[class]", with the first name of the class (the paper does not tell its CLIP, nor its names)'
        )
    return (
        f"the probability that {table.classifier} gives to that class of ImageNet's (no CLIP score: it cannot be "
        "compared with the paper's)"
    )


def _title(table: Table3, column: str) -> str:
    if column in PARTS:
        return f"{table.class_score}, {PARTS[column]}"
    task, name = column.split()
    return f"{table.measures[name]}, {task}"


def _columns(table: Table3) -> list[str]:
    return list(table.rows[0].figures)
