"""What a text gives the stage graph: made at stage 0, carried, and never made again.

At later stages the text has no rows, so that nothing of it is computed; why there is no If is told at VAR's `embed`.
Symbols: B images, 2B rows (conditional, then unconditional), N tokens of the longer of text and negative text, R rows:
2B at stage 0 and none later.
"""

from __future__ import annotations

from dataclasses import dataclass

import onnx_ir as ir
from onnxscript import OpBuilder

from nextscale.export.graph_builder import Constants, linear, rows
from nextscale.models.infinity.folded import FoldedInfinity
from nextscale.models.infinity.layers import HEAD_ADA_LIN, POOL, SHARED_ADA_LIN, TEXT_IN, TEXT_OUT
from nextscale.models.transformer_parts import NORM_EPS

FLOAT, INT64 = ir.DataType.FLOAT, ir.DataType.INT64
KeyValue = tuple[ir.Value, ir.Value]
# Added to the scores of what is no token: exp of it is 0, and it is finite, so that a text without any gives no NaN.
MASKED = -1e9


@dataclass(frozen=True)
class RequestText:
    """The request's inputs: features float32 [B, Lt, Ct] and [B, Ln, Ct], masks int64 [B, Lt] and [B, Ln]."""

    features: ir.Value
    mask: ir.Value
    negative_features: ir.Value
    negative_mask: ir.Value


@dataclass(frozen=True)
class TextState:
    """What is carried.

    Attributes:
        modulation: adaLN's of all blocks and the head, [2B, 6 depth + 2, C].
        bias: on the scores of cross-attention, [2B, 1, 1, N].
        blocks: keys [2B, H, d, N] and values [2B, H, N, d] of each block's cross-attention.
    """

    modulation: ir.Value
    bias: ir.Value
    blocks: list[KeyValue]


