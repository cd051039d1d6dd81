from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from numpy.typing import NDArray
from tiny_model import NUM_CLASSES, ONE_THREAD, PATCH_NUMS, L, V

from nextscale.calib_data.observe_histograms import (
    BINS,
    PERCENTILES,
    choose_range,
    exposed_inputs,
    observe_histograms,
)
from nextscale.calib_data.observed_stage import ObservedStage
from nextscale.calib_data.subjects import Subjects
from nextscale.graph_passes.observe_inputs import Input, Observer, observe_inputs
from nextscale.graph_passes.qparams import ActivationQParams, Range, RangeRule
from nextscale.runtime import Bundle
from nextscale.runtime._request import Request

N, NUM_STAGES = 2, len(PATCH_NUMS)
LABELS = np.arange(N) % NUM_CLASSES
MAPS = np.random.default_rng(0).integers(0, V, (N, L))
LAYERS = ["blocks.0.attn.q", "blocks.1.ffn.fc2", "head"]
KEYS = [*Input(LAYERS[0]).parts(), Input(LAYERS[1]), Input(LAYERS[2])]
Values = dict[Input, list[NDArray[np.float32]]]


@pytest.fixture(scope="module")
def exposed(fp32_bundle: Path) -> ObservedStage:
    """The tiny model, which also gives the layers' inputs."""
    bundle = Bundle.open(fp32_bundle)
    model = observe_inputs(ir.load(bundle.graph_path("stage")), exposed_inputs(KEYS))
    return ObservedStage.open(bundle, model, ONE_THREAD)


@pytest.fixture(scope="module")
def values(exposed: ObservedStage) -> Values:
    """What each histogram counts, by stage, of all images."""
    found: Values = {key: [np.zeros(0, np.float32)] * NUM_STAGES for key in KEYS}
    for i in range(N):
        one = slice(i, i + 1)
        request = Request.create(exposed.bundle, LABELS[one], cfg_scale=4.0, forced_tokens=MAPS[one])
        for result in exposed.runner().run(request, exposed.outputs):
            for key in KEYS:
                x = result.outputs[Observer(Input(key.node), "values").output]
                if key.part is not None:
                    cond, uncond = np.split(x, 2)
                    x = uncond if key.part == "uncond" else cond - uncond
                found[key][result.stage] = np.concatenate([found[key][result.stage], x.ravel()])
    return found


def ranges_of(values: Values) -> dict[Input, Range]:
    return {
        name: Range(np.array([x.min() for x in stages]), np.array([x.max() for x in stages]))
        for name, stages in values.items()
    }


def observe(exposed: ObservedStage, ranges: Mapping[Input, Range]) -> dict[Input, NDArray[np.int64]]:
    return observe_histograms(exposed, ranges, Subjects.of_classes(LABELS), MAPS)


def test_every_value_is_counted_where_it_is(exposed: ObservedStage, values: Values) -> None:
    """The head sees one row of each image, other layers two, of which a part is one."""
    ranges = ranges_of(values)
    found = observe(exposed, ranges)
    assert list(found) == KEYS
    for name, counts in found.items():
        assert counts.shape == (NUM_STAGES, BINS)
        for si, x in enumerate(values[name]):
            assert counts[si].sum() == len(x)
            edges = np.linspace(ranges[name].minimum[si], ranges[name].maximum[si], BINS + 1)
            expected = np.histogram(x, edges)[0]
            # Values at an edge may fall to either side.
            assert np.abs(np.cumsum(counts[si]) - np.cumsum(expected)).max() <= max(2, 1e-3 * len(x))
            assert counts[si][0] > 0
            assert counts[si][-1] > 0


@pytest.mark.parametrize("width", [0.25, 0.0, 1e-44], ids=["narrow", "none", "less than a normal number"])
def test_what_lies_outside_counts_at_the_ends(exposed: ObservedStage, values: Values, width: float) -> None:
    name = KEYS[0]
    ends = np.full(NUM_STAGES, width, np.float32)
    counts = observe(exposed, {name: Range(-ends, ends)})[name]
    for si, x in enumerate(values[name]):
        assert counts[si].sum() == len(x)
        assert counts[si][0] >= (x < -width).sum() > 0
        assert counts[si][-1] >= (x > width).sum() > 0


