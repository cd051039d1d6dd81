from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
import torch
from numpy.typing import NDArray
from tiny_model import NUM_CLASSES, ONE_THREAD, L, tiny_recipe, tiny_source

from nextscale.calib_data._calibration_labels import calibration_labels
from nextscale.calib_data.observe_ranges import (
    ObservedRanges,
    StageObservation,
    observe_autoencoder_ranges,
    observe_stage_ranges,
)
from nextscale.calib_data.observed_stage import ObservedStage, OnImages, nobody
from nextscale.calib_data.subjects import Subjects
from nextscale.graph_passes._graph_session import open_model
from nextscale.graph_passes.integer_model import IntegerModel
from nextscale.graph_passes.observe_inputs import Input, Observer, observe_inputs
from nextscale.graph_passes.qparams import Range
from nextscale.graph_passes.quantize_autoencoder import autoencoder_observers
from nextscale.models.var.layers import facts_of
from nextscale.models.var.reference import generate
from nextscale.runtime import Bundle, Generator

# ONNX Runtime and torch add in another order: parity's bound.
TOLERANCE = 1e-4
BATCH_SIZE = 2
CFG_SCALE, TOP_P = 4.0, 0.96
BY_CHANNEL = [Input("blocks.0.attn.q"), Input("blocks.1.attn.proj")]
PAIRS = [Input("blocks.0.attn.q"), Input("blocks.1.ffn.fc2")]


@dataclass(frozen=True)
class Observed:
    """The tiny model with observers."""

    stage: ObservedStage
    observers: list[Observer]
    layers: list[Input]

    def run(
        self, images: int = 5, seed: int = 0, batch_size: int = BATCH_SIZE, on_images: OnImages = nobody
    ) -> StageObservation:
        sampled = np.full((images, L), -1, np.int64)
        labels = calibration_labels(NUM_CLASSES, images, seed)
        return self.feed(labels, sampled, seed, batch_size, on_images)

    def feed(
        self,
        labels: NDArray[np.int64],
        maps: NDArray[np.int64],
        seed: int = 0,
        batch_size: int = BATCH_SIZE,
        on_images: OnImages = nobody,
    ) -> StageObservation:
        return observe_stage_ranges(
            self.stage,
            self.observers,
            Subjects.of_classes(labels),
            maps,
            seed=seed,
            batch_size=batch_size,
            on_images=on_images,
        )


def labels_of(calibration: StageObservation) -> NDArray[np.int64]:
    labels = calibration.subjects.class_labels
    assert labels is not None
    return labels


@pytest.fixture(scope="module")
def observed(fp32_bundle: Path) -> Observed:
    bundle = Bundle.open(fp32_bundle)
    model = ir.load(bundle.graph_path("stage"))
    layers = [
        Input(name) for name in IntegerModel.decide(tiny_recipe("static-w8a8"), facts_of(tiny_source().var)).static
    ]
    observers = [Observer(key, "range") for key in layers]
    observers += [Observer(key, "channels") for key in (*BY_CHANNEL, *(part for key in PAIRS for part in key.parts()))]
    stage = ObservedStage.open(bundle, observe_inputs(model, observers), ONE_THREAD)
    assert stage.outputs == tuple(observer.output for observer in observers)
    return Observed(stage, observers, layers)


@pytest.fixture(scope="module")
def calibration(observed: Observed) -> StageObservation:
    return observed.run()


@pytest.fixture(scope="module")
def decoder_ranges(fp32_bundle: Path, calibration: StageObservation) -> ObservedRanges:
    model = ir.load(fp32_bundle / "decoder.onnx")
    observers = [observer for kind in autoencoder_observers(model) for observer in kind]
    session = open_model(observe_inputs(model, observers), fp32_bundle, ONE_THREAD)
    found = observe_autoencoder_ranges(session, observers, calibration.f_hat)
    for gives, ranges in (("range", found.whole), ("channels", found.by_channel)):
        assert list(ranges) == [observer.input for observer in observers if observer.gives == gives]
    return found


