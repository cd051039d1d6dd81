"""Bundles of a tiny Infinity: what is in them, that both precisions make what they should, and what is refused."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
import torch
from infinity_bundle import SIZES, TEXT, tiny_infinity_source
from tiny_model import ONE_THREAD, no_progress, tiny_options, tiny_source

from nextscale.calib_data.attention_scores import EDGES, collect_scores
from nextscale.calib_data.observed_stage import ObservedStage
from nextscale.calib_data.subjects import Subjects
from nextscale.compiler import build
from nextscale.compiler._families import family_of
from nextscale.compiler._float_model import FloatModel
from nextscale.compiler._theta import theta_within_budget
from nextscale.compiler.build import build_bundle
from nextscale.compiler.infinity_family import VERIFY_PROMPTS, InfinityFamily
from nextscale.compiler.options import BuildOptions
from nextscale.graph_passes.integer_model import IntegerModel
from nextscale.graph_passes.observe_scores import observe_scores
from nextscale.graph_passes.recipe import (
    ActivationRecipe,
    AttentionRecipe,
    CalibrationRecipe,
    Recipe,
)
from nextscale.models.bit_operations import BitWidths, model_cost, score_cost
from nextscale.models.infinity.layers import linear_shapes
from nextscale.models.infinity.reference import generate
from nextscale.models.t5.layers import wide_layers
from nextscale.models.t5.random_weights import random_t5
from nextscale.runtime import Bundle, Generation, Generator, RequestError
from nextscale.runtime._errors import NextscaleError
from nextscale.runtime._uniforms import uniforms
from nextscale.runtime._verify import verify

PROMPTS = ["a fox", "two small boats in the evening"]
# Where guidance amplifies little, so that what is compared is quantization.
GENTLE = {"cfg_scale": 1.5, "seed": 3}


@pytest.fixture(scope="module")
def fp32(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("infinity") / "fp32"
    build_bundle(tiny_infinity_source(), out, tiny_options("fp32"), no_progress)
    return out


@pytest.fixture(scope="module")
def int8(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("infinity") / "int8"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(build, "AGREEMENT_IMAGES", 3)
        build_bundle(tiny_infinity_source(), out, tiny_options("default"), no_progress)
    return out


def made(folder: Path, **settings: Any) -> Generation:
    return Generator(folder, ONE_THREAD).generate(prompts=PROMPTS, **GENTLE, **settings)


@pytest.mark.parametrize("name", ["fp32", "int8"])
def test_a_bundle_passes_its_own_checks(name: str, request: pytest.FixtureRequest) -> None:
    report = verify(Bundle.open(request.getfixturevalue(name), verify_hashes=True), ONE_THREAD)
    assert report.passed, report
    assert [check.name for check in report.checks] == ["files", "contract", "logits", "tokens", "encoder", "streaming"]


@pytest.mark.parametrize("name", ["fp32", "int8"])
def test_a_manifest_says_what_a_bundle_has(name: str, request: pytest.FixtureRequest) -> None:
    folder: Path = request.getfixturevalue(name)
    manifest = Bundle.open(folder).manifest
    assert (manifest.family, manifest.name, manifest.licence) == ("infinity", "tiny", "MIT")
    assert list(manifest.graphs) == ["generate", "stage", "decoder", "encoder", "text_encoder"]
    assert [size.image_size for size in manifest.sizes] == [size.image_size for size in SIZES]
    assert (manifest.class_names, manifest.tokenizer) == (None, tiny_infinity_source().text.tokenizer)  # type: ignore[union-attr]
    # The stored generation is of the smallest size, 32 x 32.
    assert manifest.verify.inputs["size"] == 1
    assert manifest.verify.prompts == VERIFY_PROMPTS
    values = SIZES[1].num_tokens * 8
    assert [len(row) for row in manifest.verify.token_maps] == [values] * 2
    assert [len(row) for row in manifest.verify.encoded or ()] == [values] * 2
    card = (folder / "card.md").read_text()
    assert "| pictures | RGB of texts: 0.0117M 3:4; 0.000977M 1:1; 0.00391M 1:1 |" in card
    assert "| stages | 2 to 4 (5 to 65 tokens) |" in card
    assert "| tokens | 8 bits |" in card


def test_full_precision_makes_the_references_bits(fp32: Path) -> None:
    source = tiny_infinity_source()
    encoder = random_t5(TEXT)
    texts = [encoder(torch.tensor([[*(byte + 3 for byte in text.encode()), 1]]))[0] for text in PROMPTS]
    longest = max(map(len, texts))
    features = torch.stack([torch.cat((text, torch.zeros(longest - len(text), text.shape[1]))) for text in texts])
    mask = torch.tensor([[int(i < len(text)) for i in range(longest)] for text in texts])
    shape = (2, SIZES[0].num_tokens, 8)
    noise = torch.from_numpy(uniforms(3, range(2), math.prod(shape[1:])).reshape(shape))
    settings = {"cfg_scale": 1.5, "tau": 0.5, "top_p": 0.97}
    expected = generate(source.infinity, SIZES[0], features, noise, text_mask=mask, **settings)  # type: ignore[arg-type]
    np.testing.assert_array_equal(made(fp32).token_maps, expected.bits.numpy())


def test_all_that_the_recipe_says_is_integer(int8: Path) -> None:
    recipe = Bundle.open(int8).manifest.recipe
    linear = {name for name in linear_shapes(tiny_infinity_source().infinity.config) if "text_proj_for_sos" not in name}
    assert recipe["kernels"].keys() == {"stage", "decoder", "encoder", "text_encoder"}
    assert {name.removesuffix(".weight") for name in recipe["kernels"]["stage"]} == linear - {"word_embed"}
    text = {name.removesuffix(".weight") for name in recipe["kernels"]["text_encoder"]}
    assert {*wide_layers(TEXT), "encoder.block.0.layer.0.SelfAttention.q"} <= text
    assert len(text) == 7
    assert recipe["calibration"] == {"images": 5, "seed": 0, "cfg_scale": 3.0}
    assert any(name in recipe["saturation"]["can_saturate"] for name in recipe["kernels"]["text_encoder"])


def test_agreement_with_full_precision_is_recorded(int8: Path) -> None:
    """Two blocks of width 32 are coarse: a bit's KL of a hundredth is much for a bit and little for quantization."""
    agreement = Bundle.open(int8).manifest.recipe["agreement"]
    assert (agreement["images"], agreement["cfg_scale"]) == (3, 3.0)
    assert 0 < agreement["kl"] < 0.01 * 8
    assert 0.95 < agreement["top1"] <= 1


