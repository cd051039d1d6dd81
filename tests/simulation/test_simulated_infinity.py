"""Infinity's twin: nothing quantized is the model itself, and what is computes what the integer graph does."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import pytest
import torch
from infinity_stages import InfinityStages, all_stages

from nextscale.calib_data.subjects import Subjects
from nextscale.export.infinity.stage_graph import build_stage_graph
from nextscale.graph_passes.expand_attentive_tokens import ShiftAndSum
from nextscale.graph_passes.integer_model import IntegerModel
from nextscale.graph_passes.linear_layers import nearest
from nextscale.graph_passes.observe_inputs import PARTS
from nextscale.graph_passes.pipeline import StagePlan, quantize_stage
from nextscale.graph_passes.quantize_attention import Magnitudes
from nextscale.graph_passes.quantize_linear_pairs import PairRanges
from nextscale.graph_passes.recipe import (
    ActivationRecipe,
    AttentionRecipe,
    Granularity,
    Recipe,
    WeightRecipe,
    load_recipe,
    recipe_names,
)
from nextscale.models.equalization import Equalization
from nextscale.models.infinity.layers import POOL, linear_shapes
from nextscale.models.infinity.schedules import first_stages
from nextscale.models.infinity.transformer import InfinityConfig
from nextscale.simulation.infinity_images import InfinityImages
from nextscale.simulation.simulated_agreement import simulated_agreement
from nextscale.simulation.simulated_attention import OPERANDS, operand_name
from nextscale.simulation.simulated_model import part_name, required_ranges
from nextscale.simulation.simulated_ranges import equalize, observe
from nextscale.simulation.teacher_forced_images import FULL_PRECISION, batches, teacher_forced
from tests.tiny_infinity import CONFIG, tiny_infinity

SIZES = (first_stages(4, (3, 4)), first_stages(3, (1, 1)))
CFG_SCALE = 2.0
N = 5
VARIANTS: Mapping[str, InfinityConfig] = {
    "released": CONFIG,
    "level embedding in each chunk": replace(CONFIG, level_blocks=(0, 1)),
    "interpolated positions": replace(CONFIG, rope_mode=1),
    "patches": replace(CONFIG, patchify=True),
}


def images(config: InfinityConfig = CONFIG, count: int = N) -> InfinityImages:
    """Of texts of 2 to 4 tokens and both sizes."""
    rng = np.random.default_rng(0)
    sizes = tuple(first_stages(size.num_stages, size.ratio, patchify=config.patchify) for size in SIZES)
    texts = tuple(rng.standard_normal((2 + i % 3, config.text_channels)).astype(np.float32) for i in range(count))
    chosen = np.resize([0, 1, 1], count)
    bits = tuple(rng.integers(0, 2, (sizes[size].num_tokens, config.token_bits)) for size in chosen)
    return InfinityImages(tiny_infinity(config), sizes, Subjects(chosen, texts=texts), bits, CFG_SCALE)


def recipe(activations: Granularity = "image", bits: int = 8, **attention: str) -> Recipe:
    """With word_embed in float: stage 1 reads +-1/sqrt(d) alone, whose codes are halfway between two numbers."""
    return Recipe(
        "test",
        weights=WeightRecipe(bits),
        activations=ActivationRecipe(bits, activations),
        attention=AttentionRecipe(**attention),  # type: ignore[arg-type]
        layers={"word_embed": "float"},
    )


PLACES = (1, 3, 4, 2)
RECIPES = {
    "image, float attention": recipe(),
    "token": recipe("token", products="integer", weights="row"),
    "stage": recipe("stage", products="integer", weights="uniform", cross="integer"),
    "pair": recipe("pair", products="integer"),
    "pair, 4 bits": recipe("pair", 4),
    "tensor": recipe("tensor", 6, products="integer", weights="log2-row", granularity="tensor", cross="integer"),
    "shift-and-sum": recipe("image", 8, products="integer", weights="log2", shift_and_sum="residual"),
    "shift-and-sum, to the text": recipe(
        "image", 8, products="integer", weights="log2", shift_and_sum="duplicate", cross="integer"
    ),
}


def shift_and_sum(recipe: Recipe) -> ShiftAndSum | None:
    form = recipe.attention.shift_and_sum
    return None if form == "off" else ShiftAndSum(form, 0.11, PLACES)


def logits(given: InfinityImages, twin: object, image: int) -> torch.Tensor:
    """Of one image, [L, D]."""
    with torch.no_grad():
        return teacher_forced(given, twin, np.array([image]))[0]  # type: ignore[arg-type]


@pytest.mark.parametrize("config", VARIANTS.values(), ids=VARIANTS.keys())
def test_full_precision_is_the_model_itself(config: InfinityConfig) -> None:
    """Texts of several lengths at once, each image as if it were alone."""
    given = images(config)
    twin = given.twin(FULL_PRECISION)
    for pick in batches(given, 4):
        with torch.no_grad():
            expected, found = given.reference(pick), teacher_forced(given, twin, pick)
        # Other kernels for attention, and folded scales: float32's epsilon through two blocks, with room.
        assert (found - expected).abs().max() <= 2e-5 * expected.abs().max()
        for row, image in enumerate(pick):
            alone = logits(given, twin, int(image))
            assert (found[row] - alone).abs().max() <= 2e-5 * expected.abs().max()


@pytest.mark.parametrize("config", VARIANTS.values(), ids=VARIANTS.keys())
def test_all_is_computed_where_the_model_is(config: InfinityConfig) -> None:
    """The device `meta`, which computes nothing, refuses what lies elsewhere, as a GPU does."""
    given = images(config)
    given.infinity.to("meta")
    twin = given.twin(FULL_PRECISION)
    for pick in batches(given, 4):
        assert given.reference(pick).is_meta
        assert teacher_forced(given, twin, pick).is_meta


def test_equalization_leaves_full_precision_unchanged() -> None:
    given = images()
    generator = torch.Generator().manual_seed(0)
    readers = given.facts.equalizable()
    widths = {layer.name: layer.shape[1] for layer in given.facts.layers}
    factors = {name: torch.rand(widths[reads[0]], generator=generator) * 3 + 0.3 for name, reads in readers.items()}
    plain = logits(given, given.twin(FULL_PRECISION), 0)
    equalized = logits(given, given.twin(FULL_PRECISION, equalization=Equalization(factors)), 0)
    assert not torch.equal(plain, equalized)
    assert (plain - equalized).abs().max() <= 2e-5 * plain.abs().max()


@pytest.mark.exact_products
@pytest.mark.parametrize("alpha", [0.0, 0.7])
@pytest.mark.parametrize("recipe", RECIPES.values(), ids=RECIPES.keys())
def test_the_twin_computes_what_the_integer_graph_does(recipe: Recipe, alpha: float) -> None:
    """Both with the ranges that the twin observed, on forced bits; of images of both sizes, one by one.

    Sums in another order differ by float32's epsilon, which near a tie becomes one step of one code: the largest |q|,
    |k| and |v| of an image are ties themselves, a / s = M / 2. Such steps are few among all that quantization does:
    twin and graph are far nearer to each other than to full precision; of independent errors it would be sqrt(2).
    """
    given = images()
    equalization = equalize(given, alpha)
    ranges = observe(given, equalization=equalization)
    twin = given.twin(recipe, ranges=ranges, equalization=equalization, shift_and_sum=shift_and_sum(recipe))
    integer = IntegerModel.decide(recipe, given.facts)
    names = () if integer.attention is None else integer.attention.names
    plan = StagePlan(
        integer,
        {name: integer.layers[name].static_range(ranges[name]) for name in integer.static} | integer.known,
        {name: PairRanges(*(ranges[part_name(name, part)] for part in PARTS)) for name in integer.pairs},
        nearest(recipe.weights.bits, recipe.weights.range),
        {
            name: Magnitudes.of(*(ranges[operand_name(name, operand)] for operand in OPERANDS))
            for name in names
            if integer.static_attention
        }
        or None,
        shift_and_sum(recipe),
    )
    graph = quantize_stage(build_stage_graph(given.infinity, given.model_sizes, equalization), plan)
    stages = InfinityStages(graph, CONFIG, given.model_sizes)
    full, apart, away = given.twin(FULL_PRECISION), 0.0, 0.0
    for image in range(2):
        text = given.subjects.texts[image][None]  # type: ignore[index]
        feeds = stages.feeds(
            text, int(given.sizes[image]), forced_bits=given.token_maps[image][None], cfg_scale=CFG_SCALE
        )
        expected = all_stages(stages.run(feeds), "logits")[0]
        apart += float(np.square(logits(given, twin, image).numpy() - expected).sum())
        away += float(np.square(logits(given, full, image).numpy() - expected).sum())
    assert np.sqrt(apart / away) < 0.5


def test_eight_bits_are_close_and_fewer_are_not() -> None:
    given = images()
    found = [
        simulated_agreement(given, given.twin(quantized), batch_size=2)
        for quantized in (FULL_PRECISION, recipe(), recipe("image", 4), load_recipe("rtn-w4a4"))
    ]
    kl = [agreement.kl for agreement in found]
    assert abs(kl[0]) < 1e-6
    assert found[0].top1 == 1
    assert kl[0] < kl[1] < 0.05 < kl[2] < kl[3]
    assert (found[1].images, found[1].stage_kl.shape) == (N, (4,))


def test_every_layer_of_the_graph_is_simulated() -> None:
    given = images()
    twin = given.twin(FULL_PRECISION)
    assert list(twin.linears) == [name for name in linear_shapes(CONFIG) if not name.startswith(f"{POOL}.")]
    units = twin.units(CFG_SCALE)
    assert list(units) == [*(f"blocks.{i}.{part}" for i in (0, 1) for part in ("sa", "ca", "ffn")), "head"]
    learned = {layer.unit for layer in given.facts.layers if layer.unit is not None}
    assert learned == set(units)


def test_ranges_of_texts_are_of_the_first_stage_alone() -> None:
    given = images()
    found = observe(given)
    needed = required_ranges(IntegerModel.decide(recipe("pair", products="integer", granularity="tensor"), given.facts))
    assert needed <= set(found)
    for name in ("text_proj_for_ca.0", "shared_ada_lin.1", "blocks.1.ca.k", "blocks.0.ca.mix.value"):
        assert found[name].minimum[0] < 0 < found[name].maximum[0]
        assert not found[name].minimum[1:].any()
    assert found["word_embed"].maximum[0] == 0
    assert found["blocks.0.sa.q"].maximum.min() > 0


@pytest.mark.parametrize("name", recipe_names())
def test_every_recipe_is_infinitys(name: str) -> None:
    """What each makes integer; LiteVAR leaves the layer behind GELU float."""
    chosen, facts = load_recipe(name), images().facts
    integer = IntegerModel.decide(chosen, facts)
    float_layers = {layer.name for layer in facts.layers} - set(integer.layers)
    expected = {f"blocks.{i}.ffn.fc2" for i in (0, 1)} if "litevar" in name else set()
    if name.startswith(("default", "nearest", "static")):
        expected = {"word_embed"}
    if name == "fp32":
        assert not integer.layers
    else:
        assert float_layers == expected
    assert integer.attention is None or integer.attention.names == facts.attentions