def test_images_are_told(exposed: ObservedStage, values: Values) -> None:
    seen: list[int] = []
    observe_histograms(exposed, ranges_of(values), Subjects.of_classes(LABELS), MAPS, seen.append)
    assert seen == [1, 2]


# Ranges


def histogram(x: NDArray[np.float32]) -> tuple[Range, NDArray[np.int64]]:
    found = Range(x.min(keepdims=True), x.max(keepdims=True))
    return found, np.histogram(x, BINS, (float(x.min()), float(x.max())))[0].astype(np.int64)[None]


def squared_error(x: NDArray[np.float32], found: Range, bits: int) -> float:
    qparams = ActivationQParams.from_range(found, bits)
    return float(np.square(qparams.dequantize(qparams.quantize(x)) - x, dtype=np.float64).mean())


def test_max_keeps_everything() -> None:
    found, counts = histogram(np.random.default_rng(0).normal(size=1000).astype(np.float32))
    assert choose_range(found, counts, 8, "max") is found


def test_percentiles_leave_their_share_outside() -> None:
    """Of 500,000 values 50 at either end, but for those of one bin."""
    x = np.random.default_rng(0).laplace(size=500_000).astype(np.float32)
    found, counts = histogram(x)
    chosen = choose_range(found, counts, 8, "percentile")
    expected = len(x) * PERCENTILES[0]
    assert abs((x < chosen.minimum).sum() - expected) <= 3
    assert abs((x > chosen.maximum).sum() - expected) <= 3


@pytest.mark.parametrize("bits", [8, 6, 4, 2])
def test_least_squares_is_never_worse_than_everything(bits: int) -> None:
    """And with an outlier far better, where its own error is small beside those of all."""
    for seed in range(5):
        print("seed", seed)
        rng = np.random.default_rng(seed)
        x = rng.normal(rng.normal(), 1, 20_000).astype(np.float32)
        if seed % 2:
            x[0] = 10
        found, counts = histogram(x)
        chosen = choose_range(found, counts, bits, "mse")
        assert found.minimum[0] <= chosen.minimum[0] < chosen.maximum[0] <= found.maximum[0]
        # Errors of the bins' centres, not of the values: a bin is 1 / 2048 of the range.
        assert squared_error(x, chosen, bits) <= 1.02 * squared_error(x, found, bits)
        if seed % 2 and bits == 4:
            assert squared_error(x, chosen, bits) < 0.7 * squared_error(x, found, bits)


def test_each_end_shrinks_on_its_own() -> None:
    """Outliers above, none below."""
    x = np.random.default_rng(0).normal(size=20_000).clip(-2, 2).astype(np.float32)
    x[0] = 8
    found, counts = histogram(x)
    chosen = choose_range(found, counts, 4, "mse")
    assert chosen.maximum[0] < 0.5 * found.maximum[0]
    assert chosen.minimum[0] < 0.7 * found.minimum[0] < 0


@pytest.mark.parametrize("rule", ["percentile", "mse"])
def test_a_stage_that_saw_nothing_has_a_range_of_nothing(rule: RangeRule) -> None:
    found, counts = histogram(np.random.default_rng(0).normal(size=1000).astype(np.float32))
    none = np.zeros(1, np.float32)
    both = Range(np.concatenate([none, found.minimum]), np.concatenate([none, found.maximum]))
    chosen = choose_range(both, np.concatenate([np.zeros_like(counts), counts]), 8, rule)
    assert chosen.minimum.dtype == chosen.maximum.dtype == np.float32
    assert (chosen.minimum[0], chosen.maximum[0]) == (0, 0)
    alone = choose_range(found, counts, 8, rule)
    assert (chosen.minimum[1], chosen.maximum[1]) == (alone.minimum[0], alone.maximum[0])