@pytest.mark.parametrize("index", range(len(SIZES)))
def test_int8_is_near_full_precision_at_all_sizes(fp32: Path, int8: Path, index: int) -> None:
    inputs = {"size": index}
    expected = made(fp32, inputs=inputs)
    found = made(int8, inputs={**inputs, "forced_bits": expected.token_maps})
    np.testing.assert_array_equal(found.token_maps, expected.token_maps)
    difference = found.images.astype(np.float64) - expected.images
    assert np.square(difference).mean() < (0.05 * 255) ** 2  # of an untrained decoder whose pixels are noise
    free = made(int8, inputs=inputs)
    assert (free.token_maps == expected.token_maps).mean() > 0.8


def test_a_picture_does_not_see_its_neighbours_text(int8: Path) -> None:
    """Padding would widen ranges that were found at run time; those of `default` are static."""
    generator = Generator(int8, ONE_THREAD)
    alone, together = (generator.generate(prompts=prompts, **GENTLE) for prompts in (PROMPTS[:1], PROMPTS))
    assert (alone.token_maps[0] == together.token_maps[0]).mean() > 0.99


def test_fused_graphs_lie_beside_the_stock_ones(int8: Path) -> None:
    manifest = Bundle.open(int8).manifest
    assert all(graph.fused is not None for graph in manifest.graphs.values())
    domains = {node.domain for node in ir.load(int8 / "stage.fused.onnx").graph}
    assert "nextscale" in domains


def test_without_a_text_encoder_features_are_stored_lengths(tmp_path: Path) -> None:
    source = tiny_infinity_source()
    options = tiny_options("fp32", text_encoder=False, encoder=False)
    for name, of in (("left out", source), ("none", replace(source, text=None))):
        bundle = build_bundle(of, tmp_path / name, options, no_progress)
        assert list(bundle.manifest.graphs) == ["generate", "stage", "decoder"]
        assert (bundle.manifest.tokenizer, bundle.manifest.verify.text_lengths) == (None, (5, 3))
        assert verify(bundle, ONE_THREAD).passed
    contents = [(tmp_path / name / "weights.data").read_bytes() for name in ("left out", "none")]
    assert contents[0] == contents[1]


