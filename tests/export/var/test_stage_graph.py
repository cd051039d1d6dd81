"""The stage and decoder graphs in ONNX Runtime against the torch reference, for every option of the model."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from tiny_model import ONE_THREAD, build_tiny, tiny_models, tiny_source

from nextscale.export.generate_graph import state_names
from nextscale.export.var.stage_graph import build_stage_graph, folded_phi
from nextscale.models.var.multi_scale_quantizer import Phi
from nextscale.models.var.reference import Generation, generate
from nextscale.models.var.sources import VARSource
from nextscale.models.var.transformer import VAR
from nextscale.models.var.vqvae import VQVAE
from nextscale.runtime import Generator
from nextscale.runtime._var_request import var_request
from tests.goldens.parity import CASES, CFG_SCALE, Case, models_of

# Both sides are float32 and differ by the order of their sums: parity's bound, as a share of the range.
TOLERANCE = 1e-4
BATCH = 3
Models = tuple[VAR, VQVAE, Generator]


@pytest.fixture(scope="module", params=CASES, ids=lambda case: case.name)
def models(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Models:
    """The torch models of one case, and the float32 bundle built from them."""
    case: Case = request.param
    var, vqvae = models_of(case)
    bundle = build_tiny(tmp_path_factory.mktemp("cases") / case.name, "fp32", VARSource(var, vqvae, case.name, ""))
    return var, vqvae, Generator(bundle, ONE_THREAD)


@pytest.fixture(scope="module")
def labels(models: Models) -> NDArray[np.int64]:
    """The last is the largest there is."""
    return np.array([1, 4, models[0].config.num_classes - 1])


@pytest.fixture(scope="module")
def forced(models: Models) -> NDArray[np.int64]:
    config = models[0].config
    return np.random.default_rng(0).integers(0, config.vocab_size, (BATCH, config.num_tokens))


@pytest.fixture(scope="module")
def expected(models: Models, labels: NDArray[np.int64], forced: NDArray[np.int64]) -> Generation:
    return reference(models, labels, forced)


def reference(models: Models, labels: NDArray[np.int64], forced: NDArray[np.int64], top_k: int = 0) -> Generation:
    var, vqvae, _ = models
    uniforms = torch.zeros(forced.shape)
    return generate(
        var, vqvae, torch.from_numpy(labels), uniforms, torch.from_numpy(forced), cfg_scale=CFG_SCALE, top_k=top_k
    )


def assert_close(found: NDArray[np.float32], expected: torch.Tensor) -> None:
    """Within TOLERANCE of the range of what is expected."""
    ours, theirs = found, expected.numpy()
    assert ours.shape == theirs.shape
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=TOLERANCE * np.ptp(theirs))


@pytest.mark.parametrize("batch", [1, BATCH])
def test_teacher_forced_logits_and_f_hat(
    models: Models, labels: NDArray[np.int64], forced: NDArray[np.int64], expected: Generation, batch: int
) -> None:
    stages = list(
        models[2].stream(
            labels[:batch], forced_tokens=forced[:batch], cfg_scale=CFG_SCALE, outputs=["logits", "present.f_hat"]
        )
    )
    assert len(stages) == models[0].config.num_stages
    for stage, logits in zip(stages, expected.guided_logits, strict=True):
        assert_close(stage.outputs["logits"], logits[:batch])
    assert_close(stages[-1].outputs["present.f_hat"], expected.f_hat[:batch])
    np.testing.assert_array_equal(np.concatenate([stage.tokens for stage in stages], axis=1), forced[:batch])


@pytest.mark.parametrize("batch", [1, BATCH])
def test_pictures(models: Models, expected: Generation, batch: int) -> None:
    """A difference of 1e-4 in [-1, 1] is 0.013 of a pixel's step: a few values round to the other side."""
    difference = models[2].decode(expected.f_hat[:batch].numpy()).astype(int) - expected.images[:batch].numpy()
    assert np.abs(difference).max() <= 1
    assert np.mean(difference != 0) < 2 * TOLERANCE * 127.5


def test_greedy_tokens_are_identical(models: Models, labels: NDArray[np.int64]) -> None:
    free = np.full((BATCH, models[0].config.num_tokens), -1)
    greedy = models[2].generate(labels, cfg_scale=CFG_SCALE, top_k=1, top_p=0.0)
    np.testing.assert_array_equal(greedy.token_maps, reference(models, labels, free, top_k=1).token_maps)


