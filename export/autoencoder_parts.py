"""The modules of `models/autoencoder.py` as ONNX operators; names are those of the state dict."""

from __future__ import annotations

from typing import cast

import numpy as np
import onnx_ir as ir
from onnxscript import OpBuilder
from torch import nn

from nextscale.export.graph_builder import Constants
from nextscale.models.autoencoder import (
    NORM_EPS,
    NORM_GROUPS,
    AttnBlock,
    Decoder,
    Downsample,
    Encoder,
    Level,
    Middle,
    ResnetBlock,
    Upsample,
)


def to_numbers(op: OpBuilder, images: ir.Value) -> ir.Value:
    """x / 127.5 - 1: uint8 [B, H, W, 3] -> float32 [B, 3, H, W]."""
    channels_first = op.Transpose(op.Cast(images, to=ir.DataType.FLOAT), perm=[0, 3, 1, 2])
    return op.Sub(op.Div(channels_first, 127.5), 1.0)


def to_picture(op: OpBuilder, x: ir.Value) -> ir.Value:
    """round(255 * clip((x + 1) / 2, 0, 1)): float32 [B, 3, H, W] -> uint8 [B, H, W, 3]."""
    scaled = op.Add(op.Mul(x, 127.5), 127.5)
    clipped = op.Clip(op.Round(scaled), 0.0, 255.0)
    return op.Transpose(op.Cast(clipped, to=ir.DataType.UINT8), perm=[0, 2, 3, 1])


