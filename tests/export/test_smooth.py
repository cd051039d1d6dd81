"""`more_smooth`: the mixture against NumPy, the whole of it against the official code, and what it leaves alone."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
from numpy.typing import NDArray
from tiny_model import ONE_THREAD, L, V, build_tiny, tiny_models

from nextscale.export.graph_builder import add_output, finish, new_builder
from nextscale.export.sampling_graph import smooth_weights
from nextscale.export.var.stage_graph import build_stage_graph
from nextscale.models.var.sources import VARSource
from nextscale.runtime import Bundle, Generator, RequestError
from nextscale.runtime._edit import box_mask, forced_tokens, latent_mask, pixel_mask
from nextscale.runtime._request import Request
from nextscale.runtime._uniforms import SMOOTHING, uniforms
from tests.goldens.parity import (
    CASES,
    EDIT_BOXES,
    EDIT_CFG_SCALE,
    EDITED_CASES,
    GOLDENS,
    SMOOTH,
    SMOOTH_SEED,
    SMOOTH_TOP_K,
    SMOOTH_TOP_P,
    models_of,
    random_pictures,
)

Floats = NDArray[np.float32]
LABELS = [3, 7, 1]
# Of the range of f_hat. At the last stage the weights are those of logits times 148, which differ by 1e-6 of theirs.
TOLERANCE = 1e-3


@pytest.fixture(scope="module", params=["fp32", "int8"])
def generator(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Generator:
    return Generator(build_tiny(tmp_path_factory.mktemp("smooth") / request.param, request.param), ONE_THREAD)


def weights_of_graph(logits: Floats, numbers: Floats, top_k: int, top_p: float, sharpness: float, tau: float) -> Floats:
    builder, floats = new_builder("smooth"), ir.DataType.FLOAT
    inputs = [
        builder.input("logits", floats, ["B", "n", logits.shape[-1]]),
        builder.input("uniforms", floats, ["B", "n", logits.shape[-1]]),
        builder.input("top_k", ir.DataType.INT64, []),
        builder.input("top_p", floats, []),
        builder.input("sharpness", floats, [1]),
        builder.input("inverse_tau", floats, [1]),
    ]
    add_output(builder, smooth_weights(builder.op, *inputs), "weights", floats, ["B", "n", logits.shape[-1]])
    content = ir.to_proto(finish(builder)).SerializeToString()
    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    feeds = {
        "logits": logits,
        "uniforms": numbers,
        "top_k": np.array(top_k),
        "top_p": np.array(top_p, np.float32),
        "sharpness": np.array([sharpness], np.float32),
        "inverse_tau": np.array([1 / tau], np.float32),
    }
    return session.run(["weights"], feeds)[0]


@pytest.mark.parametrize(("ratio", "tau"), [(0, 0.27), (0.5, 0.14175), (1, 0.0135)])
@pytest.mark.parametrize(("top_k", "top_p"), [(0, 0.0), (50, 0.0), (0, 0.5), (50, 0.8), (1, 0.0)])
def test_weights_are_those_of_numpy(ratio: float, tau: float, top_k: int, top_p: float) -> None:
    rng = np.random.default_rng(0)
    logits = rng.normal(0, 2.5, (2, 5, 256)).astype(np.float32)
    numbers = rng.integers(0, 2**24, logits.shape).astype(np.float32) * np.float32(2**-24)
    found = weights_of_graph(logits, numbers, top_k, top_p, (1 + ratio) / tau, tau)

    exact, u = logits.astype(np.float64), np.maximum(numbers.astype(np.float64), 2**-25)
    below = exact - exact.max(-1, keepdims=True)
    keep = below >= (np.sort(below)[..., -top_k, None] if top_k else -np.inf)
    if top_p:
        mass = np.where(keep, np.exp(below), 0)
        better = (mass[..., None, :] * (below[..., None, :] > below[..., :, None])).sum(-1)
        keep &= better < top_p * mass.sum(-1, keepdims=True)
    gumbel = -np.log(-np.log(u))
    exponent = np.where(keep, (1 + ratio) * below + gumbel, -np.inf) / tau
    expected = np.exp(exponent - exponent.max(-1, keepdims=True))
    expected /= expected.sum(-1, keepdims=True)
    # Roundings of the two factors, the products and the sum, and the logarithms' of two units in the last place, each
    # of the size of the terms; a weight of at most 1 changes by no more than twice as much as its exponent does.
    terms = (1 + ratio) * np.abs(below) + np.abs(gumbel) + 2
    assert (np.abs(found - expected) <= 2 * 4 * 2**-24 * terms.max() / tau).all()
    assert not found[~keep].any()


@pytest.mark.parametrize("u", [0.0, 1 - 2**-24, 1.0])
def test_any_uniform_gives_weights(u: float) -> None:
    """Also where a single entry is left."""
    logits = np.array([[[1.0, 3.0, 2.0]]], np.float32)
    numbers = np.full(logits.shape, u, np.float32)
    assert weights_of_graph(logits, numbers, 1, 0.0, 2.0, 0.27).tolist() == [[[0, 1, 0]]]
    assert np.isfinite(weights_of_graph(logits, numbers, 0, 0.0, 2.0, 0.27)).all()


@pytest.mark.parametrize("name", EDITED_CASES)
def test_f_hat_is_the_official_one(name: str, tmp_path: Path) -> None:
    var, vqvae = models_of(next(case for case in CASES if case.name == name))
    generator = Generator(build_tiny(tmp_path / name, "fp32", VARSource(var, vqvae, name, "")), ONE_THREAD)
    model, images = generator.bundle.model, random_pictures(vqvae.config)
    box, inpainting = EDIT_BOXES[0]
    assert inpainting
    mask = latent_mask(pixel_mask(box_mask(model.latent_size, box), model), model)
    forced = forced_tokens(generator.encode(images), mask, 0, model)
    goldens = np.load(GOLDENS / f"{SMOOTH}.npz")
    for kind, tokens in (("generated", None), ("edited", forced)):
        *_, last = generator.stream(
            [model.num_classes, 3],
            seed=SMOOTH_SEED,
            cfg_scale=EDIT_CFG_SCALE,
            top_k=SMOOTH_TOP_K,
            top_p=SMOOTH_TOP_P,
            forced_tokens=tokens,
            more_smooth=True,
            outputs=["present.f_hat"],
        )
        wanted = goldens[f"{name}.{kind}"]
        difference = np.abs(last.outputs["present.f_hat"] - wanted).max()
        assert difference <= TOLERANCE * np.ptp(wanted)


def test_both_forms_and_all_batches_make_the_same(generator: Generator) -> None:
    whole = generator.generate(LABELS, seed=3, more_smooth=True)
    streamed = generator.generate(LABELS, seed=3, more_smooth=True, on_stage=lambda stage: None)
    parts = generator.generate(LABELS, seed=3, more_smooth=True, batch_size=2)
    alone = generator.generate(LABELS[2:], seed=3, more_smooth=True, first_image=2)
    np.testing.assert_array_equal(streamed.images, whole.images)
    for found, expected in ((streamed, whole.token_maps), (parts, whole.token_maps), (alone, whole.token_maps[2:])):
        np.testing.assert_array_equal(found.token_maps, expected)


def test_it_changes_pictures_and_nothing_does_without_it(generator: Generator) -> None:
    plain = generator.generate(LABELS, seed=3)
    off = generator.generate(LABELS, seed=3, more_smooth=False)
    smooth = generator.generate(LABELS, seed=3, more_smooth=True)
    np.testing.assert_array_equal(off.images, plain.images)
    np.testing.assert_array_equal(off.token_maps, plain.token_maps)
    first = slice(0, 1)  # nothing was mixed before it
    np.testing.assert_array_equal(smooth.token_maps[:, first], plain.token_maps[:, first])
    assert (smooth.images != plain.images).any(axis=(1, 2, 3)).all()


def test_forced_tokens_keep_their_entries(generator: Generator) -> None:
    forced = np.random.default_rng(0).integers(0, V, (2, L))
    plain, smooth = (generator.generate([1, 2], forced_tokens=forced, more_smooth=on) for on in (False, True))
    np.testing.assert_array_equal(smooth.images, plain.images)


def test_greedy_tokens_are_not_mixed(generator: Generator) -> None:
    """Entries that sampling drops have no part in a mixture."""
    plain, smooth = (generator.generate([1, 2], top_k=1, more_smooth=on) for on in (False, True))
    np.testing.assert_array_equal(smooth.token_maps, plain.token_maps)
    np.testing.assert_array_equal(smooth.images, plain.images)


def test_its_numbers_are_those_of_seed_and_image(generator: Generator) -> None:
    request = Request.create(generator.bundle, [0] * 5, seed=9, first_image=4, more_smooth=True)
    assert request.arrays["smooth_uniforms"].shape == (5, 0, V)
    found = request.images(2, 4).arrays["smooth_uniforms"]
    np.testing.assert_array_equal(found, uniforms(9, [6, 7], L * V, SMOOTHING).reshape(2, L, V))
    by_name = generator.generate([0, 0], seed=9, first_image=6, inputs={"smooth_uniforms": found})
    by_seed = generator.generate([0, 0], seed=9, first_image=6, more_smooth=True)
    np.testing.assert_array_equal(by_name.images, by_seed.images)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"more_smooth": "yes"}, "more_smooth 'yes': expected True or False"),
        ({"more_smooth": 1}, "more_smooth 1: expected True or False"),
        ({"inputs": {"smooth_uniforms": np.zeros((1, 3, V), np.float32)}}, f"expected floats [1, {L}, {V}]"),
        ({"inputs": {"smooth_uniforms": np.ones((1, L, V), np.float32)}}, "at least 0 and below 1 in float32, found 1"),
        (
            {"more_smooth": True, "inputs": {"smooth_uniforms": np.zeros((1, L, V), np.float32)}},
            "more_smooth is given twice: by itself and in inputs",
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_bad_requests_are_refused(generator: Generator, settings: dict, message: str) -> None:
    with pytest.raises(RequestError) as caught:
        generator.generate([0], **settings)
    assert message in str(caught.value)


def test_bundles_without_it_say_so(fake_bundle: Path) -> None:
    bundle = Bundle.open(fake_bundle)
    Request.create(bundle, [0], more_smooth=False)
    with pytest.raises(RequestError, match="more_smooth: this bundle was built without it; build the bundle again"):
        Request.create(bundle, [0], more_smooth=True)


def test_it_takes_no_fusion_away(tmp_path: Path) -> None:
    """Without it f_hat would round otherwise than before there was more_smooth."""
    var, vqvae = tiny_models()
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
    content = ir.to_proto(build_stage_graph(var, vqvae.quantize)).SerializeToString()
    onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    optimized = onnx.load(options.optimized_model_filepath)
    assert [node.op_type for node in optimized.graph.node if node.name == "phi"] == ["FusedConv"]