def test_one_call_makes_the_tokens_of_streaming(models: Models, labels: NDArray[np.int64]) -> None:
    at_once = models[2].generate(labels, seed=1)
    streamed = models[2].generate(labels, seed=1, on_stage=lambda stage: None)
    np.testing.assert_array_equal(at_once.token_maps, streamed.token_maps)
    np.testing.assert_array_equal(at_once.images, streamed.images)


def test_sampled_tokens_are_identical(fp32_generator: Generator) -> None:
    """The same uniforms give the same tokens; the odds that one lies within rounding of a boundary are about 1e-3."""
    var, vqvae = tiny_models()
    uniforms = torch.rand(2, var.config.num_tokens, generator=torch.Generator().manual_seed(1))
    settings: dict[str, Any] = {"cfg_scale": CFG_SCALE, "top_k": 50, "top_p": 0.9}
    expected = generate(var, vqvae, torch.tensor([2, 7]), uniforms, **settings)
    found = fp32_generator.generate([2, 7], uniforms=uniforms.numpy(), **settings)
    np.testing.assert_array_equal(found.token_maps, expected.token_maps)


def test_modulation_is_made_at_stage_0_and_carried(fp32_generator: Generator) -> None:
    first, *later = fp32_generator.stream([2, 7], outputs=["present.modulation"])
    depth, width = 2, 64
    assert first.outputs["present.modulation"].shape == (4, 6 * depth + 2, width)
    for stage in later:
        np.testing.assert_array_equal(stage.outputs["present.modulation"], first.outputs["present.modulation"])


def test_the_cache_grows_by_each_stage_and_keeps_what_it_has(fp32_generator: Generator) -> None:
    names = ["present.1.key", "present.1.value"]
    stages = [stage.outputs for stage in fp32_generator.stream([2], outputs=names)]
    assert [stage[names[0]].shape for stage in stages] == [(2, 2, 32, length) for length in (1, 5, 14, 30)]
    assert [stage[names[1]].shape for stage in stages] == [(2, 2, length, 32) for length in (1, 5, 14, 30)]
    for earlier, later in itertools.pairwise(stages):
        length = earlier[names[0]].shape[3]
        np.testing.assert_array_equal(later[names[0]][..., :length], earlier[names[0]])
        np.testing.assert_array_equal(later[names[1]][:, :, :length], earlier[names[1]])


def test_without_guidance_the_logits_are_the_conditional_ones(fp32_generator: Generator) -> None:
    """At cfg_scale 0 the null class counts for nothing; its own logits are those of the null label."""
    forced = np.random.default_rng(0).integers(0, 128, (1, 30))

    def logits(label: int, cfg_scale: float) -> NDArray[np.float32]:
        stages = fp32_generator.stream([label], forced_tokens=forced, cfg_scale=cfg_scale, outputs=["logits"])
        return np.concatenate([stage.outputs["logits"] for stage in stages], axis=1)

    conditional, null = logits(3, 0.0), logits(10, 0.0)
    strength = np.repeat([0, 1 / 3, 2 / 3, 1], [1, 4, 9, 16])[None, :, None]  # cfg_scale 1: t = si / (S - 1)
    expected = (1 + strength) * conditional - strength * null
    np.testing.assert_allclose(logits(3, 1.0), expected, rtol=0, atol=TOLERANCE * np.ptp(expected))


def test_state_names_are_those_of_the_contract() -> None:
    var, vqvae = tiny_models(depth=1)
    model = build_stage_graph(var, vqvae.quantize)
    assert state_names(model, var_request(tiny_source(depth=1).model_info())) == [
        ("f_hat", "present.f_hat"),
        ("modulation", "present.modulation"),
        ("past_key_values.0.key", "present.0.key"),
        ("past_key_values.0.value", "present.0.value"),
    ]


def test_folded_phi_is_phi() -> None:
    torch.manual_seed(0)
    phi = Phi(6, ratio=-0.3)
    before = phi.weight.detach().clone()
    kernel, bias = folded_phi(phi)
    h = torch.randn(2, 6, 5, 5)
    # Sums of 55 float32 products of size 1.
    torch.testing.assert_close(torch.conv2d(h, kernel, bias, padding=1), phi(h).detach(), rtol=0, atol=55 * 2**-23)
    assert torch.equal(phi.weight, before)
