"""How fast a bundle is: several bundles interleaved in one run, in both forms, with confidence intervals.

Interleaved (A B A B ...) because a machine's speed drifts: a slow minute then slows every bundle alike, and the
ratio of two bundles is taken from runs made one after the other.
"""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from nextscale.measure.contender import Worker, bundle_contender
from nextscale.measure.statistics import Interval, mean_interval, ratio_interval
from nextscale.runtime.bundle import Bundle
from nextscale.runtime.errors import NextscaleError
from nextscale.runtime.machine import Machine, describe_machine, versions
from nextscale.runtime.next_scale_loop import Generator
from nextscale.runtime.session import SessionOptions

FORMS = {"generate": ("generate",), "streaming": ("stage", "decoder")}  # form -> the graphs it loads


@dataclass(frozen=True)
class Run:
    """Seconds of one repetition; stages and decoder are those of the streaming form."""

    total: float
    stages: tuple[float, ...] = ()
    decoder: float | None = None


@dataclass(frozen=True)
class Footprint:
    """What a fresh process that generates one batch takes.

    Attributes:
        load_seconds: to load the form's graphs.
        first_seconds: the first batch, memory still cold.
        peak_bytes: the process's peak memory, Python included.
    """

    load_seconds: float
    first_seconds: float
    peak_bytes: int


@dataclass(frozen=True)
class Measurement:
    """One bundle in one form at one batch size; intervals are seconds for one image.

    Attributes:
        bundle: the folder.
        name: the manifest's name.
        recipe: the name of its quantization recipe.
        size_bytes: all files of the bundle.
        batch: images at a time.
        form: "generate" (generate.onnx) or "streaming" (stage.onnx and decoder.onnx).
        image_seconds: seconds an image.
        images_per_second: its inverse.
        stage_seconds: of each stage; empty for "generate".
        decoder_seconds: of the decoder; None for "generate".
        speedup: over the first bundle at the same batch and form, from paired runs.
        footprint: load time and peak memory; None if not measured.
        samples: seconds of each repetition, of the whole batch.
    """

    bundle: str
    name: str
    recipe: str
    size_bytes: int
    batch: int
    form: str
    image_seconds: Interval
    images_per_second: Interval
    stage_seconds: tuple[Interval, ...]
    decoder_seconds: Interval | None
    speedup: Interval
    footprint: Footprint | None
    samples: tuple[float, ...]


@dataclass(frozen=True)
class BenchReport:
    """Measurements and what they were measured on."""

    machine: Machine
    versions: dict[str, str]
    settings: dict[str, Any]
    measurements: tuple[Measurement, ...] = field(default=())

    def to_json(self) -> dict[str, Any]:
        """Numbers, texts, lists and objects alone; what is not finite becomes null."""
        return finite(asdict(self))


