"""One stage of next-scale prediction as an ONNX graph: embed, transformer, guidance, sampling, accumulation into f_hat.

This one graph is `stage.onnx`; `generate_graph.py` runs it in a Loop. The inputs and outputs are those of
docs/bundle.md. Symbols: B images, 2B rows (conditional, then unconditional), l tokens of the stage, T earlier tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import numpy as np
import onnx_ir as ir
import torch
from onnxscript import OpBuilder

from nextscale.export.graph_builder import Constants, add_output, branch, finish, linear, new_builder, rows, scalar_at
from nextscale.export.sampling_graph import sample, smooth_weights
from nextscale.graph_passes.layer_facts import GUIDED_AXIS, STAGE_INPUT
from nextscale.models.equalization import NOT_EQUALIZED, Equalization
from nextscale.models.transformer_parts import NORM_EPS
from nextscale.models.var.folded import FoldedVAR
from nextscale.models.var.layers import HEAD_ADA_LIN, SHARED_ADA_LIN
from nextscale.models.var.multi_scale_quantizer import MultiScaleQuantizer, Phi, phi_index
from nextscale.models.var.resampling import downsampling_matrix, upsampling_matrix
from nextscale.models.var.transformer import VAR, Block

FLOAT, INT64 = ir.DataType.FLOAT, ir.DataType.INT64


@dataclass(frozen=True)
class Span:
    """Where a stage's tokens lie among all L: int64 [1] each."""

    begin: ir.Value
    end: ir.Value


def build_stage_graph(var: VAR, quantizer: MultiScaleQuantizer, equalization: Equalization = NOT_EQUALIZED) -> ir.Model:
    """The float32 graph of one stage of `var`, whose tokens `quantizer` turns into the latent.

    `equalization` changes the weights, not the function.
    """
    config = var.config
    builder = new_builder("stage")
    op = builder.op
    parts = StageParts(var, quantizer, Constants(builder), equalization)
    heads, head_dim, c, side = config.num_heads, config.head_dim, config.embed_dim, config.patch_nums[-1]
    latent: list[int | str] = ["B", config.z_channels, side, side]
    num_modulations = 6 * config.depth + 2

    stage = builder.input(STAGE_INPUT, INT64, [])
    labels = builder.input("class_labels", INT64, ["B"])
    uniforms = builder.input("uniforms", FLOAT, ["B", config.num_tokens])
    forced = builder.input("forced_tokens", INT64, ["B", config.num_tokens])
    cfg_scale = builder.input("cfg_scale", FLOAT, [])
    top_k = builder.input("top_k", INT64, [])
    top_p = builder.input("top_p", FLOAT, [])
    smooth_uniforms = builder.input("smooth_uniforms", FLOAT, ["B", "N", config.vocab_size])
    f_hat = builder.input("f_hat", FLOAT, latent)
    modulation = builder.input("modulation", FLOAT, [GUIDED_AXIS, "M", c])
    past = [
        (
            builder.input(f"past_key_values.{i}.key", FLOAT, [GUIDED_AXIS, heads, head_dim, "T"]),
            builder.input(f"past_key_values.{i}.value", FLOAT, [GUIDED_AXIS, heads, "T", head_dim]),
        )
        for i in range(config.depth)
    ]

    span = parts.span(op, stage)
    modulation, x = parts.embed(op, stage, span, labels, f_hat, modulation)
    modulations = op.Split(
        modulation,
        axis=1,
        num_outputs=num_modulations,
        _outputs=[f"modulation.{i}" for i in range(num_modulations)],
    )
    present = []
    for i, (key, value) in enumerate(past):
        builder.push_module(f"blocks.{i}")
        x, key, value = parts.block(op, i, x, modulations[6 * i : 6 * i + 6], key, value)
        present.append((key, value))
        builder.pop_module()
    logits = parts.guided_logits(op, x, modulations[-2], modulations[-1], stage, cfg_scale)
    builder.push_module("sampling")
    forced = rows(op, forced, span.begin, span.end, 1)
    tokens = sample(op, logits, rows(op, uniforms, span.begin, span.end, 1), forced, top_k, top_p)
    builder.pop_module()
    noise = rows(op, smooth_uniforms, span.begin, span.end, 1)
    vectors = parts.smoothed(op, parts.entries(op, tokens), forced, logits, noise, top_k, top_p, stage)
    f_hat = parts.accumulate(op, vectors, f_hat, stage, span)

    add_output(builder, tokens, "tokens", INT64, ["B", "l"])
    add_output(builder, logits, "logits", FLOAT, ["B", "l", config.vocab_size])
    add_output(builder, f_hat, "present.f_hat", FLOAT, latent)
    add_output(builder, modulation, "present.modulation", FLOAT, [GUIDED_AXIS, num_modulations, c])
    for i, (key, value) in enumerate(present):
        add_output(builder, key, f"present.{i}.key", FLOAT, [GUIDED_AXIS, heads, head_dim, "T + l"])
        add_output(builder, value, f"present.{i}.value", FLOAT, [GUIDED_AXIS, heads, "T + l", head_dim])
    return finish(builder)


