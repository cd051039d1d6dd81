"""Table D: a segmentation model, such as OneFormer, in full precision and by recipes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import onnx_ir as ir

from nextscale.foreign.compare import run_in_turns
from nextscale.foreign.normalize import normalize
from nextscale.foreign.quantize_model import ASKED
from nextscale.foreign.running import Running
from nextscale.foreign.survey import survey
from nextscale.measure.interleaved import ORDER
from nextscale.measure.provenance import finite, versions
from nextscale.measure.statistics import Interval, mean_interval, ratio_interval
from nextscale.paper._coco import Coco
from nextscale.paper._coco_scores import CocoScores
from nextscale.paper._estimated_size import CODE_BITS, FLOAT_BITS, PACKED_BITS
from nextscale.paper._integer_models import IntegerModel, IntegerModels
from nextscale.paper._plan import Basis, PlannedStep
from nextscale.paper._segmentation_agreement import Agreement, Pixels, Thresholds
from nextscale.paper._segmentation_figures import Figures, OnPictures, SegmentationFigures
from nextscale.paper._table_d_operations import Operations, multiply_adds, operations
from nextscale.paper._table_d_rows import PlannedRow, layers_behind_gelu, plan_rows
from nextscale.paper.recipe_bundles import FULL_PRECISION
from nextscale.paper.store import FIGURES, Store
from nextscale.runtime._errors import NextscaleError, OutputError
from nextscale.runtime._machine import Machine, describe_machine, saturation_warning
from nextscale.runtime._session import SessionOptions


@dataclass(frozen=True)
class PaperRow:
    """A row of the paper's Table D, of OneFormer with Swin-L on COCO, in percent."""

    miou: float
    ap: float
    pq: float


# Of what convolutions read, and of their weights, in every recipe.
CONVOLUTION_BITS = (8, 8)
# A photograph is seen in two ways; a sample is run as it is, to observe it, and to compare the model before and after.
RUNS_OF_A_PHOTOGRAPH, RUNS_OF_A_SAMPLE = 2, 5
PAPER = {
    "fp32": PaperRow(67.4, 49.0, 57.9),
    "brecq-w6a6": PaperRow(66.5, 47.8, 55.8),
    "litevar-w6a6": PaperRow(66.9, 48.2, 57.4),
    "ours-w6a6": PaperRow(66.8, 48.3, 57.6),
    "ours-litevar-w6a6": PaperRow(67.0, 48.6, 57.8),
    "brecq-w4a4": PaperRow(63.7, 37.9, 51.0),
    "litevar-w4a4": PaperRow(64.4, 39.2, 51.5),
    "ours-w4a4": PaperRow(64.6, 39.1, 51.6),
    "ours-litevar-w4a4": PaperRow(65.0, 40.6, 52.2),
}


@dataclass(frozen=True)
class Measuring:
    """What is measured of each row.

    Attributes:
        thresholds: of panoptic segments.
        rounds: that all rows are timed in, in turns; 0: they are not.
        budget: of shift-and-sum's extra operations, instead of the recipes'.
    """

    thresholds: Thresholds = field(default_factory=Thresholds)
    rounds: int = 5
    budget: float | None = None


@dataclass(frozen=True)
class Speed:
    """Of a run on the first photograph.

    Attributes:
        seconds: the mean.
        ratio: how many times as fast as full precision it is, of the same rounds.
    """

    seconds: float
    ratio: Interval


@dataclass(frozen=True)
class Row:
    """One row of the table.

    Attributes:
        name, method, bits: the row's, what the table calls it, and the bits of weights and activations.
        paper: the paper's row; None where it has none.
        agreement: with full precision; None for full precision.
        coco: None without COCO.
        attention_errors: by name of each integer attention, the relative error of its output if it alone is integer.
        integer: how many operators of each kind are integer, and how many there are.
        fallen: operators that were to be integer, and multiply in float all the same.
        operations: integer ones, and all by their bits.
        megabytes: of the model's files.
        notes: lines on how the model was normalized, and on what of the recipe does not apply.
        speed: None where it was not measured.
    """

    name: str
    method: str
    bits: str
    paper: PaperRow | None
    agreement: Agreement | None
    coco: CocoScores | None
    attention_errors: Mapping[str, float]
    integer: Mapping[str, tuple[int, int]]
    fallen: tuple[str, ...]
    operations: Operations
    megabytes: float
    notes: tuple[str, ...]
    speed: Speed | None = None


