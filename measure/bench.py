"""How fast bundles are: several of them interleaved in one run, in both forms, with confidence intervals."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from nextscale.measure.bundle_contender import FORMS, bundle_contender
from nextscale.measure.contest import Contest, require_batches
from nextscale.measure.interleaved import ORDER, Log, require_rounds
from nextscale.measure.provenance import finite, versions
from nextscale.measure.speed import Speed
from nextscale.measure.statistics import Interval
from nextscale.runtime._bundle import Bundle
from nextscale.runtime._errors import NextscaleError
from nextscale.runtime._machine import Machine, describe_machine
from nextscale.runtime._manifest import STOCK
from nextscale.runtime._session import SessionOptions
from nextscale.runtime._variants import each_variant


@dataclass(frozen=True)
class Footprint:
    """What a process of its own takes, which generates batches of one size.

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
        ops: which variant of its graphs ran, "stock" or "fused"; "stock" in files of runs before there were two.
        size_bytes: all files of the bundle.
        batch: images at a time.
        form: "generate" (generate.onnx) or "streaming" (stage.onnx and decoder.onnx).
        image_seconds: seconds per image.
        images_per_second: its inverse.
        stage_seconds: of each stage; empty for "generate".
        decoder_seconds: of the decoder; None for "generate".
        speedup: over the first bundle at the same batch and form, from paired runs.
        footprint: load time and peak memory; None in files of runs that did not measure it.
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
    ops: str = STOCK


@dataclass(frozen=True)
class BenchReport:
    """Measurements and what they were measured on."""

    machine: Machine
    versions: dict[str, str]
    settings: dict[str, Any]
    measurements: tuple[Measurement, ...] = field(default=())

    def to_json(self) -> dict[str, Any]:
        """Numbers, texts, lists and objects alone; what is not finite becomes null."""
        plain: dict[str, Any] = finite(asdict(self))
        return plain


def bench(
    bundles: Sequence[Bundle],
    *,
    batches: Sequence[int] = (1,),
    forms: Sequence[str] = tuple(FORMS),
    options: SessionOptions | None = None,
    repetitions: int = 10,
    warmup: int = 1,
    seed: int = 0,
    log: Log = lambda line: None,
) -> BenchReport:
    """Measure bundles against each other on this machine.

    Every bundle runs in each form in a process of its own, again for each batch size, so that its memory is its own;
    where both can run, its stock and its fused graphs run beside each other.

    Args:
        bundles: the first is what the others' speedups refer to.
        batches: images at a time, each measured on its own.
        forms: "generate" and/or "streaming".
        options: threads, memory and operators, the same for all; see `each_variant`.
        repetitions: timed rounds; in each round every bundle and form generates one batch.
        warmup: rounds before them that are not counted.
        seed: of the labels and images in the first round; each round has another.
        log: called with a line of progress.
    Raises:
        NextscaleError: nothing to measure, a setting out of range, or a bundle that fails.
    """
    options = options or SessionOptions()
    _require(bool(bundles), "no bundle to measure")
    _require(bool(forms) and set(forms) <= set(FORMS), f"forms {list(forms)}: expected of {', '.join(FORMS)}")
    require_batches(batches)
    require_rounds(repetitions, warmup)
    cases = [(bundle, choice, form) for bundle in bundles for choice in each_variant(bundle, options) for form in forms]
    contenders = [
        bundle_contender(f"{bundle.path} ({choice.ops}, {form})", bundle, form, choice)
        for bundle, choice, form in cases
    ]
    measurements = []
    for batch in batches:
        with Contest(contenders, log=log) as contest:
            speeds = contest.speeds(batch, repetitions=repetitions, warmup=warmup, seed=seed)
        first = dict(zip(forms, speeds, strict=False))  # the first bundle's come first
        measurements += [
            _measurement(bundle, choice.ops, form, speed, first[form])
            for (bundle, choice, form), speed in zip(cases, speeds, strict=True)
        ]
    settings = {
        "threads": options.threads,
        "spinning": options.spinning,
        "batches": list(batches),
        "repetitions": repetitions,
        "warmup": warmup,
        "seed": seed,
        "order": ORDER,
    }
    return BenchReport(describe_machine(), versions(), settings, tuple(measurements))


def _measurement(bundle: Bundle, ops: str, form: str, speed: Speed, first: Speed) -> Measurement:
    return Measurement(
        bundle=str(bundle.path),
        name=bundle.manifest.name,
        recipe=str(bundle.manifest.recipe["name"]),
        size_bytes=bundle.manifest.size,
        batch=speed.batch,
        form=form,
        image_seconds=speed.image_seconds,
        images_per_second=speed.images_per_second,
        stage_seconds=speed.stage_seconds,
        decoder_seconds=speed.decoder_seconds,
        speedup=speed.ratio_to(first),
        footprint=Footprint(speed.load_seconds, speed.first_seconds, speed.peak_memory_bytes),
        samples=speed.samples,
        ops=ops,
    )


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise NextscaleError(message)
