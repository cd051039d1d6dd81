"""Table 2: prompts drawn by one Infinity in several bundles, and how near each bundle is to full precision."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nextscale.calib_data.subjects import Subjects
from nextscale.calib_data.text_subjects import text_subjects
from nextscale.evaluate._kept_figures import bundle_sha256, file_of, kept_file, number_or_nan, or_none, read_json
from nextscale.evaluate.attention_error import (
    MOST_OBSERVED,
    attention_errors,
    by_stage,
    has_attention_error,
    observed_bytes,
)
from nextscale.evaluate.image_metrics import frechet_distance
from nextscale.evaluate.teacher_forced import Agreement, Sampled, agreement, sample
from nextscale.measure.provenance import finite, versions
from nextscale.measure.statistics import Interval
from nextscale.paper._geneval import GenEval
from nextscale.paper._plan import COMPARED, PICTURES, Pace, PlannedStep
from nextscale.paper._prompted_pictures import (
    RECOGNISED,
    Asked,
    Drawing,
    Measures,
    PictureResults,
    finished,
    picture_results,
    seconds_per_picture,
)
from nextscale.paper._rows import METHODS, NOISE_FLOOR, Job, interval_of, reference_and_others
from nextscale.paper.recipe_bundles import FULL_PRECISION, RecipeBundle, UnbuiltBundle, model_name
from nextscale.runtime._checked_json import JsonNode
from nextscale.runtime._errors import NextscaleError
from nextscale.runtime._machine import Machine, describe_machine
from nextscale.runtime._next_scale_loop import Generator
from nextscale.runtime._session import SessionOptions
from nextscale.runtime.image_io import write_files

BITS = ("w6a6", "w4a8", "w4a6", "w4a4")
ROWS = (FULL_PRECISION, "default", *(f"{method}-{bits}" for bits in BITS for method in METHODS))
IMAGE_REWARD, HPS = "ImageReward", "HPSv2.1"


@dataclass(frozen=True)
class PaperRow:
    """A row of the paper's Table 2, of Infinity-2B."""

    image_reward: float
    hps: float
    geneval: float


PAPER = {
    "fp32": PaperRow(0.932, 32.23, 0.736),
    "brecq-w6a6": PaperRow(0.908, 32.01, 0.719),
    "litevar-w6a6": PaperRow(0.912, 32.01, 0.720),
    "ours-w6a6": PaperRow(0.914, 32.03, 0.722),
    "ours-litevar-w6a6": PaperRow(0.929, 32.04, 0.725),
    "brecq-w4a8": PaperRow(0.845, 31.79, 0.712),
    "litevar-w4a8": PaperRow(0.866, 32.03, 0.719),
    "ours-w4a8": PaperRow(0.861, 31.94, 0.716),
    "ours-litevar-w4a8": PaperRow(0.880, 32.08, 0.722),
    "brecq-w4a6": PaperRow(0.831, 31.62, 0.703),
    "litevar-w4a6": PaperRow(0.838, 31.61, 0.702),
    "ours-w4a6": PaperRow(0.842, 31.70, 0.706),
    "ours-litevar-w4a6": PaperRow(0.880, 32.04, 0.714),
    "brecq-w4a4": PaperRow(0.346, 27.92, 0.563),
    "litevar-w4a4": PaperRow(0.407, 28.98, 0.626),
    "ours-w4a4": PaperRow(0.575, 29.32, 0.653),
    "ours-litevar-w4a4": PaperRow(0.748, 29.57, 0.672),
}


@dataclass(frozen=True)
class Comparing:
    """How bundles are compared with full precision, fed the bits that it samples as pictures are drawn.

    Attributes:
        images: of prompts in turn, for the KL.
        attention_images: the first of them, for the error of A V; 0: it is not measured.
        seed: of the order of the prompts and of the bits.
    """

    images: int = 32
    attention_images: int = 4
    seed: int = 1


@dataclass(frozen=True)
class Nearness:
    """A bundle against full precision, teacher-forced.

    Attributes:
        kl: mean KL(full precision || bundle), nats per bit.
        kl_stderr: over images.
        bits_equal: share of the bits whose likelier value is the same.
        stage_kl, stage_bits_equal: the same of each stage.
        images: their number.
        attention_error: relative error of self-attention's A V, the mean over stages and blocks; None where it is not
            measured, or in float, which has none.
        stage_attention_error: the mean over blocks of each stage; empty where there is none.
        attention_images: their number.
    """

    kl: float
    kl_stderr: float
    bits_equal: float
    stage_kl: tuple[float, ...]
    stage_bits_equal: tuple[float, ...]
    images: int
    attention_error: float | None = None
    stage_attention_error: tuple[float, ...] = ()
    attention_images: int = 0


