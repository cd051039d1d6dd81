"""Infinity's stage graph in ONNX Runtime against the torch reference, which equals the official code."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
from infinity_stages import Array, InfinityStages, Outputs, all_stages
from numpy.typing import NDArray
from onnxruntime.capi.onnxruntime_pybind11_state import Fail

from nextscale.export.generate_graph import state_names
from nextscale.export.graph_builder import add_output, finish, new_builder
from nextscale.export.infinity.stage_graph import build_stage_graph, resize
from nextscale.graph_passes._attention_patterns import attention_patterns
from nextscale.graph_passes.fuse_attention import fuse_attention, unfused_attentions
from nextscale.graph_passes.integer_model import IntegerModel
from nextscale.graph_passes.linear_layers import linear_layer_shapes, linear_layers, nearest
from nextscale.graph_passes.pipeline import StagePlan, quantize_stage
from nextscale.graph_passes.recipe import EqualizationRecipe, Granularity, load_recipe
from nextscale.graph_passes.tile_attention import tile_attention, untiled_attentions
from nextscale.models.equalization import Equalization
from nextscale.models.infinity.layers import POOL, linear_shapes, stage_facts
from nextscale.models.infinity.multi_scale_bits import latent_stage_size
from nextscale.models.infinity.reference import Generation, generate
from nextscale.models.infinity.schedules import SCALES, Size, first_stages, make_size
from nextscale.models.infinity.transformer import Infinity
from nextscale.runtime._infinity_request import infinity_request
from tests.goldens.infinity_parity import CASES, Case, model_of, padded, random_inputs
from tests.tiny_infinity import CONFIG, SIZE, tiny_infinity

# Measured: 4e-6 of the range after four blocks, the order of float32 sums being another (tests/models/infinity).
TOLERANCE = 2e-5
# The first and the last are one list of stages, cut at two lengths.
SIZES = [SIZE, first_stages(3, (1, 1)), first_stages(5, (3, 1)), first_stages(6, (3, 4))]
LENGTHS, NEGATIVE_LENGTHS = (5, 3), (2, 6)


@pytest.fixture(scope="module")
def model() -> Infinity:
    return tiny_infinity()


@pytest.fixture(scope="module")
def graph(model: Infinity) -> ir.Model:
    return build_stage_graph(model, SIZES)


@pytest.fixture(scope="module")
def stages(graph: ir.Model) -> InfinityStages:
    return InfinityStages(graph, CONFIG, SIZES)


def texts(
    lengths: tuple[int, ...] = LENGTHS, seed: int = 0, channels: int = CONFIG.text_channels
) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(length, channels, generator=generator) for length in lengths]


def text_feeds(
    texts: list[torch.Tensor], negatives: list[torch.Tensor] | None = None
) -> tuple[NDArray[np.float32], Outputs]:
    """Padded features, and the other inputs of a text."""
    features, mask = (part.numpy() for part in padded(texts))
    if negatives is None:
        return features, {"text_mask": mask}
    negative_features, negative_mask = (part.numpy() for part in padded(negatives))
    return features, {"text_mask": mask, "negative_features": negative_features, "negative_mask": negative_mask}


def expected_of(model: Infinity, size: Size, feeds: Outputs) -> Generation:
    """The reference's answer to the same request."""
    given = {name: torch.from_numpy(np.array(array)) for name, array in feeds.items()}
    names = ("negative_features", "negative_mask") if feeds["negative_mask"].size else ()
    return generate(
        model,
        size,
        given["text_features"],
        given["uniforms"],
        given["forced_bits"],
        text_mask=given["text_mask"],
        cfg_scale=feeds["cfg_scale"].tolist(),
        tau=feeds["tau"].tolist(),
        top_p=float(feeds["top_p"]),
        **{name: given[name] for name in names},
    )


def assert_close(found: Array, expected: Array) -> None:
    """Within TOLERANCE of the range of what is expected."""
    assert found.shape == expected.shape
    np.testing.assert_allclose(found, expected, rtol=0, atol=TOLERANCE * np.ptp(expected))


def random_bits(size: Size, token_bits: int = CONFIG.token_bits, batch: int = 2) -> NDArray[np.int64]:
    return np.random.default_rng(0).integers(0, 2, (batch, size.num_tokens, token_bits))


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_log_odds_and_latents_of_forced_bits(case: Case) -> None:
    """Every option of the model, texts and negative ones of several lengths; what pads them is large."""
    model, given = model_of(case), random_inputs(case)
    graph = InfinityStages(build_stage_graph(model, [case.size]), case.config, [case.size])
    features, further = text_feeds(given.texts, given.negatives if case.guidance.negative else None)
    feeds = graph.feeds(
        features,
        forced_bits=given.forced_bits.numpy(),
        cfg_scale=case.guidance.cfg_scale,
        tau=case.guidance.tau,
        **further,
    )
    found, expected = graph.run(feeds), expected_of(model, case.size, feeds)
    for outputs, log_odds, tau in zip(found, expected.guided_log_odds, case.guidance.tau, strict=True):
        assert_close(outputs["logits"] / tau, log_odds.numpy())
    assert_close(found[-1]["present.f_hat"], expected.f_hat.numpy())
    np.testing.assert_array_equal(all_stages(found, "tokens"), given.forced_bits)