def test_labels_go_round_the_classes() -> None:
    labels = calibration_labels(NUM_CLASSES, 25, seed=0)
    assert labels.dtype == np.int64
    assert sorted(labels[:NUM_CLASSES]) == list(range(NUM_CLASSES))
    np.testing.assert_array_equal(labels[NUM_CLASSES:], np.resize(labels[:NUM_CLASSES], 15))
    assert (calibration_labels(NUM_CLASSES, 25, seed=1) != labels).any()


def test_token_maps_that_are_given_are_read_instead_of_sampled(
    observed: Observed, calibration: StageObservation
) -> None:
    fed = observed.feed(labels_of(calibration), calibration.token_maps, seed=7)
    np.testing.assert_array_equal(fed.token_maps, calibration.token_maps)
    np.testing.assert_array_equal(fed.f_hat, calibration.f_hat)
    for key, found in calibration.ranges.whole.items():
        np.testing.assert_array_equal(fed.ranges.whole[key].minimum, found.minimum)
        np.testing.assert_array_equal(fed.ranges.whole[key].maximum, found.maximum)


def test_progress_counts_images(observed: Observed) -> None:
    seen: list[int] = []
    observed.run(on_images=seen.append)
    assert seen == [2, 4, 5]


def test_token_maps_are_those_of_plain_sampling(calibration: StageObservation, fp32_bundle: Path) -> None:
    """Observers change no token; image i is image i of the seed."""
    plain = Generator(fp32_bundle, ONE_THREAD).generate(
        labels_of(calibration),
        cfg_scale=CFG_SCALE,
        top_k=128,  # of 900
        top_p=TOP_P,
    )
    assert np.shape(calibration.token_maps) == (5, L)
    np.testing.assert_array_equal(calibration.token_maps, plain.token_maps)


def test_nothing_is_written(observed: Observed, fp32_bundle: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in fp32_bundle.parent.rglob("*")}
    observed.run(images=1)
    assert {path: path.stat().st_mtime_ns for path in fp32_bundle.parent.rglob("*")} == before


def test_every_layer_has_a_range_for_each_stage(
    observed: Observed, calibration: StageObservation, decoder_ranges: ObservedRanges
) -> None:
    assert list(calibration.ranges.whole) == observed.layers
    assert {found.minimum.ndim for found in decoder_ranges.by_channel.values()} == {2}
    for ranges, stages in ((calibration.ranges.whole, 4), (decoder_ranges.whole, 1)):
        for key, found in ranges.items():
            assert found.minimum.shape == found.maximum.shape == (stages,), key
            assert (found.minimum < found.maximum).all(), key


def assert_range(found: Range, inputs: list[torch.Tensor]) -> None:
    """A range per stage of what torch saw there."""
    for name, ends in (("minimum", [x.min() for x in inputs]), ("maximum", [x.max() for x in inputs])):
        expected: NDArray[np.float32] = torch.stack(ends).numpy()
        size = max(x.abs().max().item() for x in inputs)
        np.testing.assert_allclose(getattr(found, name), expected, rtol=0, atol=TOLERANCE * size)


def test_ranges_are_those_of_the_torch_model(calibration: StageObservation, decoder_ranges: ObservedRanges) -> None:
    """On the same tokens: of a layer in the middle of the transformer, and of two of the decoder's."""
    source = tiny_source()
    inputs: dict[str, list[torch.Tensor]] = {}
    watched = {
        "blocks.1.ffn.fc2": source.var.blocks[1].ffn.fc2,
        "blocks.1.attn.q": source.var.blocks[1].attn,
        "decoder.mid.block_1.conv1": source.vqvae.decoder.mid.block_1.conv1,
        "decoder.mid.attn_1.proj_out": source.vqvae.decoder.mid.attn_1.proj_out,
    }
    for name, module in watched.items():
        module.register_forward_pre_hook(lambda _, x, name=name: inputs.setdefault(name, []).append(x[0]))
    labels, tokens = (torch.from_numpy(array) for array in (labels_of(calibration), calibration.token_maps))
    generate(source.var, source.vqvae, labels, torch.zeros(tokens.shape), tokens, cfg_scale=CFG_SCALE)
    for name in ("blocks.1.ffn.fc2", "blocks.1.attn.q"):
        assert_range(calibration.ranges.whole[Input(name)], inputs[name])
    assert_range(decoder_ranges.whole[Input("decoder.mid.attn_1.proj_out")], inputs["decoder.mid.attn_1.proj_out"])
    (x,) = inputs["decoder.mid.block_1.conv1"]
    channels = decoder_ranges.by_channel[Input("decoder.mid.block_1.conv1")]
    assert channels.minimum.shape == (1, x.shape[1])
    for place in range(x.shape[1]):
        one = Range(channels.minimum[:, place], channels.maximum[:, place])
        assert_range(one, [x[:, place]])


