"""The simulated model: nothing quantized is the model itself, and both ways of running it agree."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pytest
import torch
from tiny_model import NUM_CLASSES, PATCH_NUMS, L, V, tiny_models

from nextscale.graph_passes.expand_attentive_tokens import ShiftAndSum
from nextscale.graph_passes.integer_model import IntegerModel
from nextscale.graph_passes.observe_inputs import PARTS
from nextscale.graph_passes.qparams import Range, RangeRule, WeightQParams
from nextscale.graph_passes.recipe import (
    ActivationRecipe,
    AttentionRecipe,
    Granularity,
    Recipe,
    WeightRecipe,
    load_recipe,
)
from nextscale.models.equalization import Equalization
from nextscale.models.var import reference
from nextscale.models.var.layers import facts_of, linear_shapes
from nextscale.models.var.transformer import VAR
from nextscale.models.var.vqvae import VQVAE
from nextscale.runtime._errors import NextscaleError
from nextscale.runtime._uniforms import uniforms
from nextscale.simulation._fake_quantizers import PairInput, StaticInput
from nextscale.simulation.simulated_agreement import simulated_agreement
from nextscale.simulation.simulated_generation import generate
from nextscale.simulation.simulated_model import required_ranges
from nextscale.simulation.simulated_ranges import equalize, observe
from nextscale.simulation.simulated_var import SimulatedVAR
from nextscale.simulation.teacher_forced_images import FULL_PRECISION
from nextscale.simulation.var_images import VARImages, guided_logits, teacher_forced_inputs

N, CFG_SCALE = 3, 4.0
RNG = np.random.default_rng(0)
LABELS = RNG.integers(0, NUM_CLASSES, N)
MAPS = RNG.integers(0, V, (N, L))
VARIANTS: Mapping[str, dict[str, bool]] = {
    "l2 norm": {},
    "shared adaLN": {"shared_aln": True},
    "no l2 norm": {"attn_l2_norm": False},
}
SHIFT_AND_SUM = ShiftAndSum("residual", 0.1, (1, 3, 4, 2))


def recipe(activations: Granularity = "image", bits: int = 8, **attention: str) -> Recipe:
    return Recipe(
        "test",
        weights=WeightRecipe(bits),
        activations=ActivationRecipe(bits, activations),
        attention=AttentionRecipe(**attention),  # type: ignore[arg-type]
    )


RECIPES = {
    "image, float attention": recipe(),
    "token": recipe("token", products="integer", weights="row"),
    "stage": recipe("stage", products="integer", weights="uniform"),
    "pair": recipe("pair", products="integer"),
    "pair, 4 bits": recipe("pair", 4),
    "tensor": recipe("tensor", 6, products="integer", weights="log2-row", granularity="tensor"),
    "log2": recipe(products="integer", weights="log2"),
    "shift-and-sum": recipe("image", 6, products="integer", weights="log2", shift_and_sum="residual"),
    "shift-and-sum, row": recipe("image", 4, products="integer", weights="row", shift_and_sum="duplicate"),
}


def images_of(var: VAR, vqvae: VQVAE) -> VARImages:
    return VARImages(var, vqvae.quantize, LABELS, MAPS, CFG_SCALE)


def simulate(var: VAR, vqvae: VQVAE, recipe: Recipe, equalization: Equalization | None = None) -> SimulatedVAR:
    equalization = equalization or Equalization()
    ranges = observe(images_of(var, vqvae), equalization=equalization)
    shift_and_sum = None if recipe.attention.shift_and_sum == "off" else SHIFT_AND_SUM
    return SimulatedVAR(var, recipe, ranges=ranges, equalization=equalization, shift_and_sum=shift_and_sum)


def logits(simulated: SimulatedVAR, vqvae: VQVAE, images: slice = slice(None)) -> torch.Tensor:
    inputs = teacher_forced_inputs(vqvae.quantize, torch.from_numpy(MAPS[images]))
    with torch.no_grad():
        return simulated(torch.from_numpy(LABELS[images]), inputs, CFG_SCALE)


@pytest.mark.parametrize("options", VARIANTS.values(), ids=VARIANTS.keys())
def test_full_precision_is_the_model_itself(options: dict[str, bool]) -> None:
    var, vqvae = tiny_models(**options)
    simulated = SimulatedVAR(var, FULL_PRECISION)
    inputs = teacher_forced_inputs(vqvae.quantize, torch.from_numpy(MAPS))
    labels = torch.from_numpy(LABELS)
    rows = torch.cat((labels, torch.full_like(labels, NUM_CLASSES)))
    expected = var(rows, inputs.repeat(2, 1, 1))
    # Other kernels for attention, and bias and shift folded: float32's epsilon through two blocks, with room.
    assert (simulated(labels, inputs, None) - expected).abs().max() <= 1e-5 * expected.abs().max()
    guided = guided_logits(var, labels, inputs, CFG_SCALE)
    assert (simulated(labels, inputs, CFG_SCALE) - guided).abs().max() <= 1e-5 * guided.abs().max()


@pytest.mark.parametrize("options", VARIANTS.values(), ids=VARIANTS.keys())
def test_all_is_computed_where_the_model_is(options: dict[str, bool]) -> None:
    """The device `meta`, which computes nothing, refuses what lies elsewhere, as a GPU does."""
    var, vqvae = tiny_models(**options)
    given = images_of(var.to("meta"), vqvae.to("meta"))
    assert given.reference(np.arange(N)).is_meta


@pytest.mark.parametrize("options", VARIANTS.values(), ids=VARIANTS.keys())
def test_equalization_leaves_full_precision_unchanged(options: dict[str, bool]) -> None:
    var, vqvae = tiny_models(**options)
    generator = torch.Generator().manual_seed(0)
    factors = {name: torch.rand(64, generator=generator) * 3 + 0.3 for name in facts_of(var).equalizable()}
    plain = logits(SimulatedVAR(var, FULL_PRECISION), vqvae)
    equalized = logits(SimulatedVAR(var, FULL_PRECISION, equalization=Equalization(factors)), vqvae)
    assert not torch.equal(plain, equalized)
    assert (plain - equalized).abs().max() <= 1e-5 * plain.abs().max()


@pytest.mark.parametrize("options", VARIANTS.values(), ids=VARIANTS.keys())
@pytest.mark.parametrize("recipe", RECIPES.values(), ids=RECIPES.keys())
def test_stage_by_stage_agrees_with_all_stages_at_once(recipe: Recipe, options: dict[str, bool]) -> None:
    var, vqvae = tiny_models(**options)
    simulated = simulate(var, vqvae, recipe)
    numbers = torch.from_numpy(uniforms(0, range(N), L))
    made = generate(simulated, vqvae, torch.from_numpy(LABELS), numbers, torch.from_numpy(MAPS), cfg_scale=CFG_SCALE)
    assert np.array_equal(made.token_maps, MAPS)
    staged, at_once = torch.cat(made.guided_logits, dim=1), logits(simulated, vqvae)
    assert_the_same(staged, at_once)


def assert_the_same(found: torch.Tensor, expected: torch.Tensor) -> None:
    """Sums in another order differ by float32's epsilon, which near a tie becomes one step of one code.

    A step shows in all tokens that see its own, mildly; most tokens see none.
    """
    difference = (found - expected).abs().amax(-1) / expected.abs().max()
    assert (difference <= 1e-5).float().mean() >= 0.5
    assert difference.max() <= 0.05


@pytest.mark.parametrize("recipe", RECIPES.values(), ids=RECIPES.keys())
def test_an_image_does_not_depend_on_its_batch(recipe: Recipe) -> None:
    var, vqvae = tiny_models()
    simulated = simulate(var, vqvae, recipe)
    together, alone = logits(simulated, vqvae), logits(simulated, vqvae, slice(1, 2))
    assert_the_same(alone[0], together[1])


def test_eight_bits_are_close_and_fewer_are_not() -> None:
    var, vqvae = tiny_models()
    found = [
        simulated_agreement(images_of(var, vqvae), simulate(var, vqvae, quantized), batch_size=2)
        for quantized in (FULL_PRECISION, recipe(), recipe("image", 4), load_recipe("rtn-w4a4"))
    ]
    kl = [agreement.kl for agreement in found]
    assert abs(kl[0]) < 1e-6
    assert found[0].top1 == 1
    assert kl[0] < kl[1] < 0.05 < kl[2] < kl[3]
    assert found[1].images == N
    assert found[1].stage_kl.shape == (len(PATCH_NUMS),)
    sizes = np.square(PATCH_NUMS)
    assert np.isclose((found[1].stage_kl * sizes).sum() / L, found[1].kl)


def test_codes_replace_those_rounded_to_nearest() -> None:
    var, _ = tiny_models()
    simulated = SimulatedVAR(var, recipe())
    codes = np.ones((V, 64), np.int8)
    changed = SimulatedVAR(var, recipe(), codes={"head": codes})
    qparams = WeightQParams.choose(var.head.weight.detach().numpy(), 0, 8, "max")
    np.testing.assert_array_equal(changed.linears["head"].weight, np.repeat(qparams.scale[:, None], 64, 1))
    np.testing.assert_array_equal(
        simulated.linears["head"].weight,
        qparams.quantize(var.head.weight.detach().numpy(), 0) * qparams.scale[:, None],
    )


def test_generation_in_full_precision_is_the_reference() -> None:
    var, vqvae = tiny_models()
    labels, numbers = torch.from_numpy(LABELS), torch.from_numpy(uniforms(5, range(N), L))
    options = {"cfg_scale": 2.0, "top_k": 100, "top_p": 0.9}
    expected = reference.generate(var, vqvae, labels, numbers, **options)  # type: ignore[arg-type]
    found = generate(SimulatedVAR(var, FULL_PRECISION), vqvae, labels, numbers, **options)  # type: ignore[arg-type]
    assert torch.equal(found.token_maps, expected.token_maps)
    assert torch.equal(found.images, expected.images)


def test_every_layer_of_the_model_is_simulated() -> None:
    var, _ = tiny_models()
    simulated = SimulatedVAR(var, FULL_PRECISION)
    matrices = sum(p.numel() for p in var.parameters() if p.dim() == 2)
    embeddings = var.class_emb.weight.numel() + var.lvl_embed.weight.numel()
    assert sum(layer.exact.numel() for layer in simulated.linears.values()) == matrices - embeddings
    assert list(simulated.linears) == list(linear_shapes(var.config))


@pytest.mark.parametrize("rule", ["percentile", "mse"])
def test_other_ranges_lie_within_min_max(rule: RangeRule) -> None:
    var, vqvae = tiny_models()
    widest = observe(images_of(var, vqvae))
    found = observe(images_of(var, vqvae), rule=rule, bits=4)
    integer = IntegerModel.decide(recipe("stage", products="integer", granularity="tensor"), facts_of(var))
    assert found.keys() == widest.keys() >= required_ranges(integer)
    narrower = 0
    for name, inner in found.items():
        outer = widest[name]
        assert (inner.minimum >= np.minimum(outer.minimum, 0)).all()
        assert (inner.maximum <= np.maximum(outer.maximum, 0)).all()
        narrower += int((inner.maximum < outer.maximum).any())
    assert narrower > 10
    key = "blocks.0.attn.mix.key"
    np.testing.assert_array_equal(found[key].maximum, widest[key].maximum)


def test_observed_ranges_are_those_of_the_inputs() -> None:
    var, vqvae = tiny_models()
    found = observe(images_of(var, vqvae), batch_size=2)
    inputs = teacher_forced_inputs(vqvae.quantize, torch.from_numpy(MAPS))
    stages = inputs.split([pn * pn for pn in PATCH_NUMS[1:]], dim=1)
    np.testing.assert_array_equal(found["word_embed"].minimum, [0, *(stage.min() for stage in stages)])
    np.testing.assert_array_equal(found["word_embed"].maximum, [0, *(stage.max() for stage in stages)])


def test_equalized_channels_have_equal_magnitudes() -> None:
    var, vqvae = tiny_models()
    equalization = equalize(images_of(var, vqvae), alpha=1.0)
    simulated = SimulatedVAR(var, FULL_PRECISION, equalization=equalization)
    largest: dict[str, torch.Tensor] = {}

    def watch(name: str, x: torch.Tensor, level: torch.Tensor) -> None:
        largest[name] = x.abs().amax((0, 1))

    simulated.watch = watch
    logits(simulated, vqvae)
    for name in ("blocks.0.attn.q", "blocks.1.attn.proj", "blocks.1.ffn.fc1", "head"):
        torch.testing.assert_close(largest[name], largest[name][:1].expand(64), rtol=1e-4, atol=0)
    assert equalize(images_of(var, vqvae), alpha=0).factors == {}


def test_what_is_missing_is_named() -> None:
    var, _ = tiny_models()
    with pytest.raises(NextscaleError, match=r"no calibrated range of blocks\.0\.attn\.k"):
        SimulatedVAR(var, recipe("stage"))
    with pytest.raises(NextscaleError, match=r"no calibrated range of blocks\.0\.attn\.k\.difference"):
        SimulatedVAR(var, recipe("pair"))
    with pytest.raises(NextscaleError, match=r"no calibrated range of blocks\.0\.attn\.mix\.key"):
        SimulatedVAR(var, recipe("image", products="integer", granularity="tensor"))
    shifted = recipe("image", products="integer", shift_and_sum="residual")
    with pytest.raises(NextscaleError, match="give its theta and places"):
        SimulatedVAR(var, shifted)
    with pytest.raises(NextscaleError, match="expected 4 numbers"):
        SimulatedVAR(var, shifted, shift_and_sum=ShiftAndSum("residual", 0.1, (1,)))
    with pytest.raises(NextscaleError, match="theta is 2"):
        SimulatedVAR(var, shifted, shift_and_sum=ShiftAndSum("residual", 2, (1, 1, 1, 1)))


def test_observed_parts_are_those_of_the_inputs() -> None:
    """Of every layer of a block: it sees both rows of an image."""
    var, vqvae = tiny_models()
    found = observe(images_of(var, vqvae), batch_size=2)
    sizes = [pn * pn for pn in PATCH_NUMS]
    for name in linear_shapes(var.config):
        guided = name.startswith("blocks.") and "ada_lin" not in name
        assert [f"{name}.{part}" in found for part in PARTS] == [guided, guided]
    seen: dict[str, torch.Tensor] = {}
    simulated = SimulatedVAR(var, FULL_PRECISION)
    simulated.watch = lambda name, x, level: seen.update({name: x})
    logits(simulated, vqvae)
    for name in ("blocks.0.attn.q", "blocks.1.ffn.fc2"):
        cond, uncond = seen[name].chunk(2)
        for part, rows in zip(PARTS, (uncond, cond - uncond), strict=True):
            stages = rows.split(sizes, dim=1)
            for end, expected in (("minimum", [x.min() for x in stages]), ("maximum", [x.max() for x in stages])):
                np.testing.assert_allclose(getattr(found[f"{name}.{part}"], end), expected, rtol=1e-4, atol=1e-6)


def test_a_pair_is_closer_under_guidance_than_a_range_for_both_rows() -> None:
    """By a quarter at least, in the divergence; with random weights the class makes much of each row."""
    var, vqvae = tiny_models()
    stage, pair = (
        simulated_agreement(images_of(var, vqvae), simulate(var, vqvae, recipe(choice, 6))).kl
        for choice in ("stage", "pair")
    )
    assert pair < 0.75 * stage


def test_equal_rows_of_a_pair_stay_equal() -> None:
    ones, device = np.ones(2, np.float32), torch.device("cpu")
    wide, narrow = (StaticInput(Range(-ones * a, ones * a), 4, device) for a in (3, 0.1))
    x = torch.randn(2, 3, 8, generator=torch.Generator().manual_seed(0))
    level = torch.tensor([0, 1, 1])
    found = PairInput(wide, narrow)(torch.cat((x, x)), level, True)
    assert torch.equal(found[:2], found[2:])
    assert torch.equal(found[2:], wide(x, level, False))


def test_a_pair_passes_gradients_of_the_parts_that_it_does_not_clip() -> None:
    one, device = np.ones(1, np.float32), torch.device("cpu")
    pair = PairInput(*(StaticInput(Range(-one * a, one * a), 8, device) for a in (1, 0.25)))
    # Neither part is clipped; the difference of 0.7 is; both are.
    x = torch.tensor([[[0.6, 0.9, 5.0]], [[0.5, 0.2, 2.0]]], requires_grad=True)
    pair(x, torch.zeros(1, dtype=torch.int64), True).sum().backward()
    assert x.grad is not None
    np.testing.assert_array_equal(x.grad[:, 0], [[1, 0, 0], [1, 2, 0]])


def test_a_range_alone_is_shared_by_all_stages() -> None:
    var, vqvae = tiny_models()
    ranges = observe(images_of(var, vqvae))
    merged = {
        name: Range(found.minimum.min(keepdims=True), found.maximum.max(keepdims=True))
        for name, found in ranges.items()
    }
    tensor = logits(SimulatedVAR(var, recipe("tensor"), ranges=ranges), vqvae)
    assert torch.equal(tensor, logits(SimulatedVAR(var, recipe("stage"), ranges=merged), vqvae))