class TextParts:
    """The text's part of the stage graph, in the order in which it is computed."""

    def __init__(self, folded: FoldedInfinity, constants: Constants) -> None:
        self.folded, self.constants, self.config = folded, constants, folded.infinity.config

    def read(
        self, op: OpBuilder, request: RequestText, past: TextState, is_first: ir.Value
    ) -> tuple[TextState, ir.Value]:
        """The state with what stage 0 makes of the text, and the first stage's input before its level embedding.

        Args:
            request: of the caller.
            past: the state; empty at stage 0.
            is_first: 1 at stage 0, 0 later: int64 [1].
        Returns:
            the state, and float32 [2B, 1, C] at stage 0, [2B, 0, C] later.
        """
        features, visible = self.guided_text(op, request, is_first)
        bias = op.Unsqueeze(op.Where(visible, 0.0, MASKED), [1, 2])
        guided_rows = op.Shape(past.modulation, end=1)
        normed = self.norm(op, features)
        cond = self.pool(op, normed, bias)
        hidden = op.Gelu(self.linear(op, TEXT_IN, normed), approximate="tanh")
        projected = self.linear(op, TEXT_OUT, hidden)

        def carried(past: ir.Value, made: ir.Value, shape: list[int]) -> ir.Value:
            return _append(op, past, made, guided_rows, shape)

        c, heads, d = self.config.embed_dim, self.config.num_heads, self.config.head_dim
        blocks = []
        for i, (key, value) in enumerate(past.blocks):
            k, v = (self.by_head(op, self.linear(op, f"blocks.{i}.ca.{part}", projected)) for part in "kv")
            key = carried(key, op.Transpose(k, perm=[0, 2, 3, 1]), [heads, d, -1])
            blocks.append((key, carried(value, op.Transpose(v, perm=[0, 2, 1, 3]), [heads, -1, d])))
        modulation = carried(past.modulation, self.modulation(op, cond), [-1, c])
        state = TextState(modulation, carried(past.bias, bias, [1, 1, -1]), blocks)
        start = op.Add(cond, self.constants("pos_start", self.folded.infinity.pos_start))
        return state, _of_shape(op, start, guided_rows, [-1, c])

    def guided_text(self, op: OpBuilder, request: RequestText, is_first: ir.Value) -> tuple[ir.Value, ir.Value]:
        """Both rows' features [R, N, Ct], and which of them are tokens, bool [R, N].

        Where no token of a negative text is visible, the unconditional row is what the model learned for no text, as
        long as the conditional one; a text that is longer than that can be is an error when it runs.
        """
        length, negative_length = (op.Shape(mask, start=1) for mask in (request.mask, request.negative_mask))
        longest = op.Max(length, negative_length)
        images = op.Mul(is_first, op.Shape(request.mask, end=1))

        def padded(x: ir.Value, length: ir.Value, axis: int) -> ir.Value:
            return op.Pad(x, op.Concat([0], op.Sub(longest, length), axis=0), None, [axis])

        text, mask = (padded(rows(op, x, [0], images, 0), length, 1) for x in (request.features, request.mask))
        negative, negative_mask = (
            padded(rows(op, x, [0], images, 0), negative_length, 1)
            for x in (request.negative_features, request.negative_mask)
        )
        learned = self.constants("cfg_uncond", self.folded.infinity.cfg_uncond)
        learned = op.Unsqueeze(padded(rows(op, learned, [0], length, 0), length, 0), [0])
        has_negative = op.Cast(op.ReduceSum(negative_mask, [1], keepdims=1), to=ir.DataType.BOOL)
        unconditional = op.Where(op.Unsqueeze(has_negative, [2]), negative, learned)
        visible = op.Concat(mask, op.Where(has_negative, negative_mask, mask), axis=0)
        return op.Concat(text, unconditional, axis=0), op.Cast(visible, to=ir.DataType.BOOL)

    def linear(self, op: OpBuilder, name: str, x: ir.Value) -> ir.Value:
        """A folded layer: [..., in] -> [..., out]."""
        return linear(op, self.constants, name, x, self.folded.weight(name), self.folded.bias(name))

    def by_head(self, op: OpBuilder, x: ir.Value) -> ir.Value:
        """[R, N, C] -> [R, N, H, d]."""
        return op.Reshape(x, [0, 0, self.config.num_heads, self.config.head_dim])

    def norm(self, op: OpBuilder, features: ir.Value) -> ir.Value:
        """RMSNorm, in the form that ONNX Runtime makes one operator: [R, N, Ct]."""
        power = op.ReduceMean(op.Pow(features, 2.0), [-1], keepdims=1)
        y = op.Div(features, op.Sqrt(op.Add(power, NORM_EPS)))
        return op.Mul(y, self.constants("text_norm.weight", self.folded.infinity.text_norm.weight))

    def pool(self, op: OpBuilder, normed: ir.Value, bias: ir.Value) -> ir.Value:
        """The text as one vector: [R, N, Ct] and [R, 1, 1, N] -> cond [R, 1, C]."""
        heads, c = self.config.pool_heads, self.config.embed_dim
        scores = op.Unsqueeze(op.Transpose(self.linear(op, f"{POOL}.scores", normed), perm=[0, 2, 1]), [2])
        weights = op.Softmax(op.Add(scores, bias), axis=-1)
        values = op.Reshape(self.linear(op, f"{POOL}.v", normed), [0, 0, heads, c // heads])
        pooled = op.MatMul(weights, op.Transpose(values, perm=[0, 2, 1, 3]), _name=f"{POOL}.mix")
        return self.linear(op, f"{POOL}.proj", op.Reshape(pooled, [0, 1, c]))

    def modulation(self, op: OpBuilder, cond: ir.Value) -> ir.Value:
        """gamma1, gamma2, 1 + scale1, 1 + scale2, shift1, shift2 of each block and 1 + scale, shift of the head.

        The text's vector [R, 1, C] -> [R, 6 depth + 2, C]. The ones are added here, once an image, not at every use.
        """
        c, depth, constants = self.config.embed_dim, self.config.depth, self.constants
        activated = op.Mul(cond, op.Sigmoid(cond))

        def ada_lin(name: str) -> ir.Value:
            return linear(op, constants, name, activated, *self.folded.modulation(name))

        blocks = op.Add(ada_lin(SHARED_ADA_LIN), constants("ada_gss", self.folded.block_modulations()))
        gains = self.folded.gains()
        if gains is not None:
            blocks = op.Mul(blocks, constants("ada_gains", gains))
        parts = (op.Reshape(blocks, [0, 6 * depth, c]), op.Reshape(ada_lin(HEAD_ADA_LIN), [0, 2, c]))
        return op.Concat(*parts, axis=1)


def _of_shape(op: OpBuilder, made: ir.Value, guided_rows: ir.Value, shape: list[int]) -> ir.Value:
    """[R, ...] -> [2B, *shape], whose axis of -1 has no length where there are no rows."""
    return op.Reshape(made, op.Concat(guided_rows, shape, axis=0), allowzero=1)


def _append(op: OpBuilder, past: ir.Value, made: ir.Value, guided_rows: ir.Value, shape: list[int]) -> ir.Value:
    """The state with what stage 0 made, along the axis where `shape` has -1."""
    return op.Concat(past, _of_shape(op, made, guided_rows, shape), axis=1 + shape.index(-1))
