from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pytest
from numpy.typing import NDArray
from tiny_model import NUM_CLASSES, ONE_THREAD, PATCH_NUMS, L, V, tiny_source

from nextscale.calib_data.observe_histograms import BINS, PERCENTILES, Observed, choose_range, observe_histograms
from nextscale.compiler import build
from nextscale.export.var.decoder_graph import build_decoder_graph
from nextscale.export.var.stage_graph import build_stage_graph
from nextscale.graph_passes.observe_ranges import expose_inputs, input_name
from nextscale.graph_passes.qparams import ActivationQParams, Range, RangeRule
from nextscale.runtime import Bundle, Generator

N, NUM_STAGES = 2, len(PATCH_NUMS)
LABELS = np.arange(N) % NUM_CLASSES
MAPS = np.random.default_rng(0).integers(0, V, (N, L))
LAYERS = ["blocks.0.attn.q", "blocks.1.ffn.fc2", "head"]
NAMES: list[Observed] = [(LAYERS[0], "uncond"), (LAYERS[0], "difference"), (LAYERS[1], None), (LAYERS[2], None)]
Values = dict[Observed, list[NDArray[np.float32]]]


@pytest.fixture(scope="module")
def exposed(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """The tiny model, which also gives the layers' inputs."""
    source, folder = tiny_source(), tmp_path_factory.mktemp("exposed")
    stage, decoder = build_stage_graph(source.var, source.vqvae.quantize), build_decoder_graph(source.vqvae)
    build._write(source, folder, expose_inputs(stage, LAYERS), decoder, {"name": "fp32"})
    return Bundle.open(folder)


@pytest.fixture(scope="module")
def values(exposed: Bundle) -> Values:
    """What each histogram counts, by stage, of all images."""
    found: Values = {name: [np.zeros(0, np.float32)] * NUM_STAGES for name in NAMES}
    outputs = [input_name(layer) for layer in LAYERS]
    for i in range(N):
        one = slice(i, i + 1)
        for result in Generator(exposed, ONE_THREAD).stream(
            LABELS[one], cfg_scale=4.0, forced_tokens=MAPS[one], outputs=outputs
        ):
            for name in NAMES:
                x = result.outputs[input_name(name[0])]
                if name[1] is not None:
                    cond, uncond = np.split(x, 2)
                    x = uncond if name[1] == "uncond" else cond - uncond
                found[name][result.stage] = np.concatenate([found[name][result.stage], x.ravel()])
    return found


def ranges_of(values: Values) -> dict[Observed, Range]:
    return {
        name: Range(np.array([x.min() for x in stages]), np.array([x.max() for x in stages]))
        for name, stages in values.items()
    }


def observe(exposed: Bundle, ranges: Mapping[Observed, Range]) -> dict[Observed, NDArray[np.int64]]:
    return observe_histograms(exposed, ranges, LABELS, MAPS, ONE_THREAD, lambda done: None)


def test_every_value_is_counted_where_it_is(exposed: Bundle, values: Values) -> None:
    """The head sees one row of each image, other layers two, of which a part is one."""
    ranges = ranges_of(values)
    found = observe(exposed, ranges)
    assert list(found) == NAMES
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
def test_what_lies_outside_counts_at_the_ends(exposed: Bundle, values: Values, width: float) -> None:
    name = NAMES[0]
    ends = np.full(NUM_STAGES, width, np.float32)
    counts = observe(exposed, {name: Range(-ends, ends)})[name]
    for si, x in enumerate(values[name]):
        assert counts[si].sum() == len(x)
        assert counts[si][0] >= (x < -width).sum() > 0
        assert counts[si][-1] >= (x > width).sum() > 0


def test_images_are_told(exposed: Bundle, values: Values) -> None:
    seen: list[int] = []
    observe_histograms(exposed, ranges_of(values), LABELS, MAPS, ONE_THREAD, seen.append)
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