@dataclass(frozen=True)
class TableD:
    """What was measured, and of what.

    Attributes:
        model: the file's name, where its weights come from, the pictures' size, and the numbers of classes, things and
            multiply-adds.
        photographs: how many.
        settings: plain values.
        refused: by name, why an attention of the model stays in float in all rows.
        calibration: how many samples, and of what.
        machine, versions: of this process.
        rows: full precision, then the others.
        left_out: lines on rows that are missing.
        warnings: lines on rows whose integer products this processor does not compute exactly.
    """

    model: Mapping[str, Any]
    photographs: int
    settings: Mapping[str, Any]
    refused: Mapping[str, str]
    calibration: str
    machine: Machine
    versions: Mapping[str, str]
    rows: tuple[Row, ...]
    left_out: tuple[str, ...]
    warnings: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """Plain values; what is not finite becomes null."""
        plain: dict[str, Any] = finite(asdict(self))
        return plain


def measure_table_d(
    model: Path,
    calibration: Path,
    photographs: Sequence[Pixels],
    rows: Sequence[str],
    store: Store,
    *,
    measuring: Measuring | None = None,
    coco: Coco | None = None,
    options: SessionOptions | None = None,
    on_pictures: OnPictures = lambda what, done, total: None,
) -> TableD:
    """Make every row's model, compare what it sees with full precision, and time all of them in turns.

    Args:
        model: an ONNX file that `Segmenter` takes.
        calibration: samples, an .npz with an array for each input or a folder of such.
        photographs: uint8 [H, W, 3], one or more.
        rows: names of ROWS, of recipes, or recipes' files; one of them full precision.
        store: keeps models and figures, so that the same call goes on.
        measuring: what is measured.
        coco: the user's COCO folder.
        options: threads and memory.
        on_pictures: called with what is done, and how many of how many are finished.
    Raises:
        NextscaleError: the model or the samples cannot be read or run, a row is unknown or there twice, or full
            precision is missing.
    """
    measuring, options = measuring or Measuring(), options or SessionOptions()
    looked_at = (photographs, coco, measuring.thresholds)
    figures = SegmentationFigures(model, *looked_at, store.figures, options, on_pictures)
    models = IntegerModels(model, calibration, store, options)
    normalized = normalize(models.source).model
    counts = multiply_adds(normalized.graph)
    planned, left_out = plan_rows(rows, layers_behind_gelu(normalized.graph), measuring.budget)
    found, made = list[Row](), dict[str, IntegerModel]()
    for row in planned:
        if row.recipe is not None:
            try:
                made[row.name] = models.made(row.recipe, partial(_tell, on_pictures, row.name))
            except OutputError:
                raise
            except NextscaleError as error:  # such as a budget that is too small for the model
                left_out.append(f"{row.name}: {error}")
                continue
        integer = made.get(row.name)
        of_row = figures.of(row.name, None if integer is None else integer.path)
        found.append(_row(row, integer, of_row, counts, models.source_bytes))
    paths = {row.name: made[row.name].path if row.name in made else model for row in found}
    original = figures.original
    on_pictures("timing", 0, 0)
    speeds = _speeds(paths, original.feed(photographs[0], "panoptic"), measuring.rounds, options)
    recipes = {row.name: row.recipe for row in planned if row.recipe is not None and row.name in made}
    warnings = {name: saturation_warning(recipe.as_dict()) for name, recipe in recipes.items()}
    return TableD(
        model={
            "name": model.name,
            "weights": original.info.weights,
            "image_size": [*original.size],
            "classes": len(original.info.classes),
            "things": len(original.info.things),
            "multiply_adds": sum(counts.values()),
        },
        photographs=len(photographs),
        settings={
            **asdict(measuring),
            "order": ORDER,
            "threads": options.threads,
            "coco": None if coco is None else len(coco),
        },
        refused=_refused(normalized),
        calibration=next((str(item.report["samples"]) for item in made.values()), ""),
        machine=describe_machine(),
        versions=versions(),
        rows=tuple(replace(row, speed=speeds.get(row.name)) for row in found),
        left_out=tuple(left_out),
        warnings=tuple(f"{name}: {warning}" for name, warning in warnings.items() if warning is not None),
    )


