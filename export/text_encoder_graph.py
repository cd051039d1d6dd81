"""T5's encoder as an ONNX graph: token_ids int64 [B, N] -> text_features float32 [B, N, Ct].

The texts of a batch have one length and none is padded, so there is no mask. Linear layers are named as their modules
in the state dict. Symbols: H heads, d their width.
"""

from __future__ import annotations

from functools import partial

import onnx_ir as ir
import torch
from onnxscript import OpBuilder
from torch import Tensor

from nextscale.export.graph_builder import Constants, add_output, finish, linear, new_builder
from nextscale.models._weight import Weight
from nextscale.models.t5.encoder import NORM_EPS, GatedFFN, RMSNorm, SelfAttention, T5Encoder
from nextscale.models.t5.layers import channel_factors

# N is at most this: the positions that the table of biases has.
MAX_TOKENS = 512


def build_text_encoder_graph(encoder: T5Encoder) -> ir.Model:
    """The float32 graph of role `text_encoder` (docs/bundle.md); more than MAX_TOKENS tokens are an error when it runs.

    Weights of other types are made float32 one by one when they are needed.
    """
    builder = new_builder("text_encoder")
    parts = TextEncoderParts(encoder, Constants(builder))
    op = builder.op
    token_ids = builder.input("token_ids", ir.DataType.INT64, ["B", "N"])
    x = op.Gather(parts.constants("shared.weight", _float32(encoder.shared.weight)), token_ids, axis=0)
    x.shape = ir.Shape(["B", "N", encoder.config.embed_dim])
    bias = parts.position_bias(op, token_ids)
    for i in range(encoder.config.depth):
        builder.push_module(f"encoder.block.{i}")
        x = parts.block(op, i, x, bias)
        builder.pop_module()
    x = parts.norm(op, "encoder.final_layer_norm", encoder.encoder.final_layer_norm, x)
    add_output(builder, x, "text_features", ir.DataType.FLOAT, ["B", "N", encoder.config.embed_dim])
    return finish(builder)


class TextEncoderParts:
    """The parts of the graph, in the order in which a text walks through them."""

    def __init__(self, encoder: T5Encoder, constants: Constants) -> None:
        self.encoder, self.config, self.constants = encoder, encoder.config, constants

    def position_bias(self, op: OpBuilder, token_ids: ir.Value) -> ir.Value:
        """What all blocks add to the scores: [1, H, N, N], from a table [H, 2 MAX_TOKENS - 1] of relative positions."""
        table = self.encoder.bias(torch.arange(1 - MAX_TOKENS, MAX_TOKENS))
        position = op.Range(0, op.Squeeze(op.Shape(token_ids, start=1), [0]), 1)
        distance = op.Sub(op.Unsqueeze(position, [0]), op.Unsqueeze(position, [1]))
        index = op.Add(distance, MAX_TOKENS - 1)
        return op.Unsqueeze(op.Gather(self.constants("position_bias", table), index, axis=1), [0])

    def norm(self, op: OpBuilder, name: str, norm: RMSNorm, x: ir.Value) -> ir.Value:
        """weight * x / sqrt(mean(x^2) + eps), in the form that ONNX Runtime makes one operator."""
        power = op.ReduceMean(op.Pow(x, 2.0), [-1], keepdims=1)
        y = op.Div(x, op.Sqrt(op.Add(power, NORM_EPS)))
        return op.Mul(y, self.constants(f"{name}.weight", _float32(norm.weight)))

    def linear(self, op: OpBuilder, name: str, weight: Weight, x: ir.Value) -> ir.Value:
        """[..., in] -> [..., out]."""
        return linear(op, self.constants, name, x, weight, None)

    def block(self, op: OpBuilder, i: int, x: ir.Value, bias: ir.Value) -> ir.Value:
        """One block: x [B, N, Ct] and bias [1, H, N, N] -> [B, N, Ct]."""
        block, name = self.encoder.block(i), f"encoder.block.{i}.layer"
        h = self.norm(op, f"{name}.0.layer_norm", block.attention.layer_norm, x)
        x = op.Add(x, self.attention(op, f"{name}.0.SelfAttention", block.attention.SelfAttention, h, bias))
        h = self.norm(op, f"{name}.1.layer_norm", block.feed_forward.layer_norm, x)
        return op.Add(x, self.ffn(op, f"{name}.1.DenseReluDense", block.feed_forward.DenseReluDense, h))

    def attention(self, op: OpBuilder, name: str, attention: SelfAttention, x: ir.Value, bias: ir.Value) -> ir.Value:
        """softmax(q k + bias) v: [B, N, Ct] -> [B, N, Ct]."""
        q, k, v = (
            op.Reshape(
                self.linear(op, f"{name}.{part}", _float32(layer.weight), x),
                [0, 0, self.config.num_heads, self.config.head_dim],
            )
            for part, layer in (("q", attention.q), ("k", attention.k), ("v", attention.v))
        )
        q, v = (op.Transpose(part, perm=[0, 2, 1, 3]) for part in (q, v))
        scores = op.MatMul(q, op.Transpose(k, perm=[0, 2, 3, 1]), _name=f"{name}.scores")
        weights = op.Softmax(op.Add(scores, bias), axis=-1)
        out = op.Transpose(op.MatMul(weights, v, _name=f"{name}.mix"), perm=[0, 2, 1, 3])
        return self.linear(
            op, f"{name}.o", _float32(attention.o.weight), op.Reshape(out, [0, 0, self.config.inner_dim])
        )

    def ffn(self, op: OpBuilder, name: str, ffn: GatedFFN, x: ir.Value) -> ir.Value:
        """wo(gelu(wi_0(x)) * wi_1(x)): [B, N, Ct] -> [B, N, Ct]; `channel_factors` go from wo to wi_1."""
        factors = channel_factors(ffn.wo.weight.detach())
        rows = partial(_scaled, ffn.wi_1.weight.detach(), 1 / factors[:, None])
        columns = partial(_scaled, ffn.wo.weight.detach(), factors)
        gate = op.Gelu(self.linear(op, f"{name}.wi_0", _float32(ffn.wi_0.weight), x), approximate="tanh")
        values = self.linear(op, f"{name}.wi_1", rows, x)
        return self.linear(op, f"{name}.wo", columns, op.Mul(gate, values))


def _float32(weight: Tensor) -> Weight:
    """The weight, or what makes it float32."""
    weight = weight.detach()
    return weight if weight.dtype == torch.float32 else weight.float


def _scaled(weight: Tensor, factors: Tensor) -> Tensor:
    return weight.float() * factors