@pytest.mark.parametrize("index", range(len(SIZES)))
def test_one_graph_makes_all_sizes(stages: InfinityStages, model: Infinity, index: int) -> None:
    size = SIZES[index]
    features, further = text_feeds(texts())
    feeds = stages.feeds(features, index, cfg_scale=3, forced_bits=random_bits(size), **further)
    found, expected = stages.run(feeds), expected_of(model, size, feeds)
    assert_close(all_stages(found, "logits"), torch.cat(expected.guided_log_odds, dim=1).numpy())
    assert_close(found[-1]["present.f_hat"], expected.f_hat.numpy())


@pytest.mark.parametrize("negative", [False, True], ids=["learned", "negative"])
@pytest.mark.parametrize("cfg_scale", [1, 3, (1, 2, 0, 4)], ids=str)
@pytest.mark.parametrize("top_p", [0, 0.9, 1e-6], ids=["sampled", "top_p", "greedy"])
def test_bits_are_identical(
    stages: InfinityStages, model: Infinity, negative: bool, cfg_scale: Any, top_p: float
) -> None:
    """Of 1,040 bits one lies within rounding of a boundary in about one run of 500; this seed is none of them."""
    features, further = text_feeds(texts(), texts(NEGATIVE_LENGTHS, 1) if negative else None)
    uniforms = np.random.default_rng(2).random((2, SIZE.num_tokens, CONFIG.token_bits), np.float32)
    feeds = stages.feeds(features, uniforms=uniforms, cfg_scale=cfg_scale, tau=(0.5, 1, 2, 4), top_p=top_p, **further)
    expected = expected_of(model, SIZE, feeds).bits.numpy()
    np.testing.assert_array_equal(all_stages(stages.run(feeds), "tokens"), expected)


def test_forced_bits_are_taken_and_others_sampled(stages: InfinityStages) -> None:
    features, further = text_feeds(texts())
    free = all_stages(stages.run(stages.feeds(features, **further)), "tokens")
    forced = np.full(free.shape, -1)
    forced[:, 0] = 1 - free[:, 0]
    forced[:, 1:, ::2] = free[:, 1:, ::2]
    found = all_stages(stages.run(stages.feeds(features, forced_bits=forced, **further)), "tokens")
    np.testing.assert_array_equal(found[forced >= 0], forced[forced >= 0])
    assert (found[:, 1:, 1::2] != free[:, 1:, 1::2]).any()  # they see other bits before them


@pytest.mark.parametrize("length", [1, 512])
def test_the_shortest_and_the_longest_text(length: int) -> None:
    model = tiny_infinity(replace(CONFIG, max_text=512))
    graph = InfinityStages(build_stage_graph(model, [SIZE]), model.config, [SIZE])
    features, _ = text_feeds(texts((length,)))
    feeds = graph.feeds(features, cfg_scale=2, forced_bits=random_bits(SIZE, batch=1))
    expected = torch.cat(expected_of(model, SIZE, feeds).guided_log_odds, dim=1)
    assert_close(all_stages(graph.run(feeds), "logits"), expected.numpy())


def test_a_text_longer_than_the_learned_one_is_an_error(stages: InfinityStages) -> None:
    features, _ = text_feeds(texts((CONFIG.max_text + 1,)))
    with pytest.raises(Fail, match=r"Where node.*6 by 7"):
        stages.run(stages.feeds(features))


def test_neighbours_do_not_matter(stages: InfinityStages) -> None:
    """Nor how long their texts are: what pads an image's own has weights of exactly 0."""
    forced = random_bits(SIZE)
    mine, negative = texts((3,)), texts((2,), 1)
    alone = stages.run(
        stages.feeds(
            mine[0].numpy()[None], cfg_scale=3, forced_bits=forced[:1], negative_features=negative[0].numpy()[None]
        )
    )
    for place in range(2):
        others, negatives = texts((6,), 3), texts((5,), 4)
        others.insert(place, mine[0])
        negatives.insert(place, negative[0])
        features, further = text_feeds(others, negatives)
        bits = forced if place == 0 else forced[::-1]
        found = stages.run(stages.feeds(features, cfg_scale=3, forced_bits=bits, **further))
        for one, two in zip(alone, found, strict=True):
            assert_close(two["logits"][place], one["logits"][0])
        assert_close(found[-1]["present.f_hat"][place], alone[-1]["present.f_hat"][0])


