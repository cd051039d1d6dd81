"""A decoder's or encoder's layers as ONNX operators, channels last, nearly all convolutions u8 x s8.

`quantize_autoencoder` tells what is integer and why.

Symbols: B pictures, n = H * W pixels of a feature map, C channels. Rows are [B, n, C].
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, reduce
from typing import ClassVar

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from nextscale.graph_passes._autoencoder_patterns import (
    Attention,
    Convolution,
    GroupNorm,
    Layer,
    Picture,
    Pixels,
    Residual,
)
from nextscale.graph_passes._channel_steps import channel_steps
from nextscale.graph_passes._graph_builder import GraphBuilder
from nextscale.graph_passes._graph_edit import MICROSOFT
from nextscale.graph_passes._integer_convolution import IntegerKernel, integer_kernel
from nextscale.graph_passes._subpixel_upsample import subpixel_kernels
from nextscale.graph_passes._symbolic_sizes import Size, SizeValues, Symbolic, sure_divisor
from nextscale.graph_passes.qparams import TWO_BYTE_BITS, ActivationQParams, Range

Floats = NDArray[np.float32]
# The picture is round(127.5 (x + 1)).
PICTURE_STEPS, PICTURE_OFFSET = np.float32(127.5), np.float32(1)
CODES_AS_THEY_ARE = ActivationQParams(np.ones(1, np.float32), np.zeros(1, np.uint8))
# Float rows are made and read in strips of at least this size: the operators between two convolutions find a strip in
# the cache, where whole feature maps of 42 MB go through memory each time.
STRIP_BYTES = 4 << 20


@dataclass(frozen=True)
class _Affine:
    """A value of each channel C: x = scale * y + offset, float32 [C] each."""

    scale: Floats
    offset: Floats

    @classmethod
    def codes(cls, observed: Range, finest: Floats) -> _Affine:
        """u8 codes y of each channel's range [C], in steps that are at least `finest` [C]."""
        scale = np.maximum((observed.maximum - observed.minimum) / np.float32(255), finest)
        return cls(scale, observed.minimum)


@dataclass
class Feature:
    """A value [B, C, H, W] of the float graph, in the forms that were needed so far.

    Attributes:
        height, width, channels: H, W, C.
        floats: strips of rows, float32 [B, n / strips, C] each; `pending`, float32 [C], is still to be added.
        codes: rows in the range of the whole value, or in the steps of its channels, uint8 [B, n, C].
        fine: what these leave over, in 128ths of their steps, uint8 [B, n, C]; of values of two bytes.
        results: strips of a convolution's result, uint8 [B, n / strips, C] each, which `result_form` decodes.
        strips: how many.
    """

    height: Size
    width: Size
    channels: int
    strips: int
    floats: list[ir.Value] = field(default_factory=list)
    pending: Floats | None = None
    codes: ir.Value | None = None
    fine: ir.Value | None = None
    results: list[ir.Value] = field(default_factory=list)
    result_form: _Affine | None = None

    @property
    def pixels(self) -> Size:
        return self.height * self.width


class AutoencoderConstants:
    """The constants of a decoder's or encoder's int8 graphs, made once for all of them.

    Args:
        reduce_range: keep every pair of products within 16 bits.
        moments: second moments of what the kernels of layers see, [K, K], by the layer's name (`gptq`); weights of the
            others, and of a reduced range, are rounded to nearest.
    """

    def __init__(self, reduce_range: bool = False, moments: Mapping[str, NDArray[np.float32]] | None = None) -> None:
        self.reduce_range, self.moments = reduce_range, moments or {}
        self.tensors: dict[str, ir.TensorProtocol] = {}
        self.kernels: dict[str, IntegerKernel] = {}

    def tensor(self, name: str, array: NDArray) -> ir.TensorProtocol:
        """The tensor `name`: the same object for the same array."""
        known = self.tensors.setdefault(name, ir.tensor(array, name=name))
        return known if np.array_equal(known.numpy(), array) else ir.tensor(array, name=name)

    def kernel(
        self, layer: str, name: str, weight: Floats, bias: Floats, activation: ActivationQParams
    ) -> IntegerKernel:
        """The integers of the kernel `name` of a layer; `activation` is that of the last byte."""
        if name not in self.kernels:
            seen = None if self.reduce_range else self.moments.get(layer)
            self.kernels[name] = integer_kernel(weight, bias, activation, self.reduce_range, seen)
        return self.kernels[name]


