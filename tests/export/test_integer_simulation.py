"""The built stage graph against integer arithmetic in NumPy, layer by layer and attention by attention.

Each product of the quantized graph is computed anew from the float values that the graph itself had at its input, as
docs/quantization.md says. Integers are compared exactly: an output over its scale must be the integer of NumPy.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import attention_oracle as oracle
import numpy as np
import onnx_ir as ir
import pytest
from stage_runs import Array, run_stages
from tiny_model import ONE_THREAD, no_progress, tiny_source

from nextscale.compiler._float_model import FloatModel
from nextscale.compiler._plan import Plan, make_plan
from nextscale.compiler.options import BuildOptions
from nextscale.compiler.var_family import VARFamily
from nextscale.export.var.decoder_graph import build_decoder_graph
from nextscale.export.var.stage_graph import build_stage_graph
from nextscale.graph_passes import pipeline
from nextscale.graph_passes._attention_patterns import AttentionPattern, attention_patterns
from nextscale.graph_passes.integer_model import IntegerModel
from nextscale.graph_passes.linear_layers import LinearLayer, linear_layers
from nextscale.graph_passes.pipeline import quantize_stage
from nextscale.graph_passes.qparams import ActivationQParams, QuantizedWeight, Range
from nextscale.graph_passes.recipe import (
    ActivationRecipe,
    AttentionRecipe,
    CalibrationRecipe,
    DecoderRecipe,
    EqualizationRecipe,
    Recipe,
    WeightRecipe,
)
from nextscale.models.var.layers import facts_of
from nextscale.models.var.sources import VARSource, demo_source

CALIBRATION = CalibrationRecipe(images=2)
# Of these an image is one row; of all others two, with its class and without.
UNGUIDED = ("word_embed", "head")
RECIPES = {
    "static W8A8, equalized": Recipe(
        "a", activations=ActivationRecipe(range="mse"), equalization=EqualizationRecipe(0.85), calibration=CALIBRATION
    ),
    "W8A8, one range per token": Recipe(
        "b",
        activations=ActivationRecipe(granularity="token"),
        attention=AttentionRecipe("integer", "tensor", "row", "residual"),
        calibration=CALIBRATION,
        layers={"attn.proj": "stage"},
    ),
    "the paper's W4A6": Recipe(
        "c",
        weights=WeightRecipe(4, "percentile", packed=True),
        activations=ActivationRecipe(6, "image"),
        attention=AttentionRecipe("integer", "image", "log2", "residual"),
        calibration=CALIBRATION,
    ),
    "W4A4, LiteVAR": Recipe(
        "d",
        weights=WeightRecipe(4, "mse"),
        activations=ActivationRecipe(4, "image"),
        attention=AttentionRecipe("integer", "image", "log2-row", "duplicate"),
        calibration=CALIBRATION,
        layers={"ffn.fc2": "float"},
    ),
    "W8A8, pairs, equalized": Recipe(
        "e",
        activations=ActivationRecipe(8, "pair", "mse"),
        equalization=EqualizationRecipe(0.85),
        calibration=CALIBRATION,
        layers={"blocks.1.attn.k": "stage"},
    ),
    "W4A2, one range per token": Recipe(
        "g", weights=WeightRecipe(4), activations=ActivationRecipe(2, "token"), calibration=CALIBRATION
    ),
    "W4A6, pairs": Recipe(
        "f",
        weights=WeightRecipe(4, "mse", packed=True),
        activations=ActivationRecipe(6, "pair"),
        calibration=CALIBRATION,
    ),
}


@dataclass(frozen=True)
class Built:
    """A quantized stage graph, the float one it was made from, and the values of both's names at each stage."""

    recipe: Recipe
    plan: Plan
    layers: list[LinearLayer]
    patterns: list[AttentionPattern]
    stages: list[dict[str, Array]]


