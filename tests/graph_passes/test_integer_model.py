"""What a recipe and facts make of layers, of a model that is no VAR."""

from __future__ import annotations

import math

import numpy as np
import pytest

from nextscale.graph_passes.integer_model import IntegerModel, attention_bits, token_zero_point
from nextscale.graph_passes.layer_facts import GELU_MINIMUM, TEXT, LayerFacts, StageFacts
from nextscale.graph_passes.qparams import Range
from nextscale.graph_passes.recipe import ActivationRecipe, AttentionRecipe, Granularity, LayerChoice, Recipe
from nextscale.runtime._errors import NextscaleError

KNOWN = Range(np.array([-1], np.float32), np.array([2], np.float32))


def layer(name: str, reads: str, **options: object) -> LayerFacts:
    return LayerFacts(name, (8, 8), (1, 4), "part", reads, **options)  # type: ignore[arg-type]


# Two blocks whose keys and values come from one text, and a pool of that text which stays float: it is not listed.
FACTS = StageFacts(
    (
        layer("time.linear", "time", known=KNOWN),
        *(layer(f"{i}.cross.{part}", "text", equalizable=True, unit=f"{i}.cross") for i in (0, 1) for part in "kv"),
        layer("0.mlp.down", "0.mlp.down", minimum=-0.17, unit="0.mlp"),
        layer("out", "out", rows=1, unit="out"),
    ),
    ("0.cross.mix", "1.cross.mix"),
    "2B",
    "scale",
)


def decide(granularity: Granularity, layers: dict[str, LayerChoice] | None = None, bits: int = 8) -> IntegerModel:
    return IntegerModel.decide(Recipe("r", activations=ActivationRecipe(bits, granularity), layers=layers or {}), FACTS)


@pytest.mark.parametrize(
    ("granularity", "expected"),
    [
        ("tensor", ["tensor"] * 7),
        ("stage", ["tensor", *["stage"] * 6]),
        ("pair", ["tensor", *["pair"] * 5, "stage"]),
        ("image", ["tensor", *["image"] * 6]),
        ("token", ["tensor", *["token"] * 6]),
    ],
)
def test_a_known_range_is_static_and_one_row_is_no_pair(granularity: Granularity, expected: list[str]) -> None:
    integer = decide(granularity)
    assert [found.granularity for found in integer.layers.values()] == expected
    assert integer.known == {"time.linear": KNOWN}
    observed = [integer.static, integer.pairs, integer.by_image, list(integer.by_token)]
    assert sorted(name for names in observed for name in names) == sorted({*integer.layers} - {"time.linear"})


@pytest.mark.parametrize(("granularity", "expected"), [("image", "token"), ("token", "token"), ("stage", "stage")])
def test_a_text_has_no_range_an_image(granularity: Granularity, expected: str) -> None:
    """It would hold the padding of the batch, which depends on the other images."""
    of_text = LayerFacts("text.linear", (8, 8), (4, 0), TEXT, "text", minimum=GELU_MINIMUM)
    facts = StageFacts((of_text,), (), "2B", "scale")
    layers: dict[str, LayerChoice] = {"text.linear": granularity}
    found = IntegerModel.decide(Recipe("r", layers=layers), facts).layers["text.linear"]
    assert (found.granularity, found.zero_point) == (expected, {"token": 32}.get(expected))


def test_layers_that_a_recipe_leaves_float() -> None:
    integer = decide("image", {"v": "float", "0.cross.v": "stage", "time.linear": "float"})
    assert list(integer.layers) == ["0.cross.k", "0.cross.v", "1.cross.k", "0.mlp.down", "out"]
    assert (integer.static, integer.known) == (["0.cross.v"], {})
    with pytest.raises(NextscaleError, match=r'layers\."pool" is not a linear layer of the model'):
        decide("image", {"pool": "image"})
    assert IntegerModel.decide(Recipe("fp32", precision="fp32"), FACTS).layers == {}


def test_one_range_or_one_for_each_stage() -> None:
    ends = np.array([-1, -3], np.float32), np.array([5, 2], np.float32)
    by_stage = decide("stage").layers["out"].static_range(Range(*ends))
    alone = decide("tensor").layers["out"].static_range(Range(*ends))
    assert (by_stage.minimum.tolist(), by_stage.maximum.tolist()) == ([-1, -3], [5, 2])
    assert (alone.minimum.tolist(), alone.maximum.tolist()) == ([-3], [5])


def test_layers_of_one_input_share_their_equalization_across_blocks() -> None:
    assert FACTS.equalizable() == {"text": ["0.cross.k", "0.cross.v", "1.cross.k", "1.cross.v"]}


def test_what_reconstruction_learns() -> None:
    learned = decide("image", {"0.cross.k": "float"}).learned()
    assert [(found.name, found.unit) for found in learned] == [
        ("0.cross.v", "0.cross"),
        ("1.cross.k", "1.cross"),
        ("1.cross.v", "1.cross"),
        ("0.mlp.down", "0.mlp"),
        ("out", "out"),
    ]


@pytest.mark.parametrize("reduce_range", [False, True])
def test_attention(reduce_range: bool) -> None:
    recipe = Recipe("r", attention=AttentionRecipe("integer", "tensor", "log2", "residual"))
    integer = IntegerModel.decide(recipe, FACTS, reduce_range)
    assert integer.attention is not None
    assert integer.static_attention
    assert integer.attention.names == FACTS.attentions
    assert (integer.attention.bits, integer.attention.weights) == (7 if reduce_range else 8, "log2")
    assert decide("image").attention is None
    assert [attention_bits(bits, True) for bits in (4, 7, 8)] == [4, 7, 7]


# The zero point of a range for each token


def gelu(x: np.ndarray) -> np.ndarray:
    return 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


def token_error(x: np.ndarray, bits: int, zero_point: int) -> float:
    """Squared error relative to the values, each row in its own range: s = max(max / (M - z), -min / z)."""
    qmax = 2**bits - 1
    scale = np.maximum(x.max(-1, keepdims=True) / (qmax - zero_point), -x.min(-1, keepdims=True) / zero_point)
    codes = np.clip(np.round(x / scale) + zero_point, 0, qmax)
    return float(np.square((codes - zero_point) * scale - x).sum() / np.square(x).sum())


@pytest.mark.parametrize("bits", [2, 3, 4, 5, 6, 7, 8])
def test_the_low_zero_point_has_less_error_behind_gelu(bits: int) -> None:
    """Than the middle, and at 2 bits three times less: 2 would leave a single code for what is positive."""
    x = gelu(np.random.default_rng(bits).normal(0, 1, (64, 1024)))
    low, middle = token_zero_point(-0.1701, bits), token_zero_point(-math.inf, bits)
    assert (low, middle) == ({2: 1, 3: 1, 4: 2, 5: 4, 6: 8, 7: 16, 8: 32}[bits], 2 ** (bits - 1))
    assert token_error(x, bits, low) < 0.45 * token_error(x, bits, middle)
    if bits == 2:
        errors = [token_error(x, bits, zero_point) for zero_point in (1, 2)]
        assert errors == pytest.approx([0.24, 0.69], abs=0.01)


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_the_middle_has_less_error_where_both_signs_come(bits: int) -> None:
    x = np.random.default_rng(bits).normal(0, 0.05, (64, 1024))
    assert token_zero_point(-math.inf, bits) == 2 ** (bits - 1)
    if bits > 2:
        assert token_error(x, bits, 2 ** (bits - 1)) < 0.3 * token_error(x, bits, max(1, 2**bits // 8))
