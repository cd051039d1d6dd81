"""Infinity's attention made integer against NumPy: self-attention of turned queries and keys, and attention to a text.

As in test_integer_simulation.py: each product of the integer graph is computed anew from the float values that the
graph itself had at its input.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import cache

import attention_oracle as oracle
import numpy as np
import onnx
import onnx_ir as ir
import pytest
from infinity_stages import Array, InfinityStages, Outputs

from nextscale.export.infinity.stage_graph import build_stage_graph
from nextscale.graph_passes._attention_patterns import AttentionPattern, attention_patterns
from nextscale.graph_passes.expand_attentive_tokens import ShiftAndSum
from nextscale.graph_passes.fuse_integer_attention import fuse_integer_attention, fused_attentions
from nextscale.graph_passes.quantize_attention import Magnitudes, quantize_attention
from nextscale.graph_passes.recipe import AttentionWeights
from nextscale.models.infinity.layers import linear_shapes, stage_facts
from nextscale.models.infinity.schedules import first_stages
from tests.graph_passes.attention_model import FORMS, ROWS, WEIGHTS, Form, Operands, Outcome, assert_like_oracle
from tests.tiny_infinity import CONFIG, tiny_infinity

SIZES = [first_stages(4, (3, 4)), first_stages(3, (1, 1))]
FACTS = stage_facts(linear_shapes(CONFIG), SIZES)
NAMES = (*FACTS.attentions, *FACTS.cross_attentions)
THETA, PLACES = 0.11, (1, 3, 4, 2)
LENGTHS = (5, 3)  # the second text is padded


def shift_and_sum(form: Form | None) -> ShiftAndSum | None:
    return None if form is None else ShiftAndSum(form, THETA, PLACES)


def exposed(model: ir.Model, patterns: list[AttentionPattern]) -> ir.Model:
    """The model with what goes into each product, and what comes out, as further outputs."""
    onnx.checker.check_model(ir.to_proto(model), full_check=True)
    names = [str(value.name) for pattern in patterns for value in values_of(pattern)]
    found = {str(value.name): value for node in model.graph for value in node.outputs}
    for name in dict.fromkeys(names):
        value = found[name]
        if not value.is_graph_output():
            value.dtype = ir.DataType.FLOAT
            model.graph.outputs.append(value)
    return model


def values_of(pattern: AttentionPattern) -> list[ir.Value]:
    """Query, key, scores, weights, value and product."""
    return [
        *(pattern.query, pattern.key, pattern.scores.outputs[0]),
        *(pattern.weights, pattern.value, pattern.mix.outputs[0]),
    ]


def request(stages: InfinityStages, size: int) -> Outputs:
    """Sampled bits of two texts, one of them padded."""
    rng = np.random.default_rng(size)
    texts = [rng.standard_normal((length, CONFIG.text_channels)).astype(np.float32) for length in LENGTHS]
    features = np.zeros((2, max(LENGTHS), CONFIG.text_channels), np.float32)
    mask = np.zeros(features.shape[:2], np.int64)
    for row, text in enumerate(texts):
        features[row, : len(text)], mask[row, : len(text)] = text, 1
    uniforms = rng.random((2, SIZES[size].num_tokens, CONFIG.token_bits), np.float32)
    return stages.feeds(features, size, text_mask=mask, uniforms=uniforms, cfg_scale=2)


@cache
def float_stage() -> ir.Model:
    """What passes read and do not change."""
    return build_stage_graph(tiny_infinity(), SIZES)


def products(
    weights: AttentionWeights, bits: int, form: Form | None, sizes: Iterable[int]
) -> Iterator[tuple[str, int, Operands, Outcome]]:
    """Name, stage, operands and outcome of each integer product of a picture of each size."""
    model = float_stage()
    patterns = [pattern for pattern in attention_patterns(model.graph) if pattern.name in NAMES]
    integer = quantize_attention(model, weights, bits, ROWS, None, shift_and_sum(form), "stage", NAMES)
    stages = InfinityStages(exposed(integer, patterns), CONFIG, SIZES)
    for size in sizes:
        for si, found in enumerate(stages.run(request(stages, size))):
            for pattern in patterns:
                q, k, scores, a, v, y = (found[str(value.name)] for value in values_of(pattern))
                yield pattern.name, si, Operands(q, k, v), Outcome(y, scores, a, 0)


def visible(name: str) -> Array:
    """Which tokens of the text count in attention to it: both rows of an image have its length."""
    if name in FACTS.attentions:
        return np.ones((1, 1, 1, 1), bool)
    seen = np.arange(max(LENGTHS)) < np.array(LENGTHS * ROWS)[:, None]
    return seen[:, None, None]


@pytest.mark.exact_products
@pytest.mark.parametrize("bits", [8, 4, 3])
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("weights", WEIGHTS)
def test_every_product_is_that_of_numpy(weights: AttentionWeights, form: Form | None, bits: int) -> None:
    checked = 0
    for name, si, operands, outcome in products(weights, bits, form, range(len(SIZES))):
        integers, unit = oracle.scores(operands.q, operands.k, bits, ROWS)
        np.testing.assert_array_equal(np.round(outcome.scores / unit), integers)
        assert_like_oracle(outcome, operands, weights, bits, shift_and_sum(form), si, visible=visible(name))
        checked += 1
    assert checked == sum(size.num_stages for size in SIZES) * 2 * CONFIG.depth


@pytest.mark.parametrize("weights", WEIGHTS)
def test_both_forms_give_the_same_numbers(weights: AttentionWeights) -> None:
    attentive = 0
    both = (products(weights, 6, form, [0]) for form in ("residual", "duplicate"))
    for (name, si, _, residual), (_, _, _, duplicate) in zip(*both, strict=True):
        np.testing.assert_array_equal(residual.y, duplicate.y)
        attentive += int((oracle.orders(residual.weights.mean(2), THETA, PLACES[si]) > 0).sum())
        assert residual.weights.shape == duplicate.weights.shape, name
    assert attentive > 100


@pytest.mark.parametrize("weights", WEIGHTS)
def test_what_pads_a_text_counts_for_nothing(weights: AttentionWeights) -> None:
    """At 3 bits, where the least power of two is not small. Ranges are static: padding would widen dynamic ones."""
    magnitudes = dict.fromkeys(NAMES, Magnitudes(4.0, 2.0, 2.0))
    model = quantize_attention(float_stage(), weights, 3, ROWS, magnitudes, shift_and_sum("residual"), "stage", NAMES)
    stages = InfinityStages(model, CONFIG, SIZES)
    together = request(stages, 1)
    alone = {
        name: array[1:, : LENGTHS[1]] if name in ("text_features", "text_mask") else array
        for name, array in together.items()
    }
    alone |= {name: together[name][1:] for name in ("negative_features", "negative_mask", "uniforms", "forced_bits")}
    for both, one in zip(stages.run(together), stages.run(alone), strict=True):
        np.testing.assert_array_equal(both["tokens"][1], one["tokens"][0])
        np.testing.assert_allclose(both["logits"][1], one["logits"][0], rtol=0, atol=1e-4 * np.ptp(one["logits"]))


def test_the_operator_takes_self_attention_with_shift_and_sum() -> None:
    """Its query and key are turned before they are normalised, which leaves them as VAR's."""
    fused = fuse_integer_attention(float_stage(), "log2", 6, ROWS, None, shift_and_sum("residual"), "stage", NAMES)
    assert fused_attentions(fused) == set(FACTS.attentions)


def test_attentions_to_a_text_are_named_apart() -> None:
    assert FACTS.attentions == ("blocks.0.sa.mix", "blocks.1.sa.mix")
    assert FACTS.cross_attentions == ("blocks.0.ca.mix", "blocks.1.ca.mix")
    patterns = {found.name: found for found in attention_patterns(float_stage().graph)}
    assert [patterns[name].is_masked for name in NAMES] == [False, False, True, True]