@pytest.fixture(scope="module", params=RECIPES)
def built(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Built:
    return build(tiny_source(), RECIPES[request.param], tmp_path_factory.mktemp("plan"))


def build(source: VARSource, recipe: Recipe, folder: Path, num_stages: int | None = None) -> Built:
    recipe = replace(recipe, decoder=DecoderRecipe(precision="float"))  # nobody looks at it here
    stage, decoder = build_stage_graph(source.var, source.vqvae.quantize), build_decoder_graph(source.vqvae)
    model = FloatModel.write(VARFamily(source), stage, decoder, folder)
    integer = IntegerModel.decide(recipe, facts_of(source.var))
    plan = make_plan(model, integer, BuildOptions(recipe, session=ONE_THREAD), no_progress)
    plain = build_stage_graph(source.var, source.vqvae.quantize, plan.equalization)
    layers, patterns = linear_layers(plain.graph), attention_patterns(plain.graph)
    names = {layer.activation.name for layer in layers} | {output_of(layer).name for layer in layers}
    names |= {layer.node.outputs[0].name for layer in layers}
    for pattern in patterns:
        values = (pattern.query, pattern.key, pattern.weights, pattern.value, pattern.mix.outputs[0])
        names |= {value.name for value in (*values, pattern.scores.outputs[0])}
    with pytest.MonkeyPatch.context() as patch:
        # It changes no number (test_split_rows.py), but takes values away that are looked at here.
        patch.setattr(pipeline, "split_rows", lambda model, rows: model)
        quantized = quantize_stage(plain, plan.stage)
    for node in list(quantized.graph):
        for value in node.outputs:
            if value.name in names and not value.is_graph_output():
                value.dtype, value.shape = ir.DataType.FLOAT, None
                quantized.graph.outputs.append(value)
    return Built(recipe, plan, layers, patterns, run_stages(quantized, source, num_stages))


def output_of(layer: LinearLayer) -> ir.Value:
    """What the layer gives, with its bias if one is added."""
    ((consumer, _),) = layer.node.outputs[0].uses()
    return consumer.outputs[0] if consumer.op_type == "Add" else layer.node.outputs[0]


def activation_codes(built: Built, layer: str, x: Array, si: int) -> tuple[Array, Array]:
    """Codes less the zero point, as float64 integers, and the scale."""
    bits, qmax = built.recipe.activations.bits, 2**built.recipe.activations.bits - 1
    choice = "stage" if "ada_lin" in layer else built.recipe.layer_choice(layer)
    if choice in ("tensor", "stage", "pair"):  # a pair that is one row: of the head, or of classes
        return static_codes(built.plan.stage.ranges[layer], x, si, bits)
    if choice == "image":
        rows = 1 if layer in UNGUIDED else 2
        images = x.reshape(rows, len(x) // rows, -1)
        low, high = (np.tile(reduce(images, (0, 2)), rows)[:, None, None] for reduce in (lowest, highest))
        scale = ((high - low) / np.float32(qmax)).astype(np.float32)
        zero_point = np.clip(np.round(-low / scale), 0, qmax)
    else:
        z = zero_point_of_tokens(bits, behind_gelu=layer.endswith("fc2"))
        scale = np.maximum(
            x.max(-1, keepdims=True) / np.float32(qmax - z), -x.min(-1, keepdims=True) / np.float32(z)
        ).astype(np.float32)
        zero_point = np.full_like(scale, z)
    codes = np.clip(np.round(x / scale) + zero_point, 0, qmax)
    return codes.astype(np.float64) - zero_point, scale


def zero_point_of_tokens(bits: int, behind_gelu: bool) -> int:
    """Written out from docs/quantization.md."""
    return {2: 1, 3: 1, 4: 2, 5: 4, 6: 8, 7: 16, 8: 32}[bits] if behind_gelu else 2 ** (bits - 1)


def static_codes(found: Range, x: Array, si: int, bits: int) -> tuple[Array, Array]:
    """Codes less the zero point, as float64 integers, and the scale [1]."""
    at = si if len(found.minimum) > 1 else 0
    qparams = ActivationQParams.from_range(Range(found.minimum[at : at + 1], found.maximum[at : at + 1]), bits)
    return qparams.quantize(x).astype(np.float64) - float(qparams.zero_point[0]), qparams.scale


def assert_integers(y: Array, integers: Array, unit: Array, where: str) -> None:
    """Rounding of the float result, of the terms it was added from, must not reach half a unit."""
    assert np.abs(y / unit - integers).max() < 0.4, where
    np.testing.assert_array_equal(np.round(y / unit), integers, err_msg=where)


def assert_pair(
    built: Built, layer: LinearLayer, weight: QuantizedWeight, x: Array, found: dict[str, Array], si: int
) -> None:
    """y = [y_u + y_d; y_u]: the rows without the class, and the difference of both, are integers each."""
    consumer = output_of(layer).producer()
    assert consumer is not None
    y, bias = found[str(output_of(layer).name)].astype(np.float64), np.zeros(1, np.float32)
    if consumer is not layer.node:
        (constant,) = (value.const_value for value in consumer.inputs if value is not None and value.const_value)
        bias = constant.numpy()
    y_cond, y_uncond = np.split(y, 2)
    cond, uncond = np.split(x, 2)
    pair, bits = built.plan.stage.pair_ranges[layer.name], built.recipe.activations.bits
    for part, observed, source, product in (
        ("uncond", pair.uncond, uncond, y_uncond - bias),
        ("difference", pair.difference, cond - uncond, y_cond - y_uncond),
    ):
        codes, scale = static_codes(observed, source, si, bits)
        integers = np.tensordot(codes, weight.codes.astype(np.float64), 1)
        assert_integers(
            product, integers, scale.astype(np.float64) * weight.scale, f"{layer.name}.{part} at stage {si}"
        )


def lowest(x: Array, axes: tuple[int, ...]) -> Array:
    return np.minimum(x.min(axes), 0) if x.size else np.zeros(x.shape[1], np.float32)


def highest(x: Array, axes: tuple[int, ...]) -> Array:
    return np.maximum(x.max(axes), 0) if x.size else np.zeros(x.shape[1], np.float32)


@pytest.mark.exact_products
def test_every_linear_layer(built: Built) -> None:
    checked = 0
    for layer in built.layers:
        if built.recipe.layer_choice(layer.name) == "float":
            continue
        assert layer.weight.const_value is not None
        bits, rule = built.recipe.weights.bits, built.recipe.weights.range
        weight = QuantizedWeight.per_channel(layer.weight.const_value.numpy(), 1, bits, rule)
        for si, found in enumerate(built.stages):
            x = found[str(layer.activation.name)]
            if not x.size:
                continue
            if layer.name in built.plan.stage.pair_ranges:
                assert_pair(built, layer, weight, x, found, si)
                checked += 1
                continue
            product = layer.node.outputs[0].name in found
            codes, scale = activation_codes(built, layer.name, x, si)
            integers = np.tensordot(codes, weight.codes.astype(np.float64), 1)
            unit = scale.astype(np.float64) * weight.scale
            if product:
                y = found[str(layer.node.outputs[0].name)].astype(np.float64)
            else:  # a zero point of each image is in the bias, so only both together are there
                ((consumer, _),) = layer.node.outputs[0].uses()
                bias = consumer.inputs[1]
                assert bias is not None
                assert bias.const_value is not None
                y = found[str(consumer.outputs[0].name)].astype(np.float64) - bias.const_value.numpy()
            assert_integers(y, integers, unit, f"{layer.name} at stage {si}")
            checked += 1
    assert checked > 0
    pairs = {layer.name for layer in built.layers if built.recipe.layer_choice(layer.name) == "pair"}
    guided = {name for name in pairs if name not in UNGUIDED and "ada_lin" not in name}
    assert built.plan.stage.pair_ranges.keys() == guided


@pytest.mark.exact_products
def test_every_attention(built: Built) -> None:
    attention, bits = built.recipe.attention, built.recipe.activations.bits
    if attention.products == "float":
        pytest.skip("attention is float")
    shift = built.plan.stage.shift_and_sum
    assert shift is not None
    for pattern in built.patterns:
        known = (built.plan.stage.magnitudes or {}).get(pattern.name)
        for si, found in enumerate(built.stages):
            q, k, scores, a, v, mixed = (
                found[str(value.name)]
                for value in (
                    *(pattern.query, pattern.key, pattern.scores.outputs[0]),
                    *(pattern.weights, pattern.value, pattern.mix.outputs[0]),
                )
            )
            static = None if known is None else (known.query, known.key)
            integers, unit = oracle.scores(q, k, bits, 2, static)
            np.testing.assert_array_equal(np.round(scores / unit), integers)
            expected = oracle.mix(
                *(a, v, attention.weights, bits, 2, shift.theta, shift.places[si]),
                None if known is None else known.value,
            )
            # One float multiplication of exact integers: a few units in the last place of the largest. An exponent
            # halfway between two, of which the two logarithms are not the same, may fall to either side.
            off = np.abs(mixed - expected) > 1e-6 * np.abs(expected).max()
            assert off.mean() < (1e-3 if attention.weights.startswith("log2") else 0.0) or not off.any()


@pytest.mark.exact_products
@pytest.mark.parametrize("name", ["W8A8, one range per token", "the paper's W4A6", "W8A8, pairs, equalized"])
def test_the_demo_model(name: str, tmp_path: Path) -> None:
    """Its first seven stages: the later ones have the same operators on more tokens."""
    demo = build(demo_source("demo"), RECIPES[name], tmp_path, num_stages=7)
    test_every_linear_layer(demo)
    if demo.recipe.attention.products == "integer":
        test_every_attention(demo)
