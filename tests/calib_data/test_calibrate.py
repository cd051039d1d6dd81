from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from tiny_model import NUM_CLASSES, ONE_THREAD, L, tiny_recipe, tiny_source

from nextscale.calib_data.calibrate import Calibration, CalibrationSettings, calibrate, calibration_labels
from nextscale.calib_data.token_maps import TokenMaps
from nextscale.compiler import build
from nextscale.export.var.decoder_graph import build_decoder_graph
from nextscale.export.var.stage_graph import build_stage_graph
from nextscale.graph_passes.integer_model import IntegerModel
from nextscale.graph_passes.observe_ranges import PARTS, observe_channels, observe_pairs, observe_ranges
from nextscale.graph_passes.qparams import Range
from nextscale.graph_passes.quantize_decoder import integer_convolutions, observe_decoder, observed_results
from nextscale.models.var.layers import facts_of
from nextscale.models.var.reference import generate
from nextscale.runtime import Bundle, Generator

# ONNX Runtime and torch add in another order: parity's bound.
TOLERANCE = 1e-4
CALIBRATION = CalibrationSettings(images=5, batch_size=2)
Observed = tuple[Bundle, list[str], list[str], list[str], tuple[list[str], list[str]]]
BY_CHANNEL = ["blocks.0.attn.q", "blocks.1.attn.proj"]
PAIRS = ["blocks.0.attn.q", "blocks.1.ffn.fc2"]


@pytest.fixture(scope="module")
def observed(tmp_path_factory: pytest.TempPathFactory) -> Observed:
    """The tiny model with observers, as a build writes it, and the observed nodes of stage and decoder."""
    source, folder = tiny_source(), tmp_path_factory.mktemp("observed")
    stage, decoder = build_stage_graph(source.var, source.vqvae.quantize), build_decoder_graph(source.vqvae)
    layers = IntegerModel.decide(tiny_recipe("static-w8a8"), facts_of(source.var)).static
    observed_stage = observe_pairs(observe_channels(observe_ranges(stage, layers), BY_CHANNEL), PAIRS)
    build._write(source, folder, observed_stage, observe_decoder(decoder), {"name": "fp32"})
    nodes = integer_convolutions(decoder), observed_results(decoder)
    return Bundle.open(folder), layers, BY_CHANNEL, PAIRS, nodes


def run(observed: Observed, **settings: float) -> Calibration:
    changed = dataclasses.replace(CALIBRATION, **settings)  # type: ignore[arg-type]
    return calibrate(*observed, changed, ONE_THREAD, lambda done: None)


@pytest.fixture(scope="module")
def calibration(observed: Observed) -> Calibration:
    return run(observed)


def test_labels_go_round_the_classes() -> None:
    labels = calibration_labels(NUM_CLASSES, CalibrationSettings(images=25))
    assert labels.dtype == np.int64
    assert sorted(labels[:NUM_CLASSES]) == list(range(NUM_CLASSES))
    np.testing.assert_array_equal(labels[NUM_CLASSES:], np.resize(labels[:NUM_CLASSES], 15))
    other = calibration_labels(NUM_CLASSES, CalibrationSettings(images=25, seed=1))
    assert (other != labels).any()


def test_token_maps_that_are_given_are_read_instead_of_sampled(observed: Observed, calibration: Calibration) -> None:
    maps = TokenMaps(calibration.class_labels, calibration.token_maps, {})
    fed = calibrate(*observed, dataclasses.replace(CALIBRATION, seed=7), ONE_THREAD, lambda done: None, maps)
    np.testing.assert_array_equal(fed.token_maps, calibration.token_maps)
    for layer, found in calibration.stage_ranges.items():
        np.testing.assert_array_equal(fed.stage_ranges[layer].minimum, found.minimum)
        np.testing.assert_array_equal(fed.stage_ranges[layer].maximum, found.maximum)


def test_progress_counts_images(observed: Observed) -> None:
    seen: list[int] = []
    calibrate(*observed, CALIBRATION, ONE_THREAD, seen.append)
    assert seen == [2, 4, 5]


def test_token_maps_are_those_of_plain_sampling(calibration: Calibration, fp32_bundle: Path) -> None:
    """Observers change no token; image i is image i of the seed."""
    plain = Generator(fp32_bundle, ONE_THREAD).generate(
        calibration.class_labels,
        seed=CALIBRATION.seed,
        cfg_scale=CALIBRATION.cfg_scale,
        top_k=128,  # of 900
        top_p=CALIBRATION.top_p,
    )
    assert calibration.token_maps.shape == (5, L)
    np.testing.assert_array_equal(calibration.token_maps, plain.token_maps)


def test_every_layer_has_a_range_for_each_stage(observed: Observed, calibration: Calibration) -> None:
    _, layers, _, _, (convolutions, results) = observed
    assert list(calibration.stage_ranges) == layers
    assert list(calibration.decoder_ranges.inputs) == convolutions
    assert list(calibration.decoder_ranges.results) == results
    assert {found.minimum.ndim for found in calibration.decoder_ranges.results.values()} == {1}
    for ranges, stages in ((calibration.stage_ranges, 4), (calibration.decoder_ranges.inputs, 1)):
        for name, found in ranges.items():
            assert found.minimum.shape == found.maximum.shape == (stages,), name
            assert (found.minimum < found.maximum).all(), name