def test_a_negative_text_without_a_token_is_the_learned_one(stages: InfinityStages) -> None:
    features, further = text_feeds(texts(), texts(NEGATIVE_LENGTHS, 1))
    forced = random_bits(SIZE)
    both = all_stages(stages.run(stages.feeds(features, cfg_scale=3, forced_bits=forced, **further)), "logits")
    further["negative_mask"][0] = 0
    found = all_stages(stages.run(stages.feeds(features, cfg_scale=3, forced_bits=forced, **further)), "logits")
    _, without = text_feeds(texts())
    learned = all_stages(stages.run(stages.feeds(features, cfg_scale=3, forced_bits=forced, **without)), "logits")
    assert_close(found[0], learned[0])
    np.testing.assert_array_equal(found[1], both[1])


def test_the_text_is_read_at_stage_0_alone(stages: InfinityStages) -> None:
    """Later stages carry what it made, and would not notice another."""
    features, further = text_feeds(texts(), texts(NEGATIVE_LENGTHS, 1))
    feeds = stages.feeds(features, cfg_scale=3, forced_bits=random_bits(SIZE), **further)
    garbage = {name: np.full_like(feeds[name], np.nan) for name in ("text_features", "negative_features")}
    garbage |= {name: np.zeros_like(feeds[name]) for name in ("text_mask", "negative_mask")}
    expected, found = stages.run(feeds), stages.run(feeds, garbage)
    for one, two in zip(expected, found, strict=True):
        for name, array in one.items():
            np.testing.assert_array_equal(two[name], array)
            if "text" in name or name == "present.modulation":
                np.testing.assert_array_equal(array, expected[0][name])


def test_equalization_leaves_the_function_as_it_is(stages: InfinityStages, model: Infinity) -> None:
    generator = torch.Generator().manual_seed(0)
    readers = stage_facts(linear_shapes(CONFIG), SIZES).equalizable()
    widths = {name: linear_shapes(CONFIG)[layers[0]][1] for name, layers in readers.items()}
    factors = {name: (torch.rand(width, generator=generator) * 2).exp() for name, width in widths.items()}
    equalized = InfinityStages(build_stage_graph(model, SIZES, Equalization(factors)), CONFIG, SIZES)
    features, further = text_feeds(texts())
    feeds = stages.feeds(features, cfg_scale=3, forced_bits=random_bits(SIZE), **further)
    found, expected = (all_stages(graph.run(feeds), "logits") for graph in (equalized, stages))
    assert_close(found, expected)


def test_resizing_is_torchs_in_all_schedules() -> None:
    """To float32's rounding of positions, which are up to 128, between values of up to 1."""
    builder = new_builder("resize")
    maps, sides = (
        builder.input("maps", ir.DataType.FLOAT, [1, 1, "h", "w"]),
        builder.input("sides", ir.DataType.INT64, [2]),
    )
    add_output(builder, resize(builder.op, maps, sides), "resized", ir.DataType.FLOAT, [1, 1, "H", "W"])
    graph = InfinityStages(finish(builder), CONFIG, [])
    generator, compared = torch.Generator().manual_seed(0), 0
    for ratio, scales in SCALES.items():
        for patchify in (False, True):
            size = first_stages(len(scales), ratio, patchify=patchify)
            sides = [latent_stage_size(size, si) for si in range(size.num_stages)]
            for one, other in ((side, size.latent_size) for side in sides):
                for before, after in ((one, other), (other, one)):
                    x = torch.rand(1, 1, *before, generator=generator)
                    (found,) = graph.session.run(None, {"maps": x.numpy(), "sides": np.array(after)})
                    expected = torch.nn.functional.interpolate(x, size=after, mode="bilinear", align_corners=False)
                    np.testing.assert_allclose(found, expected.numpy(), rtol=0, atol=4 * 128 * 2**-23)
                    compared += 1
    assert compared == 15 * 2 * 13 * 2


def test_layers_and_attentions_are_those_of_the_facts(graph: ir.Model) -> None:
    assert linear_layer_shapes(graph.graph) == linear_shapes(CONFIG)
    assert list(linear_layer_shapes(graph.graph)) == list(linear_shapes(CONFIG))
    names = [pattern.name for pattern in attention_patterns(graph.graph)]
    assert names == [f"blocks.{i}.{part}.mix" for i in range(CONFIG.depth) for part in ("sa", "ca")]
    assert set(stage_facts(linear_shapes(CONFIG), SIZES).attentions) < set(names)