def test_no_text_is_longer_than_what_the_model_learned_for_none(fp32: Path) -> None:
    generator = Generator(fp32, ONE_THREAD)
    longest, longer = np.zeros((1, 64, 16), np.float32), np.zeros((1, 65, 16), np.float32)
    generator.generate(inputs={"text_features": longest, "negative_features": longest})
    for name in ("text_features", "negative_features"):
        with pytest.raises(RequestError, match=f"^{name}: expected texts of at most 64 tokens, found 65: shorten"):
            generator.generate(inputs={"text_features": longest, name: longer})


# Shift-and-sum


@pytest.fixture(scope="module")
def expanded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of matched bits: integer attention, also to the text, and shift-and-sum under a budget for a tiny model."""
    attention = AttentionRecipe("integer", weights="log2", shift_and_sum="residual", budget=0.2, cross="integer")
    calibration = CalibrationRecipe(images=6, matching="stagewise")
    recipe = Recipe("expanded", activations=ActivationRecipe(8, "image"), attention=attention, calibration=calibration)
    out = tmp_path_factory.mktemp("expanded") / "bundle"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(build, "AGREEMENT_IMAGES", 3)
        options = BuildOptions(recipe, session=ONE_THREAD, count_overflow=True, encoder=False)
        build_bundle(tiny_infinity_source(), out, options, no_progress)
    return out


def test_theta_and_places_are_those_of_the_size_of_most_stages(expanded: Path) -> None:
    bundle = Bundle.open(expanded)
    chosen = bundle.manifest.recipe["shift_and_sum"]
    assert chosen["images"] == 2  # of the six, of three sizes
    assert 0 < chosen["theta"] < 1
    assert chosen["extra_share"] <= 0.2
    assert len(chosen["rows"]) == SIZES[0].num_stages
    assert chosen["rows"][0] >= 1  # one token of the picture, which has all attention
    assert verify(bundle, ONE_THREAD).passed


def test_matched_bits_are_observed(expanded: Path) -> None:
    calibration = Bundle.open(expanded).manifest.recipe["calibration"]
    assert calibration["images"] == 6
    assert calibration["token_maps"]["settings"] == {"images": 6, "seed": 0, "batch_size": 2, "matching": "stagewise"}
    variation = calibration["token_maps"]["report"]["total_variation"]
    assert variation["after"]["all"] < variation["before"]["all"]


def test_a_debug_bundle_counts_what_finds_no_place(expanded: Path) -> None:
    model = ir.load(expanded / "stage.onnx")
    names = {str(value.name) for value in model.graph.outputs if str(value.name).startswith("overflow.")}
    assert names == {f"overflow.blocks.{i}.{part}.mix" for i in (0, 1) for part in ("sa", "ca")}


def test_scores_are_counted_of_one_size(fp32: Path) -> None:
    """Of self-attention each row of weights sums to 1: so do the scores of all tokens of a head."""
    family, bundle = InfinityFamily(tiny_infinity_source()), Bundle.open(fp32)
    stage = FloatModel.stage_of(family, bundle)
    observed = ObservedStage.open(bundle, observe_scores(stage, family.facts().attentions), ONE_THREAD)
    subjects = family.calibration_subjects(6, seed=0).pick(np.array([1, 4]))
    sampled = subjects.sampled(bundle.manifest)
    found = collect_scores(observed, subjects, sampled)
    assert (found.images, found.samples) == (2, 2 * 2 * 2 * 2)
    assert len(found.histogram) == SIZES[2].num_stages
    middles = (EDGES[1:] + EDGES[:-1]) / 2
    np.testing.assert_allclose((found.histogram * middles).sum(1) / found.samples, 1, atol=21 * 0.5e-4)
    assert found.attentive.shape[2] == 1 + max(21, *(len(text) for text in subjects.texts or ()))


def test_stages_that_no_image_has_get_the_places_of_the_last_that_one_has(fp32: Path) -> None:
    """Of sizes that are too large for full precision."""
    family, bundle = InfinityFamily(tiny_infinity_source()), Bundle.open(fp32)
    recipe = Recipe("r", attention=AttentionRecipe("integer", shift_and_sum="residual", budget=0.2))
    attention = IntegerModel.decide(recipe, family.facts()).attention
    assert attention is not None
    subjects = family.calibration_subjects(6, seed=0).pick(np.array([1, 4]))
    images = subjects, subjects.sampled(bundle.manifest)
    options, stage = BuildOptions(recipe, session=ONE_THREAD), FloatModel.stage_of(family, bundle)
    found = theta_within_budget(family, bundle, stage, attention, *images, options, no_progress)
    assert len(found.rows) == SIZES[0].num_stages == SIZES[2].num_stages + 1
    assert found.rows[3] == found.rows[2] > 0


def test_a_cross_attention_costs_its_scores_and_products() -> None:
    facts = InfinityFamily(tiny_infinity_source()).facts(0)
    model = tiny_infinity_source().model_info()
    tokens = np.array(SIZES[0].stage_tokens)
    bits = BitWidths(4, 6)
    further = score_cost(model, 10).operations - score_cost(model).operations
    assert further == 16 * 10 * tokens.sum() * model.num_heads * model.depth
    products = model_cost(model, facts, bits, 10).operations - model_cost(model, facts, bits).operations
    assert products == 36 * 2 * 10 * tokens.sum() * model.embed_dim * model.depth
    linear = sum(layer.shape[0] * layer.shape[1] * sum(layer.tokens) for layer in facts.layers)
    head = next(layer for layer in facts.layers if layer.name == "head_nm.ada_lin.1")
    linear += head.shape[0] * head.shape[1] * (len(tokens) - 1)  # at every stage, as the official code has it
    attention = 2 * model.embed_dim * model.depth * (tokens * tokens.cumsum()).sum()
    assert model_cost(model, facts, bits).operations == 24 * linear + 36 * attention


def test_attention_to_a_text_is_no_word_for_var(tmp_path: Path) -> None:
    recipe = Recipe("r", attention=AttentionRecipe("integer", cross="integer"))
    with pytest.raises(
        NextscaleError, match=r'recipe r: attention\.cross = "integer" is of attention to a text, which VAR'
    ):
        build_bundle(tiny_source(), tmp_path / "out", BuildOptions(recipe), no_progress)
    assert not list(tmp_path.iterdir())


# Calibration


def test_images_are_of_texts_and_sizes_in_turn() -> None:
    family = InfinityFamily(tiny_infinity_source())
    found = family.calibration_subjects(7, seed=2)
    assert found.class_labels is None
    # 4, 3 and 2 stages: those with most come first, so that few images suffice to see all stages.
    assert found.sizes.tolist() == [0, 2, 1, 0, 2, 1, 0]
    lengths = [len(text) for text in found.texts or ()]
    assert sorted(lengths[:3]) == [4, 12, 20]  # bytes of the source's prompts, and their ends
    assert lengths[:3] == lengths[3:6]
    orders = {tuple(len(text) for text in family.calibration_subjects(3, seed).texts or ()) for seed in range(9)}
    assert len(orders) > 1


def test_learned_weights_without_a_text_encoder_cannot_be_calibrated(tmp_path: Path) -> None:
    with pytest.raises(NextscaleError, match="give the text encoder's folder with --text"):
        build_bundle(tiny_infinity_source(text=None), tmp_path / "out", tiny_options("default"), no_progress)
    assert not list(tmp_path.iterdir())


def test_values_that_overflow_are_refused(tmp_path: Path) -> None:
    source = tiny_infinity_source()
    torch.nn.init.constant_(source.vae.decoder.conv_in.weight, 3e38)
    with pytest.raises(NextscaleError, match="pictures are NaN: what the decoder computes overflows float32"):
        build_bundle(source, tmp_path / "out", tiny_options("fp32"), no_progress)
    source = tiny_infinity_source()
    source.infinity.head.weight.data.fill_(3e38)  # type: ignore[union-attr, operator]
    with pytest.raises(NextscaleError, match="tiny in fp32: logits are NaN or infinite in stage 0"):
        build_bundle(source, tmp_path / "out", tiny_options("fp32"), no_progress)


def test_what_is_no_source_has_no_family() -> None:
    with pytest.raises(TypeError, match="no family builds a Subjects"):
        family_of(Subjects(np.zeros(1, np.int64)))  # type: ignore[arg-type]


def test_prompts_are_read_once_for_all_bundles() -> None:
    """Rows of a table are builds of one source by other names, each of which calibrates and compares with prompts."""
    first, seen = tiny_infinity_source(), list[int]()
    assert first.text is not None
    first.text.encoder.register_forward_hook(lambda *_: seen.append(1))
    families = [family_of(source) for source in (first, replace(first, name="row"), replace(first, name="other row"))]
    for family in families:
        family.agreement_subjects(2)
    assert len(seen) == len(first.prompts)
    family_of(replace(first, prompts=("fog",))).agreement_subjects(2)
    assert len(seen) == len(first.prompts) + 1