def test_the_range_of_a_layer_is_that_of_its_channels(calibration: StageObservation) -> None:
    for key in BY_CHANNEL:
        channels, whole = calibration.ranges.by_channel[key], calibration.ranges.whole[key]
        assert channels.minimum.shape == (4, 64)
        np.testing.assert_array_equal(channels.minimum.min(axis=1), whole.minimum)
        np.testing.assert_array_equal(channels.maximum.max(axis=1), whole.maximum)


def test_pairs_are_of_the_row_without_the_class_and_the_difference(calibration: StageObservation) -> None:
    """The first within the range of both rows; torch's numbers for a layer in the middle."""
    by_channel = calibration.ranges.by_channel
    assert list(by_channel) == [*BY_CHANNEL, *(part for key in PAIRS for part in key.parts())]
    for key in PAIRS:
        both, (uncond, difference) = calibration.ranges.whole[key], (by_channel[part] for part in key.parts())
        for found in (uncond, difference):
            assert found.minimum.shape == found.maximum.shape
            assert len(found.minimum) == 4
            assert (found.minimum <= found.maximum).all()
        assert (uncond.minimum.min(axis=1) >= both.minimum).all()
        assert (uncond.maximum.max(axis=1) <= both.maximum).all()
    source, inputs = tiny_source(), list[torch.Tensor]()
    source.var.blocks[1].ffn.fc2.register_forward_pre_hook(lambda _, x: inputs.append(x[0]))
    labels, tokens = (torch.from_numpy(array) for array in (labels_of(calibration), calibration.token_maps))
    generate(source.var, source.vqvae, labels, torch.zeros(tokens.shape), tokens, cfg_scale=CFG_SCALE)
    rows = [x.chunk(2) for x in inputs]
    seen = {"uncond": [u for _, u in rows], "difference": [c - u for c, u in rows]}
    for key in PAIRS[1].parts():
        found, values = by_channel[key], seen[str(key.part)]
        assert_range(Range(found.minimum.min(axis=1), found.maximum.max(axis=1)), values)
        largest = np.stack([x.amax((0, 1)).numpy() for x in values])
        np.testing.assert_allclose(found.maximum, largest, rtol=0, atol=TOLERANCE * np.abs(largest).max())


def test_layers_of_one_input_have_one_range(calibration: StageObservation) -> None:
    q, k, v = (calibration.ranges.whole[Input(f"blocks.0.attn.{part}")] for part in "qkv")
    for other in (k, v):
        np.testing.assert_array_equal(other.minimum, q.minimum)
        np.testing.assert_array_equal(other.maximum, q.maximum)


def test_more_images_never_narrow_a_range(observed: Observed, calibration: StageObservation) -> None:
    for key, narrow in observed.run(images=2).ranges.whole.items():
        wide = calibration.ranges.whole[key]
        assert (wide.minimum <= narrow.minimum).all()
        assert (wide.maximum >= narrow.maximum).all()


def test_the_batch_size_changes_no_token(observed: Observed, calibration: StageObservation) -> None:
    np.testing.assert_array_equal(observed.run(batch_size=4).token_maps, calibration.token_maps)


def test_the_seed_decides(observed: Observed, calibration: StageObservation) -> None:
    assert (observed.run(seed=1).token_maps != calibration.token_maps).any()