def test_an_operator_serves_self_attention_as_it_does_vars(graph: ir.Model) -> None:
    """Since what turns stands before what it looks for."""
    fused = [node.name for node in fuse_attention(graph).graph if node.op_type == "Attention"]
    assert fused == [f"blocks.{i}.sa.mix/fused" for i in range(CONFIG.depth)]
    cross = [str(refusal).partition(":")[0] for refusal in unfused_attentions(graph)]
    assert cross == [f"blocks.{i}.ca.mix" for i in range(CONFIG.depth)]


def test_weights_are_not_copied(model: Infinity, graph: ir.Model) -> None:
    """Those that the graph has as the model does are the model's memory; others are made when they are asked for."""
    parameters = [parameter.numpy() for parameter in model.parameters()]
    for name, value in graph.graph.initializers.items():
        tensor = value.const_value
        assert tensor is not None
        if tensor.size >= CONFIG.embed_dim**2 and not name.startswith(("rope", "ada_gss")):
            shared = any(np.shares_memory(tensor.numpy(), parameter) for parameter in parameters)
            assert shared != isinstance(tensor, ir.LazyTensor), name


def test_the_contract(graph: ir.Model) -> None:
    onnx.checker.check_model(ir.to_proto(graph), full_check=True)
    request = infinity_request(CONFIG.token_bits, CONFIG.text_channels, CONFIG.max_text, patchify=False)
    inputs = {str(value.name): value for value in graph.graph.inputs}
    for item in request:
        value = inputs[item.name]
        assert value.dtype is not None
        assert str(value.dtype.numpy()) == item.dtype
        assert str(value.shape) == f"[{','.join(map(str, item.shape))}]"
    state = state_names(graph, request)
    assert [name for name, _ in state if name[0] != "t" and name[0] != "p"] == ["f_hat", "modulation"]
    assert {"present.text.1.key", "present.text_bias", "present.1.value"} < {name for _, name in state}
    assert [value.name for value in graph.graph.outputs] == ["tokens", "logits", *(name for _, name in state)]


@pytest.mark.parametrize(
    ("sizes", "reason"),
    [
        ([], "at least one size"),
        (
            [first_stages(4, (1, 1), patchify=True)],
            r"a size of 4 stages and patches of 2: .* at most 15 .* of 1",
        ),
    ],
)
def test_sizes_that_the_model_does_not_make_are_refused(model: Infinity, sizes: list[Size], reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        build_stage_graph(model, sizes)


def test_more_stages_than_the_model_has_are_refused() -> None:
    with pytest.raises(ValueError, match=r"a size of 7 stages .*: the model makes at most 3"):
        build_stage_graph(tiny_infinity(replace(CONFIG, num_levels=3)), [make_size("0.06M", (1, 1))])


def test_attention_of_some_queries_at_a_time(stages: InfinityStages, graph: ir.Model) -> None:
    """All of it; 40 scores are fewer than a query has in the last stage, so that there is one query a part."""
    assert not untiled_attentions(graph)
    features, further = text_feeds(texts())
    feeds = stages.feeds(features, cfg_scale=3, forced_bits=random_bits(SIZE), **further)
    expected = all_stages(stages.run(feeds), "logits")
    for most in (40, 2000):
        tiled = InfinityStages(tile_attention(graph, most), CONFIG, SIZES)
        assert_close(all_stages(tiled.run(feeds), "logits"), expected)


@pytest.mark.parametrize("granularity", ["token", "image"])
def test_passes_make_it_integer_by_its_facts(stages: InfinityStages, graph: ir.Model, granularity: Granularity) -> None:
    """With ranges found when it runs, also where stages read no text: then there is nothing to find ranges of.

    Weights and activations of 8 bits are 0.4% off each; guidance at 3 makes most of it. Measured: 3.4%.
    """
    facts, recipe = stage_facts(linear_shapes(CONFIG), SIZES), load_recipe("default")
    activations = replace(recipe.activations, granularity=granularity, range="max")
    recipe = replace(recipe, activations=activations, equalization=EqualizationRecipe(alpha=0))
    plan = StagePlan(IntegerModel.decide(recipe, facts), {}, {}, nearest())
    quantized = quantize_stage(graph, plan)
    onnx.checker.check_model(ir.to_proto(quantized), full_check=True)
    pool = [f"{POOL}.{part}" for part in ("scores", "v", "proj")]
    assert [layer.name for layer in linear_layers(quantized.graph)] == [*pool, "word_embed"]
    features, further = text_feeds(texts())
    feeds = stages.feeds(features, cfg_scale=3, forced_bits=random_bits(SIZE), **further)
    found = all_stages(InfinityStages(quantized, CONFIG, SIZES).run(feeds), "logits")
    expected = all_stages(stages.run(feeds), "logits")
    assert 0.001 < np.sqrt(np.square(found - expected).mean()) / expected.std() < 0.06
