"""Table 3: photographs edited by one model in several bundles, judged by LPIPS and by a score of their class."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nextscale.measure.provenance import finite, versions
from nextscale.measure.statistics import Interval
from nextscale.paper._class_scores import ClassScore
from nextscale.paper._editing import (
    CLASS_EDITING,
    INPAINTING,
    OUTPAINTING,
    REGION,
    WHOLE,
    Editing,
    EditResults,
    Measures,
    boxes_alone,
    edit_results,
    finished,
    pixel_mask,
    regions,
    remade,
    seconds_per_photograph,
)
from nextscale.paper._estimated_time import EDITING_IMAGES
from nextscale.paper._photographs import Photographs
from nextscale.paper._plan import Pace, PlannedStep
from nextscale.paper._rows import METHODS, NOISE_FLOOR, Job, interval_of, reference_and_others
from nextscale.paper.recipe_bundles import FULL_PRECISION, RecipeBundle, UnbuiltBundle
from nextscale.runtime._machine import Machine, describe_machine
from nextscale.runtime._manifest import ModelInfo
from nextscale.runtime._next_scale_loop import Generator
from nextscale.runtime._request import resolve_top_k
from nextscale.runtime._session import SessionOptions

BITS = ("w8a8", "w6a6", "w4a4")
ROWS = (
    FULL_PRECISION,
    *(
        "default" if (method, bits) == ("default", "w8a8") else f"{method}-{bits}"
        for bits in BITS
        for method in METHODS
    ),
)


PAPER_DEPTH, PAPER_SIDE = 30, 256


@dataclass(frozen=True)
class PaperRow:
    """A row of the paper's Table 3, of VAR-d30 and ImageNet's validation photographs of 256 pixels.

    Attributes:
        inpainting, outpainting: LPIPS; the paper does not say of which network.
        clip: CLIP score of class-conditional editing; the paper does not say of which CLIP.
    """

    inpainting: float
    outpainting: float
    clip: float


PAPER = {
    "fp32": PaperRow(0.2827, 0.2119, 0.2480),
    "brecq-w6a6": PaperRow(0.2852, 0.2144, 0.2455),
    "litevar-w6a6": PaperRow(0.2861, 0.2143, 0.2458),
    "ours-w6a6": PaperRow(0.2843, 0.2141, 0.2459),
    "ours-litevar-w6a6": PaperRow(0.2835, 0.2134, 0.2465),
    "brecq-w4a4": PaperRow(0.2912, 0.2207, 0.2289),
    "litevar-w4a4": PaperRow(0.2907, 0.2208, 0.2318),
    "ours-w4a4": PaperRow(0.2888, 0.2181, 0.2358),
    "ours-litevar-w4a4": PaperRow(0.2879, 0.2172, 0.2363),
}


@dataclass(frozen=True)
class Row:
    """One row of the table.

    Attributes:
        name: the recipe's, or "noise floor".
        method, bits: what the table calls it, and the bits of weights and activations.
        bundle: its folder.
        calibration_images: that its manifest tells of; None for full precision.
        paper: the paper's row; None where it has none.
        figures: means over photographs by column; None where no photograph has such a figure.
        differences: paired, to full precision's figures of the same photographs; empty for full precision.
    """

    name: str
    method: str
    bits: str
    bundle: str
    calibration_images: int | None
    paper: PaperRow | None
    figures: Mapping[str, Interval | None]
    differences: Mapping[str, Interval | None]


@dataclass(frozen=True)
class SheetRow:
    """A line of Fig. D.

    Attributes:
        task: which.
        photograph, mask: uint8 [H, W, 3], and bool [H, W], what is made anew.
        pictures: uint8 [R, H, W, 3], a result of each of the table's rows.
    """

    task: str
    photograph: NDArray[np.uint8]
    mask: NDArray[np.bool_]
    pictures: NDArray[np.uint8]


@dataclass(frozen=True)
class Table3:
    """What was measured, and of what.

    Attributes:
        model: its manifest's name, its pictures' size, and how many blocks it has.
        photographs: how many were edited, how many there were to choose from, how many were enlarged, and how many had
            a class that can be scored.
        settings: of editing, plain values.
        measures: names of what judged the pictures, by column.
        class_score, classifier: what the score of a photograph's class is, and the network that gives it; None without.
        photographs_scored: the scores of the photographs themselves, by column.
        machine, versions: of this process.
        rows: full precision, the noise floor, then the others.
        notes: further lines on what was measured.
        left_out: lines on rows that are missing.
        warnings: lines on rows whose integer products this processor does not compute exactly.
        sheet: Fig. D.
    """

    model: Mapping[str, Any]
    photographs: Mapping[str, int]
    settings: Mapping[str, Any]
    measures: Mapping[str, str]
    class_score: str | None
    classifier: str | None
    photographs_scored: Mapping[str, Interval | None]
    machine: Machine
    versions: Mapping[str, str]
    rows: tuple[Row, ...]
    notes: tuple[str, ...]
    left_out: tuple[str, ...]
    warnings: tuple[str, ...]
    sheet: tuple[SheetRow, ...]

    def to_json(self) -> dict[str, Any]:
        """Plain values without the sheet; what is not finite becomes null."""
        plain: dict[str, Any] = finite(asdict(replace(self, sheet=())))
        del plain["sheet"]
        return plain


def jobs(bundles: Sequence[RecipeBundle], editing: Editing) -> list[Job[Editing]]:
    """Full precision, full precision with the next seed as the noise floor, then the other bundles.

    Raises:
        NextscaleError: no bundle of full precision, bundles of several models, or one without an encoder.
    """
    found = reference_and_others(bundles, editing)
    for item in bundles:
        item.bundle.require_encoder()
    resolve_top_k(editing.top_k, found[0].bundle.bundle.model)
    return found


def measure_table_3(
    bundles: Sequence[RecipeBundle],
    photographs: Photographs,
    measures: Measures,
    editing: Editing,
    work: Path,
    *,
    options: SessionOptions | None = None,
    left_out: Sequence[str] = (),
    notes: Sequence[str] = (),
    on_images: Callable[[str, int], object] = lambda name, done: None,
) -> Table3:
    """Edit the photographs with every bundle and measure the results.

    Args:
        bundles: of one model, one of them full precision.
        photographs: of the model's size.
        measures: distances and, where photographs have classes, a score of these.
        editing: seeds, guidance and filters; the same for all rows.
        work: an existing folder that keeps the figures, see `edit_results`.
        options: threads, memory and operators.
        left_out, notes: lines on rows that could not be built, and further ones, for the report.
        on_images: called with a row's name and how many of its photographs are finished.
    Raises:
        NextscaleError: see `jobs` and `edit_results`.
    """
    results, warnings = dict[str, EditResults](), list[str]()
    wanted = jobs(bundles, editing)
    for job in wanted:
        generator = Generator(job.bundle.bundle, options)
        warning = job.warning(generator)
        if warning is not None:
            warnings.append(warning)
        results[job.name] = edit_results(
            generator,
            photographs,
            measures,
            job.sampling,
            work,
            on_images=lambda done, name=job.name: on_images(name, done),  # type: ignore[misc]
        )
    original = results[FULL_PRECISION]
    model = wanted[0].bundle.bundle.model
    known, score = measures.known(photographs.labels), measures.class_score
    return Table3(
        model={
            "name": wanted[0].bundle.bundle.manifest.name,
            "image_size": list(model.image_size),
            "latent_size": list(model.latent_size),
            "depth": model.depth,
        },
        photographs={
            "edited": len(photographs),
            "available": photographs.available,
            "enlarged": photographs.enlarged,
            "with a class": int(known.sum()),
        },
        settings={
            **asdict(editing),
            "top_k": resolve_top_k(editing.top_k, model),
            "noise_floor_seed": editing.seed + 1,
        },
        measures={name: distance.name for name, distance in measures.distances.items()},
        class_score=None if score is None else score.title,
        classifier=None if score is None else score.name,
        photographs_scored=_photographs_scored(photographs, score, known, editing, model),
        machine=describe_machine(),
        versions=versions(),
        rows=tuple(_row(job, results[job.name], original) for job in wanted),
        notes=tuple(notes),
        left_out=tuple(left_out),
        warnings=tuple(warnings),
        sheet=tuple(_sheet(photographs, [results[job.name] for job in wanted], editing, model)),
    )


def plan_table_3(
    rows: Sequence[RecipeBundle | UnbuiltBundle],
    photographs: Photographs,
    measures: Measures,
    editing: Editing,
    work: Path,
    options: SessionOptions | None = None,
) -> list[PlannedStep]:
    """What `measure_table_3` has left to do; a batch is edited with each bundle that has.

    Args:
        rows: full precision first.
        photographs, measures, editing, options: as for `measure_table_3`.
        work: as there; it need not exist.
    Raises:
        NextscaleError: see `jobs`.
    """
    original, *others = rows
    if isinstance(original, RecipeBundle):
        jobs([item for item in rows if isinstance(item, RecipeBundle)], editing)

    def batch(item: RecipeBundle) -> float:
        return seconds_per_photograph(Generator(item.bundle, options), photographs, measures, editing)

    def left(item: RecipeBundle | UnbuiltBundle, chosen: Editing = editing) -> dict[str, int]:
        done = 0
        if isinstance(item, RecipeBundle):
            done = finished(Generator(item.bundle, options), photographs, measures, chosen, work)
        return {"photographs": len(photographs) - done}

    pace = Pace(original, batch, EDITING_IMAGES)
    floor = left(original, replace(editing, seed=editing.seed + 1))
    return [
        pace.step(original, left(original)),
        pace.step(original, floor, name=NOISE_FLOOR),
        *(pace.step(item, left(item)) for item in others),
    ]


def _row(job: Job[Editing], results: EditResults, original: EditResults) -> Row:
    return Row(
        **job.description(),
        paper=PAPER.get(job.name),
        figures={column: interval_of(values) for column, values in results.figures.items()},
        differences=job.differences(results.figures, original.figures),
    )


def _photographs_scored(
    photographs: Photographs,
    score: ClassScore | None,
    known: NDArray[np.bool_],
    editing: Editing,
    model: ModelInfo,
) -> dict[str, Interval | None]:
    """The scores of the photographs as they are: nothing edited is likely to do better."""
    if score is None or not known.any():
        return {}
    images, labels = photographs.images[known], photographs.labels[known]
    boxes = regions(model, len(photographs), editing.region_seed)[known]
    cut = np.stack([*boxes_alone(images, boxes, model)])
    return {WHOLE: interval_of(score(images, labels)), REGION: interval_of(score(cut, labels))}


def _sheet(
    photographs: Photographs, results: Sequence[EditResults], editing: Editing, model: ModelInfo
) -> list[SheetRow]:
    boxes = regions(model, len(photographs), editing.region_seed)
    rows = []
    for task in (INPAINTING, OUTPAINTING, CLASS_EDITING):
        for place, number in enumerate(results[0].numbers.get(task, ())):
            mask = pixel_mask(remade(task, boxes[number]), model)
            pictures = np.stack([found.pictures[task][place] for found in results])
            rows.append(SheetRow(task, photographs.images[number], mask, pictures))
    return rows