def plan_table_d(
    model: Path,
    calibration: Path,
    photographs: Sequence[Pixels],
    rows: Sequence[str],
    store: Store,
    *,
    measuring: Measuring,
    coco: Coco | None = None,
    options: SessionOptions | None = None,
) -> tuple[list[PlannedStep], list[str]]:
    """What `measure_table_d` has left to do, by the time that full precision takes for a photograph.

    Args:
        model, calibration, photographs, rows, store, measuring, coco, options: as there.
    Returns:
        A step for each row, and lines on rows that are missing.
    Raises:
        NextscaleError: as there.
    """
    options = options or SessionOptions()
    figures = SegmentationFigures(
        model, photographs, coco, measuring.thresholds, store.folder / FIGURES, options, lambda what, done, total: None
    )
    models = IntegerModels(model, calibration, store, options)
    normalized = normalize(models.source).model
    planned, left_out = plan_rows(rows, layers_behind_gelu(normalized.graph), measuring.budget)
    made = {row.name: None if row.recipe is None else models.found(row.recipe) for row in planned}
    paths = {name: None if integer is None else integer.path for name, integer in made.items()}
    pending = {
        row.name
        for row in planned
        if (row.recipe is not None and made[row.name] is None) or not figures.are_kept(row.name, paths[row.name])
    }
    photograph = figures.seconds_per_photograph() if pending or measuring.rounds else 0.0
    run = photograph / RUNS_OF_A_PHOTOGRAPH
    making = models.samples * RUNS_OF_A_SAMPLE + ASKED * len(survey(normalized).found)
    basis: Basis = "full precision's batch"
    steps = []
    for row in planned:
        # Full precision is looked at when another row is compared.
        looks = row.name in pending if row.recipe is not None else bool(pending - {row.name})
        left = {
            "photographs": len(photographs) if looks else 0,
            "of COCO": len(coco) if coco is not None and row.name in pending else 0,
            "timed": measuring.rounds,
        }
        seconds = photograph * (left["photographs"] + left["of COCO"]) + run * measuring.rounds
        left = {what: count for what, count in left.items() if count}
        if row.recipe is None or made[row.name] is not None:
            steps.append(PlannedStep(row.name, left, seconds, basis))
            continue
        size = models.source_bytes * (PACKED_BITS if row.recipe.weights.packed else CODE_BITS) // FLOAT_BITS
        steps.append(PlannedStep(row.name, left, seconds + making * run, basis, True, row.recipe.learned, size))
    return steps, left_out


def _tell(on_pictures: OnPictures, name: str, step: str) -> None:
    on_pictures(f"{name}: {step}", 0, 0)


def _row(
    row: PlannedRow, made: IntegerModel | None, figures: Figures, counts: Mapping[str, int], float_bytes: int
) -> Row:
    lines: list[dict[str, Any]] = [] if made is None else made.report["lines"]
    taken = [line for line in lines if line["refused"] is None]
    return Row(
        name=row.name,
        method=row.method,
        bits=row.bits,
        paper=PAPER.get(row.name),
        agreement=figures.agreement,
        coco=figures.coco,
        attention_errors={} if made is None else made.attention_errors(),
        integer={
            kind: (sum(line["kind"] == kind for line in taken), count)
            for kind, count in Counter(str(line["kind"]) for line in lines).items()
        },
        fallen=tuple(str(line["name"]) for line in taken if not line["is_integer"]),
        operations=operations(counts, _bits(row, taken)),
        megabytes=(float_bytes if made is None else made.report["integer_bytes"]) / 1e6,
        notes=() if made is None else tuple(made.report["notes"]),
    )


def _bits(row: PlannedRow, taken: Sequence[Mapping[str, Any]]) -> dict[str, tuple[int, int]]:
    """Of both operands of what is integer, by name."""
    if row.recipe is None:
        return {}
    of_inputs, of_weights = row.recipe.activations.bits, row.recipe.weights.bits
    of_kind = {
        "linear layer": (of_inputs, of_weights),
        "attention": (of_inputs, of_inputs),
        "convolution": CONVOLUTION_BITS,
    }
    return {line["name"]: of_kind[line["kind"]] for line in taken}


def _refused(model: ir.Model) -> dict[str, str]:
    """Attentions that no recipe makes integer, and why."""
    return {
        item.name: item.refused for item in survey(model).found if item.kind == "attention" and item.refused is not None
    }


def _speeds(
    paths: Mapping[str, Path], feed: Mapping[str, Any], rounds: int, options: SessionOptions
) -> dict[str, Speed]:
    """By row; nothing where none is asked for."""
    if not rounds:
        return {}
    seconds = run_in_turns({name: Running.of(path, options) for name, path in paths.items()}, feed, rounds)
    exact = seconds[FULL_PRECISION]
    return {name: Speed(mean_interval(of_one).mean, ratio_interval(exact, of_one)) for name, of_one in seconds.items()}
