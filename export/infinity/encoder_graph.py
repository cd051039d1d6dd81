"""The BSQ VAE's encoder as an ONNX graph: images uint8 [B, H, W, 3] and their size -> token_maps int64 [B, L, bits]."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir
from onnxscript import OpBuilder

from nextscale.export.autoencoder_parts import AutoencoderParts, to_numbers
from nextscale.export.graph_builder import Constants, add_output, finish, new_builder
from nextscale.export.infinity._patches import to_tokens
from nextscale.graph_passes._graph_builder import GraphBuilder
from nextscale.models.infinity.bsq_vae import BSQVAE, BSQVAEConfig

NUMBER = "const_"  # how the builder names constants that are given as numbers
Sizes = Sequence[Sequence[tuple[int, int]]]


def build_features_graph(vae: BSQVAE) -> ir.Model:
    """The float32 graph of the encoder: images uint8 [B, H, W, 3] -> features float32 [B, d, h, w].

    H and W are multiples of the pixels of a latent position.
    """
    builder = new_builder("encoder")
    parts = AutoencoderParts(builder.op, Constants(builder))
    images = builder.input("images", ir.DataType.UINT8, ["B", "H", "W", 3])
    h = parts.encoder("encoder", vae.encoder, to_numbers(builder.op, images))
    add_output(builder, h, "features", ir.DataType.FLOAT, ["B", vae.config.latent_channels, "h", "w"])
    return finish(builder)


def build_encoder_graph(vae: BSQVAE, sizes: Sizes) -> ir.Model:
    """The whole encoder in float32; see `with_token_maps`."""
    return with_token_maps(build_features_graph(vae), vae.config, sizes)


def with_token_maps(features: ir.Model, config: BSQVAEConfig, sizes: Sizes) -> ir.Model:
    """An encoder's graph, float or int8, with the bits of each stage behind it.

    Args:
        features: images -> features; what becomes of it is returned.
        config: of the VAE.
        sizes: height and width of each stage in tokens, of each size that a picture may have.
    Returns:
        images uint8 [B, H, W, 3], size int64 [] -> token_maps int64 [B, L, bits]; size is an index of `sizes`, whose
        last stage is that of the pictures.
    """
    (h,) = features.graph.outputs
    features.graph.outputs.clear()
    # An int8 graph has numbers of its own, with the names that the builder would give to others of the same value.
    for name, value in list(features.graph.initializers.items()):
        value.name = f"features.{name}" if name.startswith(NUMBER) else name
    builder = GraphBuilder(features.graph)
    size = builder.input("size", ir.DataType.INT64, [])
    builder.push_module("quantize")
    token_maps = _bits(builder.op, Constants(builder), config, sizes, h, size)
    builder.pop_module()
    add_output(builder, token_maps, "token_maps", ir.DataType.INT64, ["B", "L", config.token_bits])
    return features


def _bits(
    op: OpBuilder, constants: Constants, config: BSQVAEConfig, sizes: Sizes, features: ir.Value, size: ir.Value
) -> ir.Value:
    """A Loop over the size's stages, as `bits_of_features` goes: [B, d, h, w], [] -> [B, L, bits]."""
    counts = np.array([len(stages) for stages in sizes])
    table = np.ones((len(sizes), counts.max(), 2), np.int64)  # ones are no stage's
    for row, stages in zip(table, sizes, strict=True):
        row[: len(stages)] = stages
    stages = op.Gather(constants("quantize.stage_sizes", table), size)
    num_stages = op.Gather(constants("quantize.num_stages", counts), size)
    latent_size = op.Shape(features, start=2)
    code, channels = np.float32(config.latent_channels**-0.5), config.latent_channels

    def body(
        op: OpBuilder, stage: ir.Value, proceed: ir.Value, residual: ir.Value, so_far: ir.Value
    ) -> Sequence[ir.Value]:
        tokens = op.Gather(stages, stage)
        stage_size = op.Mul(tokens, [config.patch])
        lines, columns = (_areas(op, op.Gather(stage_size, axis), op.Gather(latent_size, axis)) for axis in (0, 1))
        # The sums over areas have the signs of the means.
        positive = op.Greater(op.MatMul(op.MatMul(lines, residual), op.Transpose(columns, perm=[1, 0])), 0.0)
        codes = op.Where(positive, constants("quantize.code", code), constants("quantize.negative_code", -code))
        shape = op.Concat(op.Shape(features, end=2), latent_size, axis=0)
        upsampled = op.Resize(
            codes, None, None, shape, mode="linear", coordinate_transformation_mode="half_pixel", _name="upsample"
        )
        bits = to_tokens(op, positive, tokens, config.patch, channels)
        return (
            op.Identity(proceed),
            op.Sub(residual, upsampled),
            op.Concat(so_far, op.Cast(bits, to=ir.DataType.INT64), axis=1),
        )

    none = op.ConstantOfShape(
        op.Concat(op.Shape(features, end=1), [0, config.token_bits], axis=0),
        value=ir.tensor([0], dtype=ir.DataType.INT64),
    )
    number, flag = ir.TensorType(ir.DataType.INT64), ir.TensorType(ir.DataType.BOOL)
    latent = ir.TensorType(ir.DataType.FLOAT)
    graph = op.builder.subgraph(
        body,
        [
            ir.Value(name="stage", type=number, shape=ir.Shape([])),
            ir.Value(name="proceed", type=flag, shape=ir.Shape([])),
            ir.Value(name="residual", type=latent, shape=ir.Shape(["B", channels, "h", "w"])),
            ir.Value(name="token_maps.so_far", type=number, shape=ir.Shape(["B", None, config.token_bits])),
        ],
        [
            ir.Value(name="go_on", type=flag, shape=ir.Shape([])),
            ir.Value(name="left_over", type=latent, shape=ir.Shape(["B", channels, "h", "w"])),
            ir.Value(name="token_maps.by_now", type=number, shape=ir.Shape(["B", None, config.token_bits])),
        ],
        name="stage",
    )
    _, token_maps = op.Loop(num_stages, None, features, none, body=graph, _outputs=2, _name="stages")
    return token_maps


def _areas(op: OpBuilder, small: ir.Value, large: ir.Value) -> ir.Value:
    """1 where one of the `large` cells of an axis is touched by one of the `small` ones: float32 [small, large]."""
    place = op.Unsqueeze(op.Range(0, small, 1), [1])
    first = op.Div(op.Mul(place, large), small)
    end = op.Div(op.Add(op.Mul(op.Add(place, 1), large), op.Sub(small, 1)), small)  # rounded up
    cell = op.Range(0, large, 1)
    return op.Cast(op.And(op.GreaterOrEqual(cell, first), op.Less(cell, end)), to=ir.DataType.FLOAT)
