"""The VQVAE's encoder as an ONNX graph: images uint8 [B, H, W, 3] -> token_maps int64 [B, L]."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import torch.nn.functional as F
from onnxscript import OpBuilder

from nextscale.export.autoencoder_parts import AutoencoderParts, to_numbers
from nextscale.export.graph_builder import Constants, add_output, finish, new_builder
from nextscale.export.var.stage_graph import folded_phi
from nextscale.graph_passes._graph_builder import GraphBuilder
from nextscale.models.var.multi_scale_quantizer import MultiScaleQuantizer, Phi
from nextscale.models.var.resampling import pooling_matrix, upsampling_matrix
from nextscale.models.var.vqvae import VQVAE


def build_features_graph(vqvae: VQVAE) -> ir.Model:
    """The float32 graph of encoder and quant_conv: images uint8 [B, H, W, 3] -> features float32 [B, Cvae, h, w]."""
    config = vqvae.config
    builder = new_builder("encoder")
    parts = AutoencoderParts(builder.op, Constants(builder))
    images = builder.input("images", ir.DataType.UINT8, ["B", config.image_size, config.image_size, 3])
    h = parts.encoder("encoder", vqvae.encoder, to_numbers(builder.op, images))
    h = parts.conv("quant_conv", vqvae.quant_conv, h)
    side = config.patch_nums[-1]
    add_output(builder, h, "features", ir.DataType.FLOAT, ["B", config.z_channels, side, side])
    return finish(builder)


def build_encoder_graph(vqvae: VQVAE) -> ir.Model:
    """The whole encoder in float32: images uint8 [B, H, W, 3] -> token_maps int64 [B, L]."""
    return with_token_maps(build_features_graph(vqvae), vqvae.quantize)


def with_token_maps(features: ir.Model, quantizer: MultiScaleQuantizer) -> ir.Model:
    """An encoder's graph, float or int8, with the multi-scale quantizer behind it.

    Args:
        features: images -> features; what becomes of it is returned.
        quantizer: always in float32, since a token is what is nearest.
    Returns:
        images uint8 [B, H, W, 3] -> token_maps int64 [B, L].
    """
    (h,) = features.graph.outputs
    features.graph.outputs.clear()
    builder = GraphBuilder(features.graph)
    builder.push_module("quantize")
    token_maps = _tokenize(builder.op, Constants(builder), quantizer, h)
    builder.pop_module()
    count = sum(side * side for side in quantizer.patch_nums)
    add_output(builder, token_maps, "token_maps", ir.DataType.INT64, ["B", count])
    return features


def _tokenize(op: OpBuilder, constants: Constants, quantizer: MultiScaleQuantizer, features: ir.Value) -> ir.Value:
    """Each stage's nearest entries to what the stages before leave over (VAR, Alg. 1): [B, Cvae, h, w] -> [B, L].

    |z - e|^2 is least where z e - |e|^2 / 2 is largest; by cosine, where z e / |e| is.
    """
    sides = quantizer.patch_nums
    entries = quantizer.embedding.weight.detach()
    table = F.normalize(entries, dim=-1) if quantizer.using_znorm else entries
    offset = np.zeros(len(entries), np.float32) if quantizer.using_znorm else -entries.square().sum(1).numpy() / 2
    codebook, columns = constants("quantize.embedding.weight", entries), constants("quantize.columns", table.T)
    upsampling = upsampling_matrix(sides)
    shape, begin, token_maps = op.Shape(features), 0, []
    residual = op.Reshape(features, [0, 0, -1])
    for si, side in enumerate(sides):
        end, last = begin + side * side, si == len(sides) - 1
        z = residual
        if not last:
            pooling = pooling_matrix(sides[-1], side).T.contiguous()
            z = op.MatMul(residual, constants(f"quantize.pooling.{si}", pooling))
        scores = op.MatMul(op.Transpose(z, perm=[0, 2, 1]), columns, _name=f"nearest.{si}")
        tokens = op.ArgMax(op.Add(scores, constants("quantize.offset", offset)), axis=-1, keepdims=0)
        token_maps.append(tokens)
        if last:
            break
        h = op.MatMul(
            op.Transpose(op.Gather(codebook, tokens, axis=0), perm=[0, 2, 1]),
            constants(f"quantize.upsampling.{si}", upsampling[begin:end]),
        )
        phi = quantizer.phi(si)
        if isinstance(phi, Phi):
            folded = zip(("weight", "bias"), folded_phi(phi), strict=True)
            kernel, bias = (constants(f"quantize.phi.{si}.{part}", tensor) for part, tensor in folded)
            h = op.Conv(op.Reshape(h, shape), kernel, bias, kernel_shape=[3, 3], pads=[1] * 4, _name=f"phi.{si}")
            h = op.Reshape(h, [0, 0, -1])
        residual, begin = op.Sub(residual, h), end
    return op.Concat(*token_maps, axis=1)