class StageParts:
    """The parts of the stage graph, in the order a token map walks through them."""

    def __init__(
        self, var: VAR, quantizer: MultiScaleQuantizer, constants: Constants, equalization: Equalization
    ) -> None:
        self.var, self.config, self.quantizer, self.constants = var, var.config, quantizer, constants
        self.folded = FoldedVAR(var, equalization)
        self.position = constants("position", var.position())

    def torch_block(self, i: int) -> Block:
        """Block i of the torch model."""
        return cast(Block, self.var.blocks[i])

    def span(self, op: OpBuilder, stage: ir.Value) -> Span:
        """The stage's place among the L tokens."""
        begins = np.array(self.config.stage_begins)
        ends = begins + np.array(self.config.patch_nums) ** 2
        return Span(
            scalar_at(op, self.constants("stage_begins", begins), stage),
            scalar_at(op, self.constants("stage_ends", ends), stage),
        )

    def embed(
        self, op: OpBuilder, stage: ir.Value, span: Span, labels: ir.Value, f_hat: ir.Value, modulation: ir.Value
    ) -> tuple[ir.Value, ir.Value]:
        """adaLN's modulation [2B, 6 * depth + 2, C], made at stage 0 and carried, and the input x [2B, l, C].

        What only stage 0 needs is computed for no rows later, and the other way round. An If would do the same, but
        ONNX Runtime multiplies with other kernels inside a branch inside a Loop, and rounding would differ between the
        two forms of a bundle.
        """
        var, constants = self.var, self.constants
        class_emb = constants("class_emb.weight", var.class_emb.weight)
        null = op.Expand(self.config.num_classes, op.Shape(labels))
        embedding = op.Unsqueeze(op.Gather(class_emb, op.Concat(labels, null, axis=0), axis=0), [1])
        is_first = op.Unsqueeze(op.Cast(op.Equal(stage, 0), to=INT64), [0])
        embedding = rows(op, embedding, [0], is_first, 1)
        modulation = op.Concat(modulation, self.modulation(op, embedding), axis=1)

        begins = np.array(self.config.stage_begins)
        begins[0], first = begins[1], self.config.patch_nums[0] ** 2
        begin = scalar_at(op, constants("input_begins", begins - first), stage)
        end = op.Sub(span.end, [first])
        matrix = constants("downsampling", downsampling_matrix(self.config.patch_nums))
        latent = op.Transpose(op.Reshape(f_hat, [0, 0, -1]), perm=[0, 2, 1])
        inputs = op.MatMul(rows(op, matrix, begin, end, 0), latent)
        inputs = self.linear(op, "word_embed", inputs)
        start = op.Add(embedding, rows(op, constants("pos_start", var.pos_start), [0], op.Mul(is_first, [first]), 1))
        x = op.Concat(start, op.Concat(inputs, inputs, axis=0), axis=1)
        x = op.Add(x, rows(op, self.position, span.begin, span.end, 1))
        x.shape = ir.Shape([GUIDED_AXIS, "l", self.config.embed_dim])
        return modulation, x

    def modulation(self, op: OpBuilder, embedding: ir.Value) -> ir.Value:
        """gamma1, gamma2, 1 + scale1, 1 + scale2, shift1, shift2 of each block and 1 + scale, shift of the head.

        The class embedding [2B, 1, C] -> [2B, 6 * depth + 2, C] (no rows in, none out). The ones are added here, once
        an image, not at every use.
        """
        c, depth, constants = self.config.embed_dim, self.config.depth, self.constants
        activated = op.Mul(embedding, op.Sigmoid(embedding))

        def ada_lin(name: str) -> ir.Value:
            return linear(op, constants, name, activated, *self.folded.modulation(name))

        if self.config.shared_aln:
            shared = op.Unsqueeze(ada_lin(SHARED_ADA_LIN), [2])
            gss = torch.cat([self.torch_block(i).ada_gss for i in range(depth)], dim=1).reshape(depth, 6 * c)
            parts = [op.Add(shared, constants("ada_gss", gss))]
            gains = self.folded.gains()
            if gains is not None:
                parts = [op.Mul(parts[0], constants("ada_gains", gains))]
        else:
            parts = [ada_lin(f"blocks.{i}.ada_lin.1") for i in range(depth)]
        parts.append(ada_lin(HEAD_ADA_LIN))
        return op.Concat(*(op.Reshape(part, [0, -1, c]) for part in parts), axis=1)

    def linear(self, op: OpBuilder, name: str, x: ir.Value) -> ir.Value:
        """A folded layer: [..., in] -> [..., out]."""
        return linear(op, self.constants, name, x, self.folded.weight(name), self.folded.bias(name))

    def layer_norm(self, op: OpBuilder, x: ir.Value, scale: ir.Value, shift: ir.Value) -> ir.Value:
        """Modulated LayerNorm: x [2B, l, C], scale (1 + adaLN's) and shift [2B, 1, C]."""
        ones = self.constants("layer_norm.ones", np.ones(self.config.embed_dim, np.float32))
        return op.Add(op.Mul(op.LayerNormalization(x, ones, axis=-1, epsilon=NORM_EPS), scale), shift)

    def block(
        self, op: OpBuilder, i: int, x: ir.Value, modulations: Sequence[ir.Value], key: ir.Value, value: ir.Value
    ) -> tuple[ir.Value, ir.Value, ir.Value]:
        """One block: x [2B, l, C], past key [2B, H, d, T] and value [2B, H, T, d] -> x and the present ones."""
        gamma1, gamma2, scale1, scale2, shift1, shift2 = modulations
        h = self.layer_norm(op, x, scale1, shift1)
        op.builder.push_module("attn")
        h, key, value = self.attention(op, i, h, key, value)
        op.builder.pop_module()
        x = op.Add(x, op.Mul(h, gamma1))
        h = self.layer_norm(op, x, scale2, shift2)
        h = op.Gelu(self.linear(op, f"blocks.{i}.ffn.fc1", h), approximate="tanh")
        h = self.linear(op, f"blocks.{i}.ffn.fc2", h)
        return op.Add(x, op.Mul(h, gamma2)), key, value

    def attention(
        self, op: OpBuilder, i: int, x: ir.Value, key: ir.Value, value: ir.Value
    ) -> tuple[ir.Value, ir.Value, ir.Value]:
        """softmax(q K) V over this stage's tokens and the past ones; K is kept transposed, [2B, H, d, T]."""
        attn, name, heads = self.torch_block(i).attn, f"blocks.{i}.attn", self.config.num_heads
        q, k, v = (op.Reshape(self.linear(op, f"{name}.{part}", x), [0, 0, heads, -1]) for part in "qkv")
        if self.config.attn_l2_norm:
            q, k = op.LpNormalization(q, axis=-1, p=2), op.LpNormalization(k, axis=-1, p=2)
        q = op.Transpose(q, perm=[0, 2, 1, 3])
        if self.config.attn_l2_norm:
            q = op.Mul(q, self.constants(f"{name}.query_scale", attn.query_scale()))
        key = op.Concat(key, op.Transpose(k, perm=[0, 2, 3, 1]), axis=3)
        value = op.Concat(value, op.Transpose(v, perm=[0, 2, 1, 3]), axis=2)
        weights = op.Softmax(op.MatMul(q, key, _name=f"{name}.scores"), axis=-1)
        out = op.Transpose(op.MatMul(weights, value, _name=f"{name}.mix"), perm=[0, 2, 1, 3])
        out = op.Reshape(out, [0, 0, self.config.embed_dim])
        return self.linear(op, f"{name}.proj", out), key, value

    def guided_logits(
        self, op: OpBuilder, x: ir.Value, scale: ir.Value, shift: ir.Value, stage: ir.Value, cfg_scale: ir.Value
    ) -> ir.Value:
        """(1 + t) cond - t uncond with t = cfg_scale * si / (S - 1): x [2B, l, C] -> logits [B, l, V].

        The head is linear, so guidance is mixed before it, at half its work.
        """
        h = self.layer_norm(op, x, scale, shift)
        cond, uncond = op.Split(h, axis=0, num_outputs=2, _outputs=["head.cond", "head.uncond"])
        t = op.Div(op.Mul(cfg_scale, op.Cast(stage, to=FLOAT)), float(self.config.num_stages - 1))
        mixed = op.Sub(op.Mul(cond, op.Add(t, 1.0)), op.Mul(uncond, t))
        return self.linear(op, "head", mixed)

    def codebook(self) -> ir.Value:
        """The codebook, [V, Cvae]."""
        return self.constants("quantize.embedding.weight", self.quantizer.embedding.weight)

    def entries(self, op: OpBuilder, tokens: ir.Value) -> ir.Value:
        """codebook[tokens]: [B, l] -> [B, l, Cvae]."""
        return op.Gather(self.codebook(), tokens, axis=0)

    def smoothed(
        self,
        op: OpBuilder,
        entries: ir.Value,
        forced: ir.Value,
        logits: ir.Value,
        noise: ir.Value,
        top_k: ir.Value,
        top_p: ir.Value,
        stage: ir.Value,
    ) -> ir.Value:
        """Mixtures of codebook entries, as `more_smooth` of the official code makes them; forced tokens keep theirs.

        softmax(((1 + r) logits + gumbel) / tau) codebook with r = si / (S - 1), tau = max(0.27 (1 - 0.95 r), 0.005).

        Without noise the weights are left out, and the product has no rows: `embed` tells why it is in no branch.

        Args:
            entries: float32 [B, l, Cvae], of the tokens.
            forced: int64 [B, l].
            logits: float32 [B, l, V], after guidance.
            noise: uniforms, float32 [B, l, V], or [B, 0, V]: then the entries are left as they are.
        Returns:
            float32 [B, l, Cvae].
        """
        op.builder.push_module("smooth")
        ratio = np.arange(self.config.num_stages) / (self.config.num_stages - 1)
        tau = np.maximum(0.27 * (1 - 0.95 * ratio), 0.005)
        sharpness = scalar_at(op, self.constants("smooth.sharpness", ((1 + ratio) / tau).astype(np.float32)), stage)
        inverse_tau = scalar_at(op, self.constants("smooth.inverse_tau", (1 / tau).astype(np.float32)), stage)
        count = op.Shape(noise, start=1, end=2)
        # Releases of ONNX Runtime divide by zero where TopK has no rows.
        (weights,) = branch(
            op,
            op.Greater(op.Squeeze(count, [0]), 0),
            lambda op: [smooth_weights(op, logits, noise, top_k, top_p, sharpness, inverse_tau)],
            lambda op: [op.Identity(noise)],
            ["weights"],
        )
        # Passes that look at products with a matrix look for linear layers, of which this is none.
        mixed = op.MatMul(weights, op.Unsqueeze(self.codebook(), [0]))
        sampled = op.Unsqueeze(op.Less(rows(op, forced, [0], count, 1), 0), [-1])
        mixed = op.Where(sampled, mixed, rows(op, entries, [0], count, 1))
        vectors = op.Concat(mixed, rows(op, entries, count, [2**31 - 1], 1), axis=1)
        # What Slice hides, and ONNX Runtime must know to add f_hat within phi's convolution.
        vectors.dtype, vectors.shape = FLOAT, ir.Shape(["B", "l", self.config.z_channels])
        op.builder.pop_module()
        return vectors

    def accumulate(self, op: OpBuilder, vectors: ir.Value, f_hat: ir.Value, stage: ir.Value, span: Span) -> ir.Value:
        """f_hat + phi_si(bicubic_up(vectors)) (VAR, Alg. 2): vectors [B, l, Cvae], f_hat [B, Cvae, h, w]."""
        quantizer, constants, side = self.quantizer, self.constants, self.config.patch_nums[-1]
        h = op.Transpose(vectors, perm=[0, 2, 1])
        matrix = constants("upsampling", upsampling_matrix(self.config.patch_nums))
        h = op.Reshape(op.MatMul(h, rows(op, matrix, span.begin, span.end, 0)), [0, 0, side, side])
        phis = [quantizer.quant_resi.phi(i) for i in range(quantizer.num_phis)]
        if isinstance(phis[0], Phi):
            index = [phi_index(si, self.config.num_stages, quantizer.num_phis) for si in range(self.config.num_stages)]
            which = op.Gather(constants("phi.index", np.array(index)), stage)
            kernels, biases = zip(*(folded_phi(phi) for phi in phis), strict=True)
            kernel = op.Gather(constants("phi.weight", torch.stack(kernels)), which, axis=0)
            bias = op.Gather(constants("phi.bias", torch.stack(biases)), which, axis=0)
            h = op.Conv(h, kernel, bias, kernel_shape=[3, 3], pads=[1, 1, 1, 1], _name="phi")
        return op.Add(f_hat, h)


def folded_phi(phi: Phi) -> tuple[torch.Tensor, torch.Tensor]:
    """phi's (1 - ratio) h + ratio conv(h) as one convolution: kernel [Cvae, Cvae, 3, 3] and bias [Cvae]."""
    kernel, bias = phi.weight.detach() * phi.ratio, cast(torch.Tensor, phi.bias).detach() * phi.ratio
    kernel[:, :, 1, 1] += (1 - phi.ratio) * torch.eye(len(kernel))
    return kernel, bias
