"""A decoder's layers as ONNX operators, channels last, every convolution u8 x s8 (see `quantize_decoder`).

Symbols: B pictures, n = H * W pixels of a feature map, C channels. Rows are [B, n, C].
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray
from onnxscript import GraphBuilder

from nextscale.graph_passes.decoder_patterns import Attention, Convolution, GroupNorm, Layer, Picture, Residual
from nextscale.graph_passes.integer_convolution import integer_kernel
from nextscale.graph_passes.qparams import ActivationQParams, Range
from nextscale.graph_passes.subpixel_upsample import subpixel_kernels

MICROSOFT = "com.microsoft"
# QLinearConv is 2.7 times faster with 16 outputs than with 3.
PICTURE_CHANNELS = 16
# The picture round(127.5 (x + 1)) is x + 1 in steps of 1 / 127.5; the 1 is part of the bias.
PICTURE_QPARAMS = ActivationQParams(np.array([1 / 127.5], np.float32), np.array([0], np.uint8))
PICTURE_OFFSET = np.float32(1)
# Float rows are made and read in strips of at least this size: the operators between two convolutions find a strip in
# the cache, where whole feature maps of 42 MB go through memory each time.
STRIP_BYTES = 4 << 20
MAX_EPS = 1e30  # of a range of nearly nothing, in units of codes: finite in float32


@dataclass
class _Feature:
    """A value [B, C, H, W] of the float graph: as float rows, as codes in its range, or both once both were needed."""

    height: int
    width: int
    channels: int
    floats: list[ir.Value] = field(default_factory=list)  # the strips, float32 [B, n / strips, C] each
    codes: ir.Value | None = None  # uint8 [B, n, C]
    code_strips: list[ir.Value] = field(default_factory=list)

    @property
    def pixels(self) -> int:
        return self.height * self.width

    @property
    def strips(self) -> int:
        """A power of two that divides the height."""
        wanted = max(1, 4 * self.pixels * self.channels // STRIP_BYTES)
        return math.gcd(self.height, 1 << (wanted.bit_length() - 1))


class ChannelsLast:
    """Builds the int8 graph of a list of layers."""

    def __init__(self, source: ir.Model, ranges: Mapping[ir.Value, Range]) -> None:
        self.source = source
        self.qparams = {value: ActivationQParams.from_range(observed) for value, observed in ranges.items()}
        opsets = {**source.graph.opset_imports, MICROSOFT: 1}
        self.builder = GraphBuilder(ir.Graph([], [], nodes=[], name=source.graph.name, opset_imports=opsets))
        self.op, self.microsoft = self.builder.op, self.builder.opset(MICROSOFT)
        self.features: dict[ir.Value, _Feature] = {}

    def build(self, layers: Sequence[Layer]) -> ir.Model:
        """The model of these layers, with the inputs and outputs of the source."""
        (f_hat,), (images,) = self.source.graph.inputs, self.source.graph.outputs
        self._enter(f_hat)
        pictures = {layer.x for layer in layers if isinstance(layer, Picture)}
        for layer in layers:
            self.builder.push_module(layer.name)
            match layer:
                case Convolution() if layer.y in pictures:
                    self._picture(layer, images)
                case Convolution() if layer.kernel_size == 1:
                    self._linear(layer)
                case Convolution():
                    self._convolution(layer)
                case GroupNorm():
                    self._group_norm(layer)
                case Residual():
                    pairs = zip(self._floats(layer.a), self._floats(layer.b), strict=True)
                    self._derive(layer.y, layer.a, [self.op.Add(a, b) for a, b in pairs])
                case Attention():
                    self._attention(layer)
            self.builder.pop_module()
        return ir.Model(self.builder.graph, ir_version=self.source.ir_version, producer_name=self.source.producer_name)

    def _enter(self, f_hat: ir.Value) -> None:
        """The one Transpose of a picture: f_hat [B, C, h, w] to rows."""
        assert f_hat.name is not None
        assert f_hat.dtype is not None
        assert f_hat.shape is not None
        batch, *sides = f_hat.shape.dims
        if len(sides) != 3 or not all(isinstance(side, int) for side in sides):
            raise ValueError(f"expected {f_hat.name} of the shape [B, C, h, w] with constant C, h and w, found {sides}")
        channels, height, width = (int(side) for side in sides if isinstance(side, int))
        value = self.builder.input(
            f_hat.name, f_hat.dtype, [batch if isinstance(batch, int) else batch.value, channels, height, width]
        )
        feature = _Feature(height, width, channels)
        rows = self.op.Reshape(self.op.Transpose(value, perm=[0, 2, 3, 1]), [0, -1, channels])
        feature.floats = self._split(rows, feature.strips)
        self.features[f_hat] = feature

    def _convolution(self, layer: Convolution) -> None:
        """u8 [B, H, W, in] -> u8 [B, H, W, out], or [B, 2H, 2W, out] if the input is upsampled."""
        op, source, out = self.op, self.features[layer.x], len(layer.weight)
        x, qparams = self._pixels(layer.x), self.qparams[layer.y]
        y = _Feature(source.height, source.width, out)
        if layer.upsampled:
            parts = [
                self._qlinear_conv(f"{layer.name}.{k.i}{k.j}", layer, x, k.weight, layer.bias, k.pads, qparams)
                for k in subpixel_kernels(layer.weight)
            ]
            # Pixels 2x and 2x + 1 lie side by side in memory, like channels; so do the lines 2y and 2y + 1.
            lines = [op.Reshape(op.Concat(*parts[i : i + 2], axis=-1), [0, 0, -1]) for i in (0, 2)]
            pixels = op.Concat(*lines, axis=-1)
            y.height, y.width = 2 * source.height, 2 * source.width
        else:
            pixels = self._qlinear_conv(layer.name, layer, x, layer.weight, layer.bias, [1] * 4, qparams)
        y.codes = op.Reshape(pixels, [0, y.pixels, out])
        self.features[layer.y] = y

    def _picture(self, layer: Convolution, images: ir.Value) -> None:
        """The last convolution, whose codes are the picture: uint8 [B, H, W, 3]."""
        spare = PICTURE_CHANNELS - len(layer.weight)
        weight = np.pad(layer.weight, ((0, spare), (0, 0), (0, 0), (0, 0)))
        bias = np.pad(layer.bias + PICTURE_OFFSET, (0, spare))
        pads = [layer.kernel_size // 2] * 4
        y = self._qlinear_conv(layer.name, layer, self._pixels(layer.x), weight, bias, pads, PICTURE_QPARAMS)
        picture = self.op.Slice(y, [0], [len(layer.weight)], [3])
        picture.dtype, picture.shape = images.dtype, images.shape
        self.builder.add_output(picture, images.name)

    def _qlinear_conv(
        self,
        name: str,
        layer: Convolution,
        x: ir.Value,
        weight: NDArray[np.float32],
        bias: NDArray[np.float32],
        pads: list[int],
        result: ActivationQParams,
    ) -> ir.Value:
        activation = self.qparams[layer.x]
        kernel = integer_kernel(weight, bias, activation)
        return self.microsoft.QLinearConv(
            x,
            *self._qparams(activation),
            self._constant(f"{name}.codes", kernel.weight.codes),
            self._constant(f"{name}.scale", kernel.weight.scale),
            self._constant(f"{name}.zero_point", np.zeros_like(kernel.weight.codes, shape=len(weight))),
            *self._qparams(result),
            self._constant(f"{name}.bias", kernel.bias),
            channels_last=1,
            kernel_shape=list(weight.shape[2:]),
            pads=pads,
            _name=name,
        )

    def _linear(self, layer: Convolution) -> None:
        """A 1x1 convolution as the rows' matrix product: u8 [B, n, in] -> float32 [B, n, out]."""
        activation = self.qparams[layer.x]
        kernel = integer_kernel(layer.weight[:, :, 0, 0], layer.bias, activation)
        y = self.microsoft.MatMulIntegerToFloat(
            self._codes(layer.x),
            self._constant(f"{layer.name}.codes", np.ascontiguousarray(kernel.weight.codes.T)),
            self._qparams(activation)[0],
            self._constant(f"{layer.name}.scale", kernel.weight.scale),
            self._qparams(activation)[1],
            None,
            self._constant(f"{layer.name}.bias", layer.bias),
            _name=layer.name,
        )
        out = len(layer.weight)
        source = self.features[layer.x]
        strips = self._split(y, _Feature(source.height, source.width, out).strips)
        self._derive(layer.y, layer.x, strips, out)

    def _group_norm(self, layer: GroupNorm) -> None:
        """GroupNorm as an affine of each channel, then QuickGelu(1) = SiLU.

        A mean over pixels is a matrix product with a row of 1/n (ReduceMean is 12 times slower); the variance is
        E[x^2] - E[x]^2, kept from going negative by rounding. Where x has codes, they are normalized instead of
        x = scale * (codes - zero_point), which differs in eps only: a Cast has as many readers as it likes, where ONNX
        Runtime repeats a DequantizeLinear for each of its readers.
        """
        op, feature, eps = self.op, self.features[layer.x], layer.eps
        if feature.codes is None:
            xs = feature.floats
        else:
            xs = [op.Cast(codes, to=ir.DataType.FLOAT) for codes in self._code_strips(feature)]
            eps = min(eps / float(self.qparams[layer.x].scale[0]) ** 2, MAX_EPS)
        strip = feature.pixels // feature.strips
        groups = [layer.groups, feature.channels // layer.groups]
        mean_row = self._constant(f"mean_row.{strip}", np.full((1, strip), 1 / strip, np.float32))
        weight = self._constant(f"{layer.name}.weight", layer.weight.reshape(groups))
        bias = self._constant(f"{layer.name}.bias", layer.bias.reshape(groups))

        moments = [(op.MatMul(mean_row, x), op.MatMul(mean_row, op.Mul(x, x))) for x in xs]
        mean, square = (
            op.ReduceMean(op.Reshape(self._join(parts), [0, feature.strips, *groups]), [1, 3], keepdims=1)
            for parts in zip(*moments, strict=True)
        )
        variance = op.Max(op.Sub(square, op.Mul(mean, mean)), 0.0)
        factor = op.Div(weight, op.Sqrt(op.Add(variance, eps)))
        offset = op.Sub(bias, op.Mul(mean, factor))
        factor, offset = (op.Reshape(v, [0, 1, feature.channels]) for v in (factor, offset))
        ys = [op.Add(op.Mul(x, factor), offset) for x in xs]
        if layer.silu:
            ys = [self.microsoft.QuickGelu(y, alpha=1.0) for y in ys]
        self._derive(layer.y, layer.x, ys)

    def _attention(self, layer: Attention) -> None:
        """softmax(q k.T) v on rows; q, k and v are float32 [B, n, C]."""
        op, source = self.op, self.features[layer.qkv]
        channels = source.channels // 3
        q, k, v = op.Split(self._join(self._floats(layer.qkv)), axis=-1, num_outputs=3, _outputs=3)
        weights = op.Softmax(op.MatMul(q, op.Transpose(k, perm=[0, 2, 1]), _name=f"{layer.name}.scores"), axis=-1)
        y = op.MatMul(weights, v, _name=f"{layer.name}.mix")
        strips = self._split(y, _Feature(source.height, source.width, channels).strips)
        self._derive(layer.y, layer.qkv, strips, channels)

    def _derive(self, value: ir.Value, like: ir.Value, floats: Sequence[ir.Value], channels: int | None = None) -> None:
        """Note the float strips of `value`, of the size of `like` and, unless told, with its channels."""
        source = self.features[like]
        channels = source.channels if channels is None else channels
        self.features[value] = _Feature(source.height, source.width, channels, list(floats))

    def _floats(self, value: ir.Value) -> list[ir.Value]:
        """The strips of float rows."""
        feature = self.features[value]
        if not feature.floats:
            qparams = self._qparams(self.qparams[value])
            feature.floats = [self.op.DequantizeLinear(codes, *qparams) for codes in self._code_strips(feature)]
        return feature.floats

    def _codes(self, value: ir.Value) -> ir.Value:
        """u8 rows [B, n, C]."""
        feature = self.features[value]
        if feature.codes is None:
            qparams = self._qparams(self.qparams[value])
            feature.codes = self._join([self.op.QuantizeLinear(x, *qparams) for x in feature.floats])
        return feature.codes

    def _code_strips(self, feature: _Feature) -> list[ir.Value]:
        assert feature.codes is not None
        if not feature.code_strips:
            feature.code_strips = self._split(feature.codes, feature.strips)
        return feature.code_strips

    def _pixels(self, value: ir.Value) -> ir.Value:
        """u8 [B, H, W, C]."""
        feature = self.features[value]
        return self.op.Reshape(self._codes(value), [-1, feature.height, feature.width, feature.channels])

    def _split(self, rows: ir.Value, strips: int) -> list[ir.Value]:
        return [rows] if strips == 1 else list(self.op.Split(rows, axis=1, num_outputs=strips, _outputs=strips))

    def _join(self, strips: Sequence[ir.Value]) -> ir.Value:
        return strips[0] if len(strips) == 1 else self.op.Concat(*strips, axis=1)

    def _qparams(self, qparams: ActivationQParams) -> tuple[ir.Value, ir.Value]:
        """Scale and zero point as initializers."""
        scale, zero_point = qparams.scale[0], qparams.zero_point[0]
        return self._constant(f"scale.{scale}", scale), self._constant(f"zero_point.{zero_point}", zero_point)

    def _constant(self, name: str, array: NDArray) -> ir.Value:
        """The initializer `name`, made once."""
        initializers = self.builder.graph.initializers
        if name not in initializers:
            self.builder.initializer(ir.tensor(array, name=name), name, qualify=False)
        return initializers[name]
