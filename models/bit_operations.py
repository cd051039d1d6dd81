"""Count the operations of a transformer, and what shift-and-sum adds to them (the paper's App. D, Table B).

A product of an a-bit by a b-bit matrix costs a * b bit operations (BOPs) per multiply-add. The convention is the
paper's: one row (no guidance), without the tokenizer's decoder, and adaLN's linear layers at every stage as the
official code runs them (our graphs run them once per image); a shared one it runs once, too. Attention to a text counts
where it is integer, with as many tokens of text as are told; products of floats have no bits.

Checked against Table B, VAR-d16 at 4/6 bits: 24 * (136.9 G blocks + 2.85 G head + 1.03 G adaLN + 0.02 G word_embed)
+ 36 * 9.39 G attention = 3.717 T, the paper's 3.72 T; Eq. 11 is 1.173 G, the paper's 1.17 G. What does not agree:

- Memory. The paper does not say what its baseline of 1.03G holds; ours are the weights and every token's K and V.
  16 T bits (Eq. 11) over all stages, heads and blocks are 7.00 Mbit; its 0.22M is a 32nd of that.
- Eq. 13. The scores of a head sum to 1, so the orders of a head's tokens sum to sum(2n) < 2 / theta, which at theta =
  0.05 bounds Eq. 13 to 16.0 G per row; the paper's 33.35 G is more than two rows could cost by its own formulas.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from nextscale.graph_passes.layer_facts import ADA_LN, BLOCKS, HEAD, WORD_EMBED, StageFacts
from nextscale.runtime._manifest import ModelInfo

Counts = NDArray[np.int64]
Means = NDArray[np.float64]
ATTENTION = "attention"
SCORE_BITS = 16  # scores, shifts and copies are made in 16 bits (App. D)
SHARED_ADA_LIN = "shared_ada_lin.1"  # in every family that has one


@dataclass(frozen=True)
class BitWidths:
    """Bits of weights and activations; "4/6" is 4-bit weights and 6-bit activations."""

    weights: int
    activations: int

    def __str__(self) -> str:
        return f"{self.weights}/{self.activations}"


@dataclass(frozen=True)
class Cost:
    """Memory in bits and operations in BOPs, of one image and row."""

    memory: float
    operations: float

    def __add__(self, other: Cost) -> Cost:
        return Cost(self.memory + other.memory, self.operations + other.operations)


def queries(model: ModelInfo) -> Counts:
    """T' of each stage, the tokens it makes: int64 [S]."""
    return np.array([height * width for height, width in model.stage_sizes], np.int64)


def keys(model: ModelInfo) -> Counts:
    """T of each stage, the tokens it attends to: int64 [S]."""
    return np.cumsum(queries(model))


def multiply_adds(model: ModelInfo, facts: StageFacts, text_tokens: int = 0) -> dict[str, Counts]:
    """Multiply-adds of each part at each stage, int64 [S].

    Args:
        model: the model, at one size.
        facts: of its linear layers at that size (`models.var.layers`, `models.infinity.layers`).
        text_tokens: that integer attention to a text sees; 0 where there is none.
    """
    tokens = queries(model)
    parts = (BLOCKS, ATTENTION, HEAD, ADA_LN, WORD_EMBED, *(layer.part for layer in facts.layers))
    counts = {part: np.zeros_like(tokens) for part in parts}
    counts[ATTENTION] += 2 * model.embed_dim * model.depth * tokens * (keys(model) + text_tokens)
    for layer in facts.layers:
        at_every_stage = layer.part == ADA_LN and layer.name != SHARED_ADA_LIN
        seen = np.ones_like(tokens) if at_every_stage else np.array(layer.tokens)
        counts[layer.part] += layer.shape[0] * layer.shape[1] * seen
    return counts


def bit_operations(model: ModelInfo, facts: StageFacts, bits: BitWidths, text_tokens: int = 0) -> dict[str, Counts]:
    """BOPs of each part at each stage, int64 [S]: attention multiplies two activations, the others a weight and one."""
    linear, attention = bits.weights * bits.activations, bits.activations**2
    found = multiply_adds(model, facts, text_tokens)
    return {part: count * (attention if part == ATTENTION else linear) for part, count in found.items()}


def model_cost(model: ModelInfo, facts: StageFacts, bits: BitWidths, text_tokens: int = 0) -> Cost:
    """The baseline of Table B: all operations; the weights that multiply, and K and V of all tokens."""
    weights = sum(layer.shape[0] * layer.shape[1] for layer in facts.layers)
    cache = 2 * model.embed_dim * model.depth * model.num_tokens
    operations = sum(int(count.sum()) for count in bit_operations(model, facts, bits, text_tokens).values())
    return Cost(bits.weights * weights + bits.activations * cache, operations)


def score_cost(model: ModelInfo, text_tokens: int = 0) -> Cost:
    """Eq. 11, the mean attention to each token: 16 T bits and 16 T' T BOPs a head and stage."""
    heads = model.num_heads * model.depth
    t = keys(model) + text_tokens
    return Cost(SCORE_BITS * heads * int(t.sum()), SCORE_BITS * heads * int((queries(model) * t).sum()))


def duplicate_cost(model: ModelInfo, tokens: Means, copies: Means) -> Cost:
    """Duplicate & shift: 16 (2n - 1) (T' + d) bits and 2n (T' + 16 d) BOPs an attentive token of order n.

    Args:
        model: the model.
        tokens: attentive tokens of an image's row at each stage, over all heads and blocks, float64 [S].
        copies: the sum of their 2n, float64 [S].
    """
    d, t = model.embed_dim // model.num_heads, queries(model)
    memory = SCORE_BITS * ((copies - tokens) * (t + d)).sum()
    return Cost(float(memory), float((copies * (t + SCORE_BITS * d)).sum()))


def aggregate_cost(model: ModelInfo, bits: BitWidths, tokens: Means, copies: Means) -> Cost:
    """Eq. 13, the products of the further copies: (2n - 1) b_a^2 d T' BOPs an attentive token of order n.

    Args are those of `duplicate_cost`.
    """
    d = model.embed_dim // model.num_heads
    return Cost(0.0, float(((copies - tokens) * bits.activations**2 * d * queries(model)).sum()))
