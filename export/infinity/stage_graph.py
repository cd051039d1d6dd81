"""One stage of Infinity as an ONNX graph: text, embed, transformer, guidance, sampling, accumulation into f_hat.

This one graph is `stage.onnx`; `generate_graph.py` runs it in a Loop. The inputs and outputs are those of
docs/bundle.md, and one graph serves all sizes that it is built for (`_stage_tables`). Symbols: B images, 2B rows
(conditional, then unconditional), l tokens of the stage, T earlier tokens, N tokens of text, D bits of a token.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir
from onnxscript import OpBuilder

from nextscale.export.bit_sampling_graph import sample_bits
from nextscale.export.graph_builder import Constants, Shape, add_output, finish, linear, new_builder, rows, scalar_at
from nextscale.export.infinity._patches import to_maps, to_tokens
from nextscale.export.infinity._stage_tables import Stage, StageTables
from nextscale.export.infinity._text_parts import KeyValue, RequestText, TextParts, TextState
from nextscale.graph_passes._graph_builder import GraphBuilder
from nextscale.graph_passes._graph_edit import MICROSOFT
from nextscale.graph_passes.layer_facts import GUIDED_AXIS, SIZE_INPUT, STAGE_INPUT
from nextscale.models.equalization import NOT_EQUALIZED, Equalization
from nextscale.models.infinity.folded import FoldedInfinity
from nextscale.models.infinity.schedules import Size
from nextscale.models.infinity.transformer import Infinity, InfinityConfig
from nextscale.models.transformer_parts import NORM_EPS

FLOAT, INT64 = ir.DataType.FLOAT, ir.DataType.INT64


def build_stage_graph(
    infinity: Infinity, sizes: Sequence[Size], equalization: Equalization = NOT_EQUALIZED
) -> ir.Model:
    """The float32 graph of one stage of `infinity`.

    Args:
        infinity: the model; its weights are referenced, not copied.
        sizes: those of the bundle, in the order of its list.
        equalization: changes the weights, not the function.
    Raises:
        ValueError: there is no size, or one is not the model's.
    """
    config = infinity.config
    builder = new_builder("stage")
    op, constants = builder.op, Constants(builder)
    parts = StageParts(infinity, sizes, constants, equalization)
    bits: Shape = ["B", "L", config.token_bits]
    latent: Shape = ["B", config.latent_channels, "h", "w"]

    stage_index = builder.input(STAGE_INPUT, INT64, [])
    size = builder.input(SIZE_INPUT, INT64, [])
    text = RequestText(
        builder.input("text_features", FLOAT, ["B", "Lt", config.text_channels]),
        builder.input("text_mask", INT64, ["B", "Lt"]),
        builder.input("negative_features", FLOAT, ["B", "Ln", config.text_channels]),
        builder.input("negative_mask", INT64, ["B", "Ln"]),
    )
    uniforms = builder.input("uniforms", FLOAT, bits)
    forced = builder.input("forced_bits", INT64, bits)
    cfg_scale = builder.input("cfg_scale", FLOAT, ["S"])
    tau = builder.input("tau", FLOAT, ["S"])
    top_p = builder.input("top_p", FLOAT, [])
    f_hat = builder.input("f_hat", FLOAT, latent)
    text_past, past = _text_state(builder, config), _caches(builder, config, "past_key_values", "T")

    stage = parts.tables.stage(op, size, stage_index)
    is_first = op.Unsqueeze(op.Cast(op.Equal(stage_index, 0), to=INT64), [0])
    state, start = parts.text.read(op, text, text_past, is_first)
    x = parts.embed(op, start, f_hat, stage, is_first)
    num_modulations = 6 * config.depth + 2
    modulations = op.Split(
        state.modulation,
        axis=1,
        num_outputs=num_modulations,
        _outputs=[f"modulation.{i}" for i in range(num_modulations)],
    )
    level = op.Gather(constants("lvl_embed.weight", infinity.lvl_embed.weight), stage_index, axis=0)
    present = []
    for i, cache in enumerate(past):
        builder.push_module(f"blocks.{i}")
        if i in config.level_blocks:
            x = op.Add(x, level)
        x, cache = parts.block(op, i, x, modulations[6 * i : 6 * i + 6], state, cache, stage)
        present.append(cache)
        builder.pop_module()
    logits = parts.guided_logits(op, x, modulations[-2], modulations[-1], scalar_at(op, cfg_scale, stage_index))
    builder.push_module("sampling")
    uniforms, forced = (rows(op, x, stage.begin, stage.end, 1) for x in (uniforms, forced))
    tokens = sample_bits(op, logits, uniforms, forced, scalar_at(op, tau, stage_index), top_p)
    builder.pop_module()
    f_hat = parts.accumulate(op, tokens, f_hat, stage)

    add_output(builder, tokens, "tokens", INT64, ["B", "l", config.token_bits])
    add_output(builder, logits, "logits", FLOAT, ["B", "l", config.token_bits])
    add_output(builder, f_hat, "present.f_hat", FLOAT, latent)
    # The text is longer here than in the inputs of stage 0, which have none.
    add_output(builder, state.modulation, "present.modulation", FLOAT, [GUIDED_AXIS, num_modulations, config.embed_dim])
    add_output(builder, state.bias, "present.text_bias", FLOAT, [GUIDED_AXIS, 1, 1, "present N"])
    _add_caches(builder, config, state.blocks, "present.text", "present N")
    _add_caches(builder, config, present, "present", "T + l")
    return finish(builder)


def _text_state(builder: GraphBuilder, config: InfinityConfig) -> TextState:
    """The inputs that carry the text."""
    return TextState(
        builder.input("modulation", FLOAT, [GUIDED_AXIS, "M", config.embed_dim]),
        builder.input("text_bias", FLOAT, [GUIDED_AXIS, 1, 1, "N"]),
        _caches(builder, config, "text", "N"),
    )


def _caches(builder: GraphBuilder, config: InfinityConfig, name: str, length: str) -> list[KeyValue]:
    """The inputs that carry the keys and values of each block."""
    rows, heads, head_dim = GUIDED_AXIS, config.num_heads, config.head_dim
    return [
        (
            builder.input(f"{name}.{i}.key", FLOAT, [rows, heads, head_dim, length]),
            builder.input(f"{name}.{i}.value", FLOAT, [rows, heads, length, head_dim]),
        )
        for i in range(config.depth)
    ]


def _add_caches(
    builder: GraphBuilder, config: InfinityConfig, caches: Sequence[KeyValue], name: str, length: str
) -> None:
    """The outputs that do."""
    rows, heads, head_dim = GUIDED_AXIS, config.num_heads, config.head_dim
    for i, (key, value) in enumerate(caches):
        add_output(builder, key, f"{name}.{i}.key", FLOAT, [rows, heads, head_dim, length])
        add_output(builder, value, f"{name}.{i}.value", FLOAT, [rows, heads, length, head_dim])


class StageParts:
    """The parts of the stage graph, in the order in which a token map walks through them."""

    def __init__(
        self, infinity: Infinity, sizes: Sequence[Size], constants: Constants, equalization: Equalization
    ) -> None:
        self.infinity, self.config, self.constants = infinity, infinity.config, constants
        self.folded = FoldedInfinity(infinity, equalization)
        self.tables = StageTables(self.config, sizes, constants)
        self.text = TextParts(self.folded, constants)
        self.rope = self.tables.rope()

    def embed(self, op: OpBuilder, start: ir.Value, f_hat: ir.Value, stage: Stage, is_first: ir.Value) -> ir.Value:
        """The stage's input before its level embedding, [2B, l, C]: the text's at stage 0, word_embed of f_hat later.

        f_hat is resized to the stage without antialiasing; at stage 0 none of its tokens is taken.
        """
        config = self.config
        maps = resize(op, f_hat, op.Mul(stage.sides, [config.patch]))
        inputs = to_tokens(op, maps, stage.sides, config.patch, config.latent_channels)
        inputs = self.linear(op, "word_embed", rows(op, inputs, is_first, [2**31 - 1], 1))
        x = op.Concat(start, op.Concat(inputs, inputs, axis=0), axis=1)
        x.shape = ir.Shape([GUIDED_AXIS, "l", config.embed_dim])
        return x

    def linear(self, op: OpBuilder, name: str, x: ir.Value) -> ir.Value:
        """A folded layer: [..., in] -> [..., out]."""
        return linear(op, self.constants, name, x, self.folded.weight(name), self.folded.bias(name))

    def layer_norm(self, op: OpBuilder, x: ir.Value, scale: ir.Value, shift: ir.Value) -> ir.Value:
        """Modulated LayerNorm: x [2B, l, C], scale (1 + adaLN's) and shift [2B, 1, C]."""
        ones = self.constants("layer_norm.ones", np.ones(self.config.embed_dim, np.float32))
        return op.Add(op.Mul(op.LayerNormalization(x, ones, axis=-1, epsilon=NORM_EPS), scale), shift)

    def block(
        self,
        op: OpBuilder,
        i: int,
        x: ir.Value,
        modulations: Sequence[ir.Value],
        text: TextState,
        cache: KeyValue,
        stage: Stage,
    ) -> tuple[ir.Value, KeyValue]:
        """One block: x [2B, l, C], past key [2B, H, d, T] and value [2B, H, T, d] -> x and the present ones."""
        gamma1, gamma2, scale1, scale2, shift1, shift2 = modulations
        h, cache = self.self_attention(op, i, self.layer_norm(op, x, scale1, shift1), cache, stage)
        x = op.Add(x, op.Mul(h, gamma1))
        weight, bias = self.folded.ca_norm(i)
        norm = [self.constants(f"blocks.{i}.ca_norm.{part}", t) for part, t in (("weight", weight), ("bias", bias))]
        h = op.LayerNormalization(x, *norm, axis=-1, epsilon=NORM_EPS)
        x = op.Add(x, self.cross_attention(op, i, h, *text.blocks[i], text.bias))
        h = self.layer_norm(op, x, scale2, shift2)
        h = op.Gelu(self.linear(op, f"blocks.{i}.ffn.fc1", h), approximate="tanh")
        h = self.linear(op, f"blocks.{i}.ffn.fc2", h)
        return op.Add(x, op.Mul(h, gamma2)), cache

    def self_attention(
        self, op: OpBuilder, i: int, x: ir.Value, cache: KeyValue, stage: Stage
    ) -> tuple[ir.Value, KeyValue]:
        """softmax(q K) V over this stage's tokens and the past ones; K is kept transposed and turned, [2B, H, d, T]."""
        op.builder.push_module("sa")
        name = f"blocks.{i}.sa"
        q, k, v = (self.linear(op, f"{name}.{part}", x) for part in "qkv")
        q, k, v = self.directions(op, q, stage), self.directions(op, k, stage), self.text.by_head(op, v)
        query_scale = self.constants(f"{name}.query_scale", self.folded.query_scale(i))
        query = op.Mul(op.Transpose(q, perm=[0, 2, 1, 3]), query_scale)
        key = op.Concat(cache[0], op.Transpose(k, perm=[0, 2, 3, 1]), axis=3)
        value = op.Concat(cache[1], op.Transpose(v, perm=[0, 2, 1, 3]), axis=2)
        weights = op.Softmax(op.MatMul(query, key, _name=f"{name}.scores"), axis=-1)
        out = self.joined(op, name, op.MatMul(weights, value, _name=f"{name}.mix"))
        op.builder.pop_module()
        return out, (key, value)

    def directions(self, op: OpBuilder, x: ir.Value, stage: Stage) -> ir.Value:
        """l2-normalised, then turned: [2B, l, C] -> [2B, l, H, d].

        What turns keeps lengths and may come first, which leaves attention as VAR's, for all that looks for that.
        Interpolated cos and sin are shorter than 1, and do not turn only.
        """
        if self.config.rope_mode != 1:
            return op.LpNormalization(self.text.by_head(op, self.turn(op, x, stage)), axis=-1, p=2)
        x = op.LpNormalization(self.text.by_head(op, x), axis=-1, p=2)
        return self.text.by_head(op, self.turn(op, op.Reshape(x, [0, 0, self.config.embed_dim]), stage))

    def turn(self, op: OpBuilder, x: ir.Value, stage: Stage) -> ir.Value:
        """RoPE: the halves of each head's channels, x1 cos - x2 sin and x1 sin + x2 cos; [2B, l, C] both."""
        turned = op.RotaryEmbedding(x, stage.position, *self.rope, num_heads=self.config.num_heads, _domain=MICROSOFT)
        turned.dtype, turned.shape = FLOAT, ir.Shape([GUIDED_AXIS, "l", self.config.embed_dim])
        return turned

    def cross_attention(
        self, op: OpBuilder, i: int, x: ir.Value, key: ir.Value, value: ir.Value, bias: ir.Value
    ) -> ir.Value:
        """softmax(q K + bias) V over the text's tokens: [2B, l, C] both; 1/sqrt(d) is in the weight of q."""
        op.builder.push_module("ca")
        name = f"blocks.{i}.ca"
        q = op.Transpose(self.text.by_head(op, self.linear(op, f"{name}.q", x)), perm=[0, 2, 1, 3])
        weights = op.Softmax(op.Add(op.MatMul(q, key, _name=f"{name}.scores"), bias), axis=-1)
        out = self.joined(op, name, op.MatMul(weights, value, _name=f"{name}.mix"))
        op.builder.pop_module()
        return out

    def joined(self, op: OpBuilder, name: str, out: ir.Value) -> ir.Value:
        """The heads' results [2B, H, l, d] through proj: [2B, l, C]."""
        out = op.Reshape(op.Transpose(out, perm=[0, 2, 1, 3]), [0, 0, self.config.embed_dim])
        return self.linear(op, f"{name}.proj", out)

    def guided_logits(
        self, op: OpBuilder, x: ir.Value, scale: ir.Value, shift: ir.Value, cfg_scale: ir.Value
    ) -> ir.Value:
        """cfg cond + (1 - cfg) uncond: x [2B, l, C], cfg_scale [1] -> log-odds of 1, [B, l, D].

        The head is linear, so guidance is mixed before it, at half its work.
        """
        h = self.layer_norm(op, x, scale, shift)
        cond, uncond = op.Split(h, axis=0, num_outputs=2, _outputs=["head.cond", "head.uncond"])
        mixed = op.Add(op.Mul(cond, cfg_scale), op.Mul(uncond, op.Sub(1.0, cfg_scale)))
        return self.linear(op, "head", mixed)

    def accumulate(self, op: OpBuilder, tokens: ir.Value, f_hat: ir.Value, stage: Stage) -> ir.Value:
        """f_hat [B, c, h, w] and the codes (2 bit - 1) / sqrt(c) of tokens [B, l, D], resized to it."""
        config = self.config
        maps = to_maps(op, op.Cast(tokens, to=FLOAT), stage.sides, config.patch, config.latent_channels)
        codes = op.Mul(op.Sub(op.Mul(maps, 2.0), 1.0), config.latent_channels**-0.5)
        return op.Add(f_hat, resize(op, codes, op.Shape(f_hat, start=2)))


def resize(op: OpBuilder, maps: ir.Value, sides: ir.Value) -> ir.Value:
    """Bilinear, without antialiasing: [B, c, ., .] -> [B, c, *sides]; sides are int64 [2]."""
    shape = op.Concat(op.Shape(maps, end=2), sides, axis=0)
    return op.Resize(maps, None, None, shape, mode="linear", coordinate_transformation_mode="half_pixel")