@dataclass(frozen=True)
class Row:
    """One row of the table.

    Attributes:
        name: the recipe's, or "noise floor".
        method, bits: what the table calls it, and the bits of weights and activations.
        bundle: its folder.
        calibration_images: that its manifest tells of; None for full precision.
        float_attention: whether self-attention's products are in float, so that A V has no error.
        paper: the paper's row; None where it has none.
        figures: means over pictures by column; None where no picture has such a figure.
        differences: paired, to full precision's figures of the same prompts; empty for full precision.
        frechet: distance of the features to those of full precision's pictures; None for full precision.
        nearness: None for full precision and the noise floor.
        geneval: the score, where GenEval has judged the row's pictures.
    """

    name: str
    method: str
    bits: str
    bundle: str
    calibration_images: int | None
    float_attention: bool
    paper: PaperRow | None
    figures: Mapping[str, Interval | None]
    differences: Mapping[str, Interval | None]
    frechet: float | None
    nearness: Nearness | None
    geneval: float | None


@dataclass(frozen=True)
class Table2:
    """What was measured, and of what.

    Attributes:
        model: its manifest's name, its pictures' size and a token's bits.
        prompts: how many were drawn, of each kind.
        settings: of drawing and comparing, plain values.
        measures: names of what measured the pictures.
        machine, versions: of this process.
        rows: full precision, the noise floor, then the others.
        left_out: lines on rows and figures that are missing.
        warnings: lines on rows whose integer products this processor does not compute exactly.
    """

    model: Mapping[str, Any]
    prompts: Mapping[str, int]
    settings: Mapping[str, Any]
    measures: Mapping[str, str]
    machine: Machine
    versions: Mapping[str, str]
    rows: tuple[Row, ...]
    left_out: tuple[str, ...]
    warnings: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """Plain values; what is not finite becomes null."""
        plain: dict[str, Any] = finite(asdict(self))
        return plain


OnImages = Callable[[str, int, int], object]


def jobs(bundles: Sequence[RecipeBundle], drawing: Drawing) -> list[Job[Drawing]]:
    """Full precision, full precision with the next seed as the noise floor, then the other bundles.

    Raises:
        NextscaleError: full precision is not among them, or they are of several models or of several sizes.
    """
    found = reference_and_others(bundles, drawing)
    original = found[0].bundle.bundle
    if len(original.manifest.models) != 1:
        raise NextscaleError(f"{original.path}: built for {len(original.manifest.models)} sizes; Table 2 is of one")
    return found


def measure_table_2(
    bundles: Sequence[RecipeBundle],
    asked: Sequence[Asked],
    measures: Measures,
    drawing: Drawing,
    comparing: Comparing,
    work: Path,
    *,
    options: SessionOptions | None = None,
    geneval: GenEval | None = None,
    left_out: Sequence[str] = (),
    on_images: OnImages = lambda what, done, total: None,
) -> Table2:
    """Draw the prompts with every bundle, measure the pictures, and compare the bundles' bits with full precision's.

    Args:
        bundles: of one model of texts, with a text encoder, one of them full precision.
        asked: two prompts or more.
        measures: what measures the pictures.
        drawing: seed, guidance and filters; the same for all rows.
        comparing: how bits are compared.
        work: an existing folder that keeps the figures; see `picture_results`.
        options: threads, memory and operators.
        geneval: which draws and reads GenEval's pictures, too.
        left_out: lines on rows that could not be built, for the report.
        on_images: called with what is made of a row, and how many of how many are finished.
    Raises:
        NextscaleError: see `jobs` and `picture_results`; there is one prompt; or a prompt asks for what the judge does
            not know.
    """
    if len(asked) < 2:
        raise NextscaleError("1 prompt: expected at least 2, between which pictures differ")
    if measures.judge is not None:
        measures.judge.require([item.objects for item in asked])
    options = options or SessionOptions()
    wanted, missing = jobs(bundles, drawing), [*left_out]
    comparison = _Comparison(wanted[0].bundle, [item.prompt for item in asked], drawing, comparing, work, options)
    missing += comparison.left_out
    rows, warnings, original = list[Row](), list[str](), None
    for job in wanted:
        generator = Generator(job.bundle.bundle, options)
        warning = job.warning(generator)
        if warning is not None:
            warnings.append(warning)
        nearness = None
        if job.bundle.name != FULL_PRECISION:
            # Before the bundle draws: until then its graphs are not loaded, and full precision's may be.
            nearness = comparison.nearness(job.name, generator, on_images)
        results = picture_results(
            generator,
            asked,
            measures,
            job.sampling,
            work,
            lambda done, name=job.name: on_images(f"{name}: drawing", done, len(asked)),  # type: ignore[misc]
        )
        score = None
        if geneval is not None and job.name != NOISE_FLOOR:
            score = geneval.score(job.name, generator, drawing, on_images)
            if score is None:
                missing.append(geneval.command(job.name))
        del generator
        original = results if original is None else original
        rows.append(_row(job, results, original, [item.kind for item in asked], nearness, score))
    manifest = wanted[0].bundle.bundle.manifest
    kinds = [item.kind for item in asked]
    return Table2(
        model={
            "name": model_name(wanted[0].bundle.bundle),
            "image_size": list(manifest.model.image_size),
            "token_bits": comparison.bits,
            "num_stages": manifest.model.num_stages,
        },
        prompts={kind: kinds.count(kind) for kind in dict.fromkeys(kinds)},
        settings={
            **drawing.settings(),
            "noise_floor_seed": drawing.seed + 1,
            "comparing": asdict(comparing),
        },
        measures=measures.names,
        machine=describe_machine(),
        versions=versions(),
        rows=tuple(rows),
        left_out=tuple(missing),
        warnings=tuple(warnings),
    )