def assert_range(found: Range, inputs: list[torch.Tensor]) -> None:
    """A range a stage of what torch saw there."""
    for name, ends in (("minimum", [x.min() for x in inputs]), ("maximum", [x.max() for x in inputs])):
        expected: NDArray[np.float32] = torch.stack(ends).numpy()
        size = max(x.abs().max().item() for x in inputs)
        np.testing.assert_allclose(getattr(found, name), expected, rtol=0, atol=TOLERANCE * size)


def test_ranges_are_those_of_the_torch_model(calibration: Calibration) -> None:
    """On the same tokens: of a layer in the middle of the transformer, and of two of the decoder's."""
    source = tiny_source()
    inputs: dict[str, list[torch.Tensor]] = {}
    watched = {
        "blocks.1.ffn.fc2": source.var.blocks[1].ffn.fc2,
        "blocks.1.attn.q": source.var.blocks[1].attn,
        "decoder.mid.block_1.conv1": source.vqvae.decoder.mid.block_1.conv1,
        "decoder.mid.attn_1.qkv": source.vqvae.decoder.mid.attn_1.qkv,
    }
    for name, module in watched.items():
        module.register_forward_pre_hook(lambda _, x, name=name: inputs.setdefault(name, []).append(x[0]))
    labels, tokens = (torch.from_numpy(array) for array in (calibration.class_labels, calibration.token_maps))
    generate(source.var, source.vqvae, labels, torch.zeros(tokens.shape), tokens, cfg_scale=CALIBRATION.cfg_scale)
    for name in ("blocks.1.ffn.fc2", "blocks.1.attn.q"):
        assert_range(calibration.stage_ranges[name], inputs[name])
    for name in ("decoder.mid.block_1.conv1", "decoder.mid.attn_1.qkv"):
        assert_range(calibration.decoder_ranges.inputs[name], inputs[name])


def test_the_range_of_a_layer_is_that_of_its_channels(calibration: Calibration) -> None:
    assert list(calibration.channel_ranges) == BY_CHANNEL
    for name, channels in calibration.channel_ranges.items():
        assert channels.minimum.shape == (4, 64)
        np.testing.assert_array_equal(channels.minimum.min(axis=1), calibration.stage_ranges[name].minimum)
        np.testing.assert_array_equal(channels.maximum.max(axis=1), calibration.stage_ranges[name].maximum)


def test_pairs_are_of_the_row_without_the_class_and_the_difference(calibration: Calibration) -> None:
    """The first within the range of both rows; torch's numbers for a layer in the middle."""
    assert list(calibration.pair_ranges) == PAIRS
    for name, parts in calibration.pair_ranges.items():
        assert list(parts) == list(PARTS)
        for found in parts.values():
            assert found.minimum.shape == found.maximum.shape
            assert len(found.minimum) == 4
            assert (found.minimum <= found.maximum).all()
        both, uncond = calibration.stage_ranges[name], parts["uncond"]
        assert (uncond.minimum.min(axis=1) >= both.minimum).all()
        assert (uncond.maximum.max(axis=1) <= both.maximum).all()
    source, inputs = tiny_source(), list[torch.Tensor]()
    source.var.blocks[1].ffn.fc2.register_forward_pre_hook(lambda _, x: inputs.append(x[0]))
    labels, tokens = (torch.from_numpy(array) for array in (calibration.class_labels, calibration.token_maps))
    generate(source.var, source.vqvae, labels, torch.zeros(tokens.shape), tokens, cfg_scale=CALIBRATION.cfg_scale)
    rows = [x.chunk(2) for x in inputs]
    parts = calibration.pair_ranges["blocks.1.ffn.fc2"]
    seen = {"uncond": [u for _, u in rows], "difference": [c - u for c, u in rows]}
    for part, found in parts.items():
        assert_range(Range(found.minimum.min(axis=1), found.maximum.max(axis=1)), seen[part])
        by_channel = np.stack([x.amax((0, 1)).numpy() for x in seen[part]])
        np.testing.assert_allclose(found.maximum, by_channel, rtol=0, atol=TOLERANCE * np.abs(by_channel).max())


def test_layers_of_one_input_have_one_range(calibration: Calibration) -> None:
    q, k, v = (calibration.stage_ranges[f"blocks.0.attn.{part}"] for part in "qkv")
    for other in (k, v):
        np.testing.assert_array_equal(other.minimum, q.minimum)
        np.testing.assert_array_equal(other.maximum, q.maximum)


def test_more_images_never_narrow_a_range(observed: Observed, calibration: Calibration) -> None:
    fewer = run(observed, images=2)
    for name, narrow in fewer.stage_ranges.items():
        wide = calibration.stage_ranges[name]
        assert (wide.minimum <= narrow.minimum).all()
        assert (wide.maximum >= narrow.maximum).all()


def test_the_batch_size_changes_no_token(observed: Observed, calibration: Calibration) -> None:
    np.testing.assert_array_equal(run(observed, batch_size=4).token_maps, calibration.token_maps)


def test_the_seed_decides(observed: Observed, calibration: Calibration) -> None:
    assert (run(observed, seed=1).token_maps != calibration.token_maps).any()