def bench(
    bundles: Sequence[Bundle],
    *,
    batches: Sequence[int] = (1,),
    forms: Sequence[str] = tuple(FORMS),
    options: SessionOptions | None = None,
    repetitions: int = 10,
    warmup: int = 1,
    seed: int = 0,
    footprint: bool = True,
    log: Callable[[str], object] = lambda line: None,
) -> BenchReport:
    """Measure bundles against each other on this machine.

    Args:
        bundles: the first is what the others' speedups refer to.
        batches: images at a time, each measured on its own.
        forms: "generate" and/or "streaming".
        options: threads and memory, the same for all.
        repetitions: timed rounds; in each round every bundle and form generates one batch.
        warmup: rounds before them that are not counted.
        seed: of the labels and images.
        footprint: also measure load time and peak memory, each in a fresh process.
        log: called with a line of progress.
    Raises:
        NextscaleError: nothing to measure, or a setting out of range.
    """
    options = options or SessionOptions()
    _require(bool(bundles), "no bundle to measure")
    _require(bool(batches) and min(batches) >= 1, f"batch sizes {list(batches)}: expected at least one, each 1 or more")
    _require(bool(forms) and set(forms) <= set(FORMS), f"forms {list(forms)}: expected of {', '.join(FORMS)}")
    _require(repetitions >= 2, f"repetitions {repetitions}: expected at least 2, for a confidence interval")
    _require(warmup >= 0, f"warmup {warmup}: expected at least 0")
    cases = [(bundle, form) for bundle in range(len(bundles)) for form in forms]
    footprints = {
        (bundle, form, batch): _footprint(bundles[bundle], form, batch, options, log)
        for bundle, form in cases
        for batch in batches
        if footprint
    }
    generators = [Generator(bundle, options) for bundle in bundles]
    for bundle, form in cases:
        log(f"loading {bundles[bundle].path} ({form})")
        generators[bundle].load(*FORMS[form])
    measurements = []
    for batch in batches:
        runs: dict[tuple[int, str], list[Run]] = {case: [] for case in cases}
        for repetition in range(-warmup, repetitions):
            log(f"batch {batch}: " + (f"round {repetition + 1} of {repetitions}" if repetition >= 0 else "warming up"))
            for bundle, form in cases:
                run = time_batch(generators[bundle], form, batch, seed)
                if repetition >= 0:
                    runs[bundle, form].append(run)
        measurements += [
            _measurement(
                bundles[bundle], form, batch, runs[bundle, form], runs[0, form], footprints.get((bundle, form, batch))
            )
            for bundle, form in cases
        ]
    settings = {
        "threads": options.threads,
        "spinning": options.spinning,
        "batches": list(batches),
        "repetitions": repetitions,
        "warmup": warmup,
        "seed": seed,
        "order": "interleaved",
    }
    return BenchReport(describe_machine(), versions(), settings, tuple(measurements))


def time_batch(generator: Generator, form: str, batch: int, seed: int) -> Run:
    """Generate one batch of random classes with the default sampling and time it."""
    labels = np.random.default_rng(seed).integers(generator.bundle.model.num_classes, size=batch)
    begin = time.perf_counter()
    if form == "generate":
        generator.generate(labels, seed=seed)
        return Run(time.perf_counter() - begin)
    marks = [begin]
    for stage in generator.stream(labels, seed=seed):
        marks.append(time.perf_counter())
        preview = stage.preview
    preview()
    marks.append(time.perf_counter())
    *stages, decoder = np.diff(marks).tolist()
    return Run(marks[-1] - begin, tuple(stages), decoder)


def _measurement(
    bundle: Bundle, form: str, batch: int, runs: Sequence[Run], first: Sequence[Run], footprint: Footprint | None
) -> Measurement:
    totals = [run.total for run in runs]
    image_seconds = mean_interval(totals).scaled(1 / batch)
    streaming = form == "streaming"
    return Measurement(
        bundle=str(bundle.path),
        name=bundle.manifest.name,
        recipe=str(bundle.manifest.recipe["name"]),
        size_bytes=bundle.manifest.size,
        batch=batch,
        form=form,
        image_seconds=image_seconds,
        images_per_second=image_seconds.inverted(),
        stage_seconds=tuple(
            mean_interval(seconds).scaled(1 / batch) for seconds in zip(*(run.stages for run in runs), strict=True)
        ),
        decoder_seconds=mean_interval([run.decoder or 0.0 for run in runs]).scaled(1 / batch) if streaming else None,
        speedup=ratio_interval([run.total for run in first], totals),
        footprint=footprint,
        samples=tuple(totals),
    )


def _footprint(
    bundle: Bundle, form: str, batch: int, options: SessionOptions, log: Callable[[str], object]
) -> Footprint:
    """Load and generate in a fresh process."""
    log(f"memory of {bundle.path} ({form}, batch {batch})")
    try:
        with Worker(bundle_contender(form, bundle, form, options)) as worker:
            reply = worker.request(batch, seed=0)
    except NextscaleError as error:
        raise NextscaleError(f"{bundle.path}: measuring memory ({form}, batch {batch}) failed: {error}") from None
    return Footprint(worker.load_seconds, reply.seconds, reply.peak_memory_bytes)


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise NextscaleError(message)


def finite(value: Any) -> Any:
    """What JSON can hold: lists for tuples, null for what is not finite."""
    if isinstance(value, dict):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