@dataclass(frozen=True)
class NamedKernel:
    """One of a convolution's.

    Attributes:
        name: of its node.
        integers: weights [out, in, k, k], and their bias.
        corner: line and column of what the first output sees first, in a picture with a border of one pixel.
    """

    name: str
    integers: IntegerKernel
    corner: tuple[int, int]

    @property
    def pads(self) -> list[int]:
        """Of a convolution of stride 1, in ONNX's order: top, left, bottom, right."""
        top, left = (1 - place for place in self.corner)
        size = self.size - 1
        return [top, left, size - top, size - left]

    @property
    def size(self) -> int:
        return int(self.integers.weight.codes.shape[-1])

    @cached_property
    def columns(self) -> NDArray[np.int8]:
        """The weights of a product of patches, [k k in, out]: the channels of a pixel together."""
        codes = self.integers.weight.codes
        return np.ascontiguousarray(codes.transpose(2, 3, 1, 0).reshape(-1, len(codes)))


class ChannelsLast:
    """Builds the int8 graph of a list of layers.

    Args:
        source: the float graph's model.
        integer: the convolutions to compute in integers.
        ranges: of their inputs, [1], or [C] of those whose channels have steps of their own.
        channels: [C] of the results that become codes; the others are float.
        two_bytes: the inputs that are read in two bytes each, of layers whose results are float.
        constants: of this graph, perhaps shared with others.
    """

    domains: ClassVar[tuple[str, ...]] = (MICROSOFT,)

    def __init__(
        self,
        source: ir.Model,
        integer: Collection[Convolution],
        ranges: Mapping[ir.Value, Range],
        channels: Mapping[ir.Value, Range],
        two_bytes: Collection[ir.Value],
        constants: AutoencoderConstants,
    ) -> None:
        self.source, self.channels, self.constants = source, channels, constants
        self.two_bytes = frozenset(two_bytes)
        self.integer = {layer.name for layer in integer}
        self.steps: dict[ir.Value, Floats] = {}  # [C], of values whose qparams are in units of them
        self.qparams: dict[ir.Value, ActivationQParams] = {}
        for value, observed in ranges.items():
            if observed.minimum.size == 1:
                bits = TWO_BYTE_BITS if value in self.two_bytes else 8
                self.qparams[value] = ActivationQParams.from_range(observed, bits)
                continue
            weights = [layer.weight for layer in integer if layer.x is value]
            energy = np.sum([np.square(weight).sum((0, 2, 3)) for weight in weights], axis=0)
            self.steps[value], zero_point = channel_steps(observed, energy)
            self.qparams[value] = ActivationQParams(np.ones(1, np.float32), np.array([zero_point], np.uint8))
        opsets = {**source.graph.opset_imports, **dict.fromkeys(self.domains, 1)}
        self.builder = GraphBuilder(ir.Graph([], [], nodes=[], name=source.graph.name, opset_imports=opsets))
        self.op, self.microsoft = self.builder.op, self.builder.opset(MICROSOFT)
        self.features: dict[ir.Value, Feature] = {}
        self.mean_rows: dict[Size, ir.Value] = {}

    def build(self, layers: Sequence[Layer]) -> ir.Model:
        """The model of these layers, with the inputs and outputs of the source."""
        (result,) = self.source.graph.outputs
        pictures = {layer.x for layer in layers if isinstance(layer, Picture)}
        pixels = [layer for layer in layers if isinstance(layer, Pixels)]
        inner = [layer for layer in layers if not isinstance(layer, Pixels | Picture)]
        first = self._channels_first_ones([layer for layer in inner if layer.y not in pictures])
        last = [] if pictures else self._channels_first_ones(inner[::-1])[::-1]
        # A picture's sides are multiples of what the strided convolutions divide them by.
        granule = math.prod(layer.stride for layer in inner if isinstance(layer, Convolution))
        self._enter(pixels, first, granule)
        for layer in inner[len(first) : len(inner) - len(last)]:
            self.builder.push_module(layer.name)
            match layer:
                case Convolution() if layer.y in pictures:
                    self._picture(layer, result)
                case Convolution() if layer.y in self.channels:
                    self._convolution(layer)
                case Convolution() if layer.kernel_size > 1:
                    self._float_convolution(layer)
                case Convolution() if layer.name in self.integer:
                    self._integer_linear(layer)
                case Convolution():
                    self._linear(layer)
                case GroupNorm():
                    self._group_norm(layer)
                case Residual():
                    self._residual(layer)
                case Attention():
                    self._attention(layer)
            self.builder.pop_module()
        if last:
            self._leave(last, result)
        return ir.Model(self.builder.graph, ir_version=self.source.ir_version, producer_name=self.source.producer_name)

    def _channels_first_ones(self, layers: Sequence[Layer]) -> list[Convolution]:
        """The float convolutions that come first: those of few channels at both ends, which stay as they are."""
        found: list[Convolution] = []
        for layer in layers:
            if not isinstance(layer, Convolution) or layer.name in self.integer:
                break
            found.append(layer)
        return found

    def _enter(self, pixels: Sequence[Pixels], convolutions: Sequence[Convolution], granule: int) -> None:
        """The input, f_hat [B, C, h, w] or a picture [B, H, W, 3], through the first convolutions and then to rows.

        Sides that the input's shape does not tell are symbols, `granule` times whole numbers.
        """
        (source,) = self.source.graph.inputs
        assert source.name is not None
        assert source.dtype is not None
        assert source.shape is not None
        shape = [dim if isinstance(dim, int) else dim.value for dim in source.shape.dims]
        sides = [side if isinstance(side, int) else Symbolic((str(side),), granule) for side in shape[1:]]
        height, width, channels = sides if pixels else (*sides[1:], sides[0])
        if not isinstance(channels, int) or None in shape[1:]:
            raise ValueError(f"expected {source.name} of sides with names or numbers, and channels, found {shape}")
        x = self.builder.input(source.name, source.dtype, shape)
        axes = {str(side): axis for axis, side in enumerate(shape) if axis}
        self.size_values = SizeValues(self.op, x, axes, granule)
        value = source
        for layer in pixels:
            numbers = self.op.Transpose(self.op.Cast(x, to=ir.DataType.FLOAT), perm=[0, 3, 1, 2])
            x = self.op.Sub(self.op.Div(numbers, float(PICTURE_STEPS)), float(PICTURE_OFFSET))
            value = layer.y
        x = self._channels_first(convolutions, x)
        if convolutions:
            value, channels = convolutions[-1].y, len(convolutions[-1].weight)
        feature = self._feature(height, width, channels)
        rows = self.op.Reshape(self.op.Transpose(x, perm=[0, 2, 3, 1]), [0, -1, channels])
        feature.floats = self._split(rows, feature.strips)
        self.features[value] = feature

    def _leave(self, convolutions: Sequence[Convolution], result: ir.Value) -> None:
        """Rows through the last convolutions, in float, to the output [B, C, h, w]."""
        rows = self._join(self._floats(convolutions[0].x))
        pixels = self._as_pixels(convolutions[0].x, rows)
        y = self._channels_first(convolutions, self.op.Transpose(pixels, perm=[0, 3, 1, 2]))
        assert result.dtype is not None
        y.dtype, y.shape = result.dtype, result.shape
        self.builder.add_output(y, result.name)

    def _channels_first(self, convolutions: Sequence[Convolution], x: ir.Value) -> ir.Value:
        for layer in convolutions:
            weight, bias = (
                self._constant(f"{layer.name}.{part}", array)
                for part, array in (("weight", layer.weight), ("bias", layer.bias))
            )
            ks = layer.kernel_size
            x = self.op.Conv(x, weight, bias, kernel_shape=[ks, ks], pads=[ks // 2] * 4, _name=layer.name)
        return x

    def _convolution(self, layer: Convolution) -> None:
        """u8 [B, H, W, in] -> u8 [B, H, W, out], or [B, 2H, 2W, out] if the input is upsampled.

        Every channel of the result has codes of its own range, which costs nothing: a convolution has a scale and a
        bias for each output anyway.
        """
        source, out = self.features[layer.x], len(layer.weight)
        activation, observed = self.qparams[layer.x], self.channels[layer.y]
        kernels = self._kernels(layer, layer.bias - observed.minimum, activation)
        finest = np.max([kernel.integers.weight.scale for kernel in kernels], axis=0) * activation.scale[0]
        form = _Affine.codes(observed, finest)
        zoom = 2 if layer.upsampled else 1
        y = self._feature(zoom * source.height, zoom * source.width, out)
        pixels = self._convolve(self._pixels(layer.x), activation, kernels, form.scale)
        y.result_form, y.results = form, self._split(self._as_rows(pixels, y), y.strips)
        self.features[layer.y] = y

    def _kernels(self, layer: Convolution, bias: Floats, activation: ActivationQParams) -> list[NamedKernel]:
        """The layer's kernel, or its four sub-pixel kernels; `bias` in units of codes in `activation`."""
        steps = self.steps.get(layer.x)
        weights = layer.weight if steps is None else layer.weight * steps[:, None, None]
        kernels = (
            [(f"{layer.name}.{k.i}{k.j}", k.weight, (k.i, k.j)) for k in subpixel_kernels(weights)]
            if layer.upsampled
            else [(layer.name, weights, (0, 0) if layer.stride == 1 else (1, 1))]
        )
        return [
            NamedKernel(name, self.constants.kernel(layer.name, name, weight, bias, activation), corner)
            for name, weight, corner in kernels
        ]

    def _convolve(
        self, x: ir.Value, activation: ActivationQParams, kernels: Sequence[NamedKernel], steps: Floats
    ) -> ir.Value:
        """One kernel, or four sub-pixel kernels, of u8 [B, H, W, in]: codes in `steps` [out], pixel by pixel."""
        return self._interleave([self._qlinear_conv(x, activation, kernel, steps) for kernel in kernels])

    def _interleave(self, parts: Sequence[ir.Value]) -> ir.Value:
        """What four sub-pixel kernels make, [B, H, W, out] each, pixel by pixel of twice the size; one as it is.

        Pixels 2x and 2x + 1 lie side by side in memory, like channels; so do the lines 2y and 2y + 1.
        """
        if len(parts) == 1:
            return parts[0]
        op = self.op
        lines = [op.Reshape(op.Concat(*parts[i : i + 2], axis=-1), [0, 0, -1]) for i in (0, 2)]
        return op.Concat(*lines, axis=-1)

    def _qlinear_conv(self, x: ir.Value, activation: ActivationQParams, kernel: NamedKernel, steps: Floats) -> ir.Value:
        """Codes in `steps` [out] of each channel: the operator has one step for all, so the weights' scales have it."""
        name, weight = kernel.name, kernel.integers.weight
        return self.microsoft.QLinearConv(
            x,
            *self._qparams(activation),
            self._constant(f"{name}.codes", weight.codes),
            self._constant(f"{name}.scale", weight.scale / steps),
            self._constant(f"{name}.zero_point", np.zeros_like(weight.codes, shape=len(weight.codes))),
            *self._qparams(CODES_AS_THEY_ARE),
            self._constant(f"{name}.bias", kernel.integers.bias),
            channels_last=1,
            kernel_shape=list(weight.codes.shape[2:]),
            pads=kernel.pads,
            _name=name,
        )

    def _picture(self, layer: Convolution, images: ir.Value) -> None:
        """The last convolution, in float, and the picture: uint8 [B, H, W, 3].

        A matrix product gives what each pixel adds to each neighbour, and shifted slices add that up: with 3 outputs
        that is 27 numbers a pixel, where an im2col would have 9 C.
        """
        op, feature = self.op, self.features[layer.x]
        out, ks = len(layer.weight), layer.kernel_size
        weight = (layer.weight * PICTURE_STEPS).transpose(1, 2, 3, 0).reshape(feature.channels, -1)
        products = self._constant(f"{layer.name}.weight", weight)
        strips = enumerate(self._floats(layer.x))
        rows = self._join([op.MatMul(x, products, _name=f"{layer.name}.{i}") for i, x in strips])
        pixels = op.Reshape(rows, self._shape([-1, feature.height, feature.width, weight.shape[1]]))
        pad = ks // 2
        pixels = op.Pad(pixels, [0, pad, pad, 0] * 2) if pad else pixels
        total = self._constant(f"{layer.name}.bias", (layer.bias + PICTURE_OFFSET) * PICTURE_STEPS)
        for tap in range(ks * ks):
            y, x = divmod(tap, ks)
            first = [y, x, tap * out]
            last = [y + feature.height, x + feature.width, (tap + 1) * out]
            total = op.Add(total, op.Slice(pixels, first, self._shape(last), [1, 2, 3]))
        picture = op.QuantizeLinear(total, *self._qparams(CODES_AS_THEY_ARE))
        picture.dtype, picture.shape = images.dtype, images.shape
        self.builder.add_output(picture, images.name)

    def _integer_linear(self, layer: Convolution) -> None:
        """A 1x1 convolution as the rows' matrix product: u8 [B, n, in] -> float32 [B, n, out]."""
        source, out = self.features[layer.x], len(layer.weight)
        (kernel,) = self._kernels(layer, layer.bias, self._last_byte(layer.x))
        y = self._product(layer, kernel, [codes for codes, _ in self._bytes(layer.x)], kernel.name)
        strips = self._split(y, self._feature(source.height, source.width, out).strips)
        self._derive(layer.y, layer.x, strips, out)

    def _float_convolution(self, layer: Convolution) -> None:
        """One or two bytes [B, H, W, in] -> float32 rows: products of the patches that each output sees, by strips."""
        source, out = self.features[layer.x], len(layer.weight)
        zoom = 2 if layer.upsampled else 1
        y = self._feature(zoom * source.height // layer.stride, zoom * source.width // layer.stride, out)
        height, width = y.height // zoom, y.width // zoom
        kernels = self._kernels(layer, layer.bias, self._last_byte(layer.x))
        pictures = [
            self.op.Pad(self._as_pixels(layer.x, codes), [0, 1, 1, 0] * 2, zero_point)
            for codes, (_, zero_point) in self._bytes(layer.x)
        ]
        count = math.gcd(y.strips, sure_divisor(height))
        lines = height // count
        strips: list[ir.Value] = []
        for i in range(count):
            parts = []
            for kernel in kernels:
                seen = [self._patches(x, kernel, layer.stride, i, lines, width) for x in pictures]
                rows = self._product(layer, kernel, seen, f"{kernel.name}.{i}")
                parts.append(rows if zoom == 1 else self.op.Reshape(rows, self._shape([0, lines, width, out])))
            rows = self._interleave(parts)
            strips.append(rows if zoom == 1 else self.op.Reshape(rows, [0, -1, out]))
        y.floats = strips if count == y.strips else self._split(self._join(strips), y.strips)
        self.features[layer.y] = y

    def _patches(self, x: ir.Value, kernel: NamedKernel, stride: int, strip: int, lines: Size, width: Size) -> ir.Value:
        """What the outputs of a strip of lines see of u8 [B, H + 2, W + 2, C]: rows [B, lines width, k k C]."""
        op, size, (top, left) = self.op, kernel.size, kernel.corner
        seen = []
        for i in range(size):
            for j in range(size):
                y, x0 = top + i, left + j
                begin = [stride * strip * lines + y, x0]
                end = [stride * (strip + 1) * lines + (y - stride + 1), stride * width + (x0 - stride + 1)]
                seen.append(op.Slice(x, self._shape(begin), self._shape(end), [1, 2], [stride, stride]))
        return op.Reshape(op.Concat(*seen, axis=-1), self._shape([0, lines * width, -1]))

    def _product(self, layer: Convolution, kernel: NamedKernel, rows: Sequence[ir.Value], name: str) -> ir.Value:
        """One or two bytes of rows, u8 [B, n, K] each, times a kernel's weights: float32 [B, n, out]."""
        # In this order: a graph's initializers stand in that of their making.
        columns = self._constant(f"{kernel.name}.codes", kernel.columns)
        *first, last = zip(rows, (qparams for _, qparams in self._bytes(layer.x)), strict=True)
        weight = columns, self._constant(f"{kernel.name}.scale", kernel.integers.weight.scale)
        bias = self._constant(f"{layer.name}.bias", layer.bias)
        coarse = [self._multiply(*of_byte, weight, None, f"{name}.coarse") for of_byte in first]
        return reduce(self.op.Add, coarse, self._multiply(*last, weight, bias, name))

    def _multiply(
        self,
        codes: ir.Value,
        qparams: tuple[ir.Value, ir.Value],
        weight: tuple[ir.Value, ir.Value],
        bias: ir.Value | None,
        name: str,
    ) -> ir.Value:
        """scale (codes - zero_point) weight + bias, the weight as its codes [in, out] and scale [out]."""
        (scale, zero_point), (columns, weight_scale) = qparams, weight
        return self.microsoft.MatMulIntegerToFloat(
            codes, columns, scale, weight_scale, zero_point, None, bias, _name=name
        )

    def _linear(self, layer: Convolution) -> None:
        """A 1x1 convolution in float: float32 [B, n, in] -> [B, n, out], whose bias stays pending."""
        source, weight = self.features[layer.x], layer.weight[:, :, 0, 0]
        floats, pending = self._unfinished(layer.x)
        columns = self._constant(f"{layer.name}.weight", np.ascontiguousarray(weight.T))
        rows = [self.op.MatMul(x, columns, _name=f"{layer.name}.{i}") for i, x in enumerate(floats)]
        out = self._feature(source.height, source.width, len(weight))
        strips = self._split(self._join(rows), out.strips) if out.strips != source.strips else rows
        self._derive(layer.y, layer.x, strips, len(weight))
        self.features[layer.y].pending = layer.bias if pending is None else layer.bias + weight @ pending

    def _residual(self, layer: Residual) -> None:
        (a, pending_a), (b, pending_b) = self._unfinished(layer.a), self._unfinished(layer.b)
        self._derive(layer.y, layer.a, [self.op.Add(*pair) for pair in zip(a, b, strict=True)])
        pending = [offset for offset in (pending_a, pending_b) if offset is not None]
        self.features[layer.y].pending = np.sum(pending, axis=0) if pending else None

    def _group_norm(self, layer: GroupNorm) -> None:
        """GroupNorm as an affine of each channel, then QuickGelu(1) = SiLU.

        A mean over pixels is a matrix product with a row of 1/n (ReduceMean is 12 times slower). A group's variance is
        the mean of its channels' plus the variance of their means. Where x is a convolution's result, its codes are
        normalized: their affine is one more of each channel.
        """
        op, feature = self.op, self.features[layer.x]
        form = feature.result_form
        xs = feature.floats if form is None else [op.Cast(codes, to=ir.DataType.FLOAT) for codes in feature.results]
        offset = feature.pending if form is None else form.offset
        shape = [1, feature.channels]
        mean_row = self._mean_row(feature.pixels // feature.strips)

        moments = [(op.MatMul(mean_row, x), op.MatMul(mean_row, op.Mul(x, x))) for x in xs]
        mean, square = (
            op.ReduceMean(self._join(parts), [1], keepdims=1) if len(parts) > 1 else parts[0]
            for parts in zip(*moments, strict=True)
        )
        variance = op.Max(op.Sub(square, op.Mul(mean, mean)), 0.0)
        if form is not None:
            scale = self._constant(f"{layer.name}.input_scale", form.scale.reshape(shape))
            mean, variance = op.Mul(mean, scale), op.Mul(variance, op.Mul(scale, scale))
        if offset is not None:
            mean = op.Add(mean, self._constant(f"{layer.name}.input_offset", offset.reshape(shape)))
        groups = [0, layer.groups, feature.channels // layer.groups]
        means, variances = (op.Reshape(moment, groups) for moment in (mean, variance))
        group_mean = op.ReduceMean(means, [2], keepdims=1)
        centred = op.Sub(means, group_mean)
        group_variance = op.ReduceMean(op.Add(variances, op.Mul(centred, centred)), [2], keepdims=1)

        weight = self._constant(f"{layer.name}.weight", layer.weight.reshape(groups[1:]))
        bias = self._constant(f"{layer.name}.bias", layer.bias.reshape(groups[1:]))
        factor = op.Div(weight, op.Sqrt(op.Add(group_variance, layer.eps)))
        shift = op.Sub(bias, op.Mul(group_mean, factor))
        factor, shift = (op.Reshape(v, [0, 1, feature.channels]) for v in (factor, shift))
        if offset is not None:
            shift = op.Add(shift, op.Mul(factor, self._constant(f"{layer.name}.input_offset", offset.reshape(shape))))
        if form is not None:
            factor = op.Mul(factor, scale)
        ys = [op.Add(op.Mul(x, factor), shift) for x in xs]
        if layer.silu:
            ys = [self.microsoft.QuickGelu(y, alpha=1.0) for y in ys]
        self._derive(layer.y, layer.x, ys)

    def _mean_row(self, pixels: Size) -> ir.Value:
        """1/n for each of n pixels: float32 [1, n]."""
        if isinstance(pixels, int):
            return self._constant(f"mean_row.{pixels}", np.full((1, pixels), 1 / pixels, np.float32))
        if pixels not in self.mean_rows:
            share = self.op.Reciprocal(self.op.Cast(self._shape([pixels]), to=ir.DataType.FLOAT))
            self.mean_rows[pixels] = self.op.Expand(share, self._shape([1, pixels]))
        return self.mean_rows[pixels]

    def _attention(self, layer: Attention) -> None:
        """softmax(q k.T) v on rows; q, k and v are float32 [B, n, C]."""
        op, source = self.op, self.features[layer.qkv]
        channels = source.channels // 3
        q, k, v = op.Split(self._join(self._floats(layer.qkv)), axis=-1, num_outputs=3, _outputs=3)
        weights = op.Softmax(op.MatMul(q, op.Transpose(k, perm=[0, 2, 1]), _name=f"{layer.name}.scores"), axis=-1)
        y = op.MatMul(weights, v, _name=f"{layer.name}.mix")
        strips = self._split(y, self._feature(source.height, source.width, channels).strips)
        self._derive(layer.y, layer.qkv, strips, channels)

    def _derive(self, value: ir.Value, like: ir.Value, floats: Sequence[ir.Value], channels: int | None = None) -> None:
        """Note the float strips of `value`, of the size of `like` and, unless told, with its channels."""
        source = self.features[like]
        channels = source.channels if channels is None else channels
        self.features[value] = feature = self._feature(source.height, source.width, channels)
        feature.floats = list(floats)

    def _feature(self, height: Size, width: Size, channels: int) -> Feature:
        """One whose strips are a power of two that divides the height; of a symbol, the largest that surely does."""
        if not isinstance(height, int) or not isinstance(width, int):
            divisor = sure_divisor(height)
            return Feature(height, width, channels, divisor & -divisor)
        wanted = max(1, 4 * height * width * channels // STRIP_BYTES)
        return Feature(height, width, channels, math.gcd(height, 1 << (wanted.bit_length() - 1)))

    def _unfinished(self, value: ir.Value) -> tuple[list[ir.Value], Floats | None]:
        """The strips of float rows, and what is still to be added to them."""
        feature = self.features[value]
        assert feature.floats  # what a GroupNorm alone reads is in codes
        return feature.floats, feature.pending

    def _floats(self, value: ir.Value) -> list[ir.Value]:
        """The strips of float rows."""
        floats, pending = self._unfinished(value)
        if pending is None:
            return floats
        return [self.op.Add(x, self._constant(f"{value.name}.offset", pending)) for x in floats]

    def _codes(self, value: ir.Value) -> ir.Value:
        """u8 rows [B, n, C] in the range of the whole value, or in the steps of its channels."""
        feature = self.features[value]
        if feature.codes is None:
            self._encode(value)
        assert feature.codes is not None
        return feature.codes

    def _encode(self, value: ir.Value) -> None:
        """Make the codes of a value, and those of what they leave over if it is read in two bytes."""
        op, feature, qparams = self.op, self.features[value], self._qparams(self.qparams[value])
        strips = self._in_steps(value)
        codes = [op.QuantizeLinear(x, *qparams) for x in strips]
        feature.codes = self._join(codes)
        if value in self.two_bytes:
            fine = self._qparams(self.qparams[value].fine())
            left = [op.Sub(x, op.DequantizeLinear(y, *qparams)) for x, y in zip(strips, codes, strict=True)]
            feature.fine = self._join([op.QuantizeLinear(x, *fine) for x in left])

    def _in_steps(self, value: ir.Value) -> list[ir.Value]:
        """The strips of float rows, each channel in its own steps where it has them."""
        if value not in self.steps:
            return self._floats(value)
        inverse = self._constant(f"{value.name}.inverse_steps", np.float32(1) / self.steps[value])
        return [self.op.Mul(x, inverse) for x in self._floats(value)]

    def _bytes(self, value: ir.Value) -> list[tuple[ir.Value, tuple[ir.Value, ir.Value]]]:
        """The one or two bytes of a value, u8 [B, n, C] each, and what each is in units of."""
        found = [(self._codes(value), self._qparams(self.qparams[value]))]
        if value in self.two_bytes:
            fine = self.features[value].fine
            assert fine is not None
            found.append((fine, self._qparams(self._last_byte(value))))
        return found

    def _last_byte(self, value: ir.Value) -> ActivationQParams:
        """The parameters of the byte to whose product a bias is added."""
        qparams = self.qparams[value]
        return qparams.fine() if value in self.two_bytes else qparams

    def _pixels(self, value: ir.Value) -> ir.Value:
        """u8 [B, H, W, C]."""
        return self._as_pixels(value, self._codes(value))

    def _as_pixels(self, value: ir.Value, rows: ir.Value) -> ir.Value:
        feature = self.features[value]
        return self.op.Reshape(rows, self._shape([-1, feature.height, feature.width, feature.channels]))

    def _as_rows(self, pixels: ir.Value, feature: Feature) -> ir.Value:
        """[B, H, W, C], perhaps by lines of pixels, to rows [B, n, C]."""
        return self.op.Reshape(pixels, self._shape([0, feature.pixels, feature.channels]))

    def _shape(self, sizes: Sequence[Size]) -> list[int] | ir.Value:
        """Sizes, or places, as an operator takes them."""
        return self.size_values.vector(sizes)

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
            self.builder.initializer(self.constants.tensor(name, array), name, qualify=False)
        return initializers[name]