class AutoencoderParts:
    """One method a module; each appends its operators to the graph that `op` builds."""

    def __init__(self, op: OpBuilder, constants: Constants) -> None:
        self.op, self.constants = op, constants

    def encoder(self, name: str, encoder: Encoder, x: ir.Value) -> ir.Value:
        """Numbers [B, 3, H, W] -> features [B, z_channels, h, w]."""
        h = self.conv(f"{name}.conv_in", encoder.conv_in, x)
        for i, level in enumerate(encoder.down):
            h = self.level(f"{name}.down.{i}", cast(Level, level), h)
        h = self.middle(f"{name}.mid", encoder.mid, h)
        h = self.silu(self.group_norm(f"{name}.norm_out", encoder.norm_out, h))
        return self.conv(f"{name}.conv_out", encoder.conv_out, h)

    def decoder(self, name: str, decoder: Decoder, z: ir.Value) -> ir.Value:
        """A latent [B, z_channels, h, w] -> numbers [B, 3, H, W]."""
        h = self.middle(f"{name}.mid", decoder.mid, self.conv(f"{name}.conv_in", decoder.conv_in, z))
        for i in reversed(range(len(decoder.up))):
            h = self.level(f"{name}.up.{i}", cast(Level, decoder.up[i]), h)
        h = self.silu(self.group_norm(f"{name}.norm_out", decoder.norm_out, h))
        return self.conv(f"{name}.conv_out", decoder.conv_out, h)

    def conv(self, name: str, conv: nn.Conv2d, x: ir.Value) -> ir.Value:
        """A convolution of stride 1 that keeps the size: [B, C, H, W] -> [B, out, H, W]."""
        ks = conv.kernel_size[0]
        weight, bias = self._parameters(name, conv)
        return self.op.Conv(x, weight, bias, kernel_shape=[ks, ks], pads=[ks // 2] * 4, _name=name)

    def downsample(self, name: str, module: Downsample, x: ir.Value) -> ir.Value:
        """A convolution of stride 2, padded right and below: [B, C, H, W] -> [B, C, H/2, W/2]."""
        weight, bias = self._parameters(f"{name}.conv", module.conv)
        return self.op.Conv(
            x, weight, bias, kernel_shape=[3, 3], strides=[2, 2], pads=[0, 0, 1, 1], _name=f"{name}.conv"
        )

    def _parameters(self, name: str, conv: nn.Conv2d) -> tuple[ir.Value, ir.Value]:
        assert conv.bias is not None
        return self.constants(f"{name}.weight", conv.weight), self.constants(f"{name}.bias", conv.bias)

    def group_norm(self, name: str, norm: nn.GroupNorm, x: ir.Value) -> ir.Value:
        """GroupNorm as InstanceNormalization over [B, groups, -1] and an affine over the channels."""
        op, constants = self.op, self.constants
        ones = constants("group_norm.ones", np.ones(NORM_GROUPS, np.float32))
        zeros = constants("group_norm.zeros", np.zeros(NORM_GROUPS, np.float32))
        grouped = op.Reshape(x, [0, NORM_GROUPS, -1], _name=f"{name}.grouped")
        grouped = op.InstanceNormalization(grouped, ones, zeros, epsilon=NORM_EPS, _name=name)
        h = op.Reshape(grouped, op.Shape(x))
        weight, bias = (p.detach()[:, None, None] for p in (norm.weight, norm.bias))
        return op.Add(op.Mul(h, constants(f"{name}.weight", weight)), constants(f"{name}.bias", bias))

    def silu(self, x: ir.Value) -> ir.Value:
        return self.op.Mul(x, self.op.Sigmoid(x))

    def resnet_block(self, name: str, block: ResnetBlock, x: ir.Value) -> ir.Value:
        h = self.conv(f"{name}.conv1", block.conv1, self.silu(self.group_norm(f"{name}.norm1", block.norm1, x)))
        h = self.conv(f"{name}.conv2", block.conv2, self.silu(self.group_norm(f"{name}.norm2", block.norm2, h)))
        if isinstance(block.nin_shortcut, nn.Conv2d):
            x = self.conv(f"{name}.nin_shortcut", block.nin_shortcut, x)
        return self.op.Add(h, x, _name=f"{name}.add")

    def attention(self, name: str, block: AttnBlock, x: ir.Value) -> ir.Value:
        """Single-head attention over the pixels, [B, C, H, W]; the query's 1/sqrt(C) is folded into qkv."""
        op = self.op
        channels, qkv_bias = block.norm.num_channels, block.qkv.bias
        assert qkv_bias is not None
        scale = np.ones((3 * channels, 1, 1, 1), np.float32)
        scale[:channels] = channels**-0.5
        weight = self.constants(f"{name}.qkv.weight", block.qkv.weight.detach().numpy() * scale)
        bias = self.constants(f"{name}.qkv.bias", qkv_bias.detach().numpy() * scale[:, 0, 0, 0])
        qkv = op.Conv(
            self.group_norm(f"{name}.norm", block.norm, x),
            weight,
            bias,
            kernel_shape=[1, 1],
            _name=f"{name}.qkv",
        )
        q, k, v = op.Split(op.Reshape(qkv, [0, 0, -1]), axis=1, num_outputs=3, _outputs=3)
        scores = op.MatMul(op.Transpose(q, perm=[0, 2, 1]), k, _name=f"{name}.scores")
        # [B, C, keys] x [B, keys, queries]: attention transposed, so that the result is channels first.
        weights = op.Transpose(op.Softmax(scores, axis=-1), perm=[0, 2, 1])
        h = op.Reshape(op.MatMul(v, weights, _name=f"{name}.mix"), op.Shape(x))
        return op.Add(x, self.conv(f"{name}.proj_out", block.proj_out, h))

    def middle(self, name: str, middle: Middle, x: ir.Value) -> ir.Value:
        x = self.resnet_block(f"{name}.block_1", middle.block_1, x)
        if isinstance(middle.attn_1, AttnBlock):
            x = self.attention(f"{name}.attn_1", middle.attn_1, x)
        return self.resnet_block(f"{name}.block_2", middle.block_2, x)

    def level(self, name: str, level: Level, x: ir.Value) -> ir.Value:
        for i, block in enumerate(level.block):
            x = self.resnet_block(f"{name}.block.{i}", cast(ResnetBlock, block), x)
            if level.attn:
                x = self.attention(f"{name}.attn.{i}", cast(AttnBlock, level.attn[i]), x)
        if hasattr(level, "upsample"):
            upsample = cast(Upsample, level.upsample)
            scales = self.constants("upsample.scales", np.array([1, 1, 2, 2], np.float32))
            x = self.op.Resize(
                x, None, scales, mode="nearest", nearest_mode="floor", coordinate_transformation_mode="asymmetric"
            )
            x = self.conv(f"{name}.upsample.conv", upsample.conv, x)
        if hasattr(level, "downsample"):
            x = self.downsample(f"{name}.downsample", cast(Downsample, level.downsample), x)
        return x