def plan_table_2(
    rows: Sequence[RecipeBundle | UnbuiltBundle],
    asked: Sequence[Asked],
    measures: Measures,
    drawing: Drawing,
    comparing: Comparing,
    work: Path,
    *,
    options: SessionOptions | None = None,
    geneval: GenEval | None = None,
) -> list[PlannedStep]:
    """What `measure_table_2` has left to do; a batch is drawn with each bundle that has.

    The error of attention's product is not counted, of whose few images each takes longer than one that is compared.

    Args:
        rows: full precision first.
        asked, measures, drawing, comparing, options, geneval: as for `measure_table_2`.
        work: as there; it need not exist.
    """
    original, *others = rows
    options, comparison = options or SessionOptions(), None
    if isinstance(original, RecipeBundle):
        prompts = [item.prompt for item in asked]
        comparison = _Comparison(original, prompts, drawing, comparing, work, options)

    def batch(item: RecipeBundle) -> float:
        return seconds_per_picture(Generator(item.bundle, options), asked, measures, drawing)

    def left(item: RecipeBundle | UnbuiltBundle, chosen: Drawing = drawing) -> int:
        done = 0
        if isinstance(item, RecipeBundle):
            done = finished(Generator(item.bundle, options), asked, measures, chosen, work)
        return len(asked) - done

    def compared(item: RecipeBundle | UnbuiltBundle) -> int:
        is_there = (
            comparison is not None
            and isinstance(item, RecipeBundle)
            and comparison.path(Generator(item.bundle, options)).exists()
        )
        return 0 if is_there else comparing.images

    def judged(item: RecipeBundle | UnbuiltBundle) -> dict[str, int]:
        return {} if geneval is None else {"for GenEval": geneval.left(item.name)}

    pace = Pace(original, batch)
    floor = left(original, replace(drawing, seed=drawing.seed + 1))
    return [
        pace.step(original, {PICTURES: left(original), **judged(original)}),
        pace.step(original, {PICTURES: floor}, name=NOISE_FLOOR),
        *(pace.step(item, {PICTURES: left(item), COMPARED: compared(item), **judged(item)}) for item in others),
    ]


class _Comparison:
    """Bundles against what full precision samples, which it does once, when the first bundle has to be compared.

    Attributes:
        left_out: lines on figures that are not measured.
        bits: of a token.
    """

    def __init__(
        self,
        original: RecipeBundle,
        prompts: Sequence[str],
        drawing: Drawing,
        comparing: Comparing,
        work: Path,
        options: SessionOptions,
    ) -> None:
        self._original, self._prompts, self._comparing = original.bundle, prompts, comparing
        self._drawing, self._work, self._options = drawing.settings(comparing.seed), work, options
        *_, self.bits = self._original.manifest.forced_tokens.row_shape
        self.left_out = list[str]()
        self._attention_images = min(comparing.attention_images, comparing.images)
        needed = observed_bytes(self._original.model)
        if self._attention_images and needed > MOST_OBSERVED:
            self._attention_images = 0
            self.left_out.append(f"error of A V: observing it takes {needed / 1e9:.0f} GB at this size of pictures")
        self._sampled: tuple[Subjects, list[Sampled]] | None = None

    def nearness(self, name: str, candidate: Generator, on_images: OnImages) -> Nearness:
        """Of a bundle: what an earlier call left in `work`, or else measured."""
        path = self.path(candidate)
        if path.exists():
            return _read_nearness(path)
        subjects, sampled = self._samples(on_images)
        total = self._comparing.images
        compared = agreement(
            sampled, candidate, subjects, lambda done: on_images(f"{name}: comparing bits", done, total)
        )
        found = self._of(compared, self._attention_error(name, candidate, subjects, sampled, on_images))
        text = json.dumps(asdict(found), indent=1) + "\n"
        write_files({path: lambda file: file.write(text.encode())})
        return found

    def path(self, candidate: Generator) -> Path:
        """The file in which a bundle's nearness is kept."""
        settings = {
            "reference": bundle_sha256(self._original),
            "prompts": [*self._prompts],
            "operators": candidate.ops.variant,
            **self._drawing,
            **asdict(self._comparing),
            "attention_images": self._attention_images,
        }
        return file_of(candidate.bundle, self._work, settings, "{bundle}-{digest}-nearness.json")

    def _samples(self, on_images: OnImages) -> tuple[Subjects, list[Sampled]]:
        if self._sampled is None:
            generator, total = Generator(self._original, self._options), self._comparing.images
            subjects, _ = text_subjects(generator, self._prompts, total, self._comparing.seed)
            batches = list[Sampled]()
            for batch in sample(generator, subjects, range(total), batch_size=1, **self._drawing):
                batches.append(batch)
                on_images("sampling in full precision", len(batches), total)
            self._sampled = subjects, batches
        return self._sampled

    def _attention_error(
        self, name: str, candidate: Generator, subjects: Subjects, sampled: Sequence[Sampled], on_images: OnImages
    ) -> NDArray[np.float64] | None:
        """Relative error of A V by stage, [S]."""
        count = self._attention_images
        if not count or not has_attention_error(candidate.bundle):
            return None
        (found,) = attention_errors(
            self._original,
            [candidate.bundle],
            self._options,
            images=count,
            seed=self._comparing.seed,
            cfg_scale=self._drawing["cfg_scale"],
            subjects=subjects[:count],
            token_maps=np.concatenate([batch.tokens for batch in sampled[:count]]),
            on_images=lambda done: on_images(f"{name}: observing attention", done, count),
        )
        return by_stage(found.relative)

    def _of(self, found: Agreement, errors: NDArray[np.float64] | None) -> Nearness:
        nearness = Nearness(
            kl=found.kl / self.bits,
            kl_stderr=found.kl_stderr / self.bits,
            bits_equal=found.top1,
            stage_kl=tuple((found.stage_kl / self.bits).tolist()),
            stage_bits_equal=tuple(found.stage_top1.tolist()),
            images=found.images,
        )
        if errors is None:
            return nearness
        return replace(
            nearness,
            attention_error=float(errors.mean()),
            stage_attention_error=tuple(errors.tolist()),
            attention_images=self._attention_images,
        )


def _read_nearness(path: Path) -> Nearness:
    with kept_file(path, "compare that bundle again"):
        found = read_json(path)

        def of_stages(name: str) -> tuple[float, ...]:
            return tuple(map(number_or_nan, found[name].elements()))

        return Nearness(
            kl=found["kl"].number(),
            kl_stderr=number_or_nan(found["kl_stderr"]),
            bits_equal=found["bits_equal"].number(),
            stage_kl=of_stages("stage_kl"),
            stage_bits_equal=of_stages("stage_bits_equal"),
            images=found["images"].integer(1),
            attention_error=or_none(found["attention_error"], JsonNode.number),
            stage_attention_error=of_stages("stage_attention_error"),
            attention_images=found["attention_images"].integer(),
        )


def figures_of(results: Mapping[str, NDArray[np.float64]], kinds: Sequence[str]) -> dict[str, NDArray[np.float64]]:
    """Figures of pictures by the table's columns: what is recognised by kind of prompt, where there are several.

    Args:
        results: float64 [n] by measure.
        kinds: of the n prompts.
    """
    found = dict[str, NDArray[np.float64]]()
    several = len(set(kinds)) > 1
    for column, values in results.items():
        if column == RECOGNISED and several:
            for kind in dict.fromkeys(kinds):
                found[f"{RECOGNISED}, {kind or 'other'}"] = values[[other == kind for other in kinds]]
        else:
            found[column] = values
    return found


def _row(
    job: Job[Drawing],
    results: PictureResults,
    original: PictureResults,
    kinds: Sequence[str],
    nearness: Nearness | None,
    geneval: float | None,
) -> Row:
    figures, reference = figures_of(results.figures, kinds), figures_of(original.figures, kinds)
    is_reference = job.name == FULL_PRECISION
    return Row(
        **job.description(),
        float_attention=not has_attention_error(job.bundle.bundle),
        paper=PAPER.get(job.name),
        figures={column: interval_of(values) for column, values in figures.items()},
        differences=job.differences(figures, reference),
        frechet=None if is_reference else frechet_distance(results.gaussian(), original.gaussian()),
        nearness=nearness,
        geneval=geneval,
    )
