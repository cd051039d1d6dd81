"""A decoder's layers with fused operators (kernels/README.md), channels last: the integers of `ChannelsLast`.

A feature map is in memory as the float residual stream, a convolution's codes, and the codes that the next one reads.
No value is split into strips, since no operator between two convolutions reads one twice.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import ClassVar

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from nextscale.graph_passes._autoencoder_patterns import Attention, Convolution, GroupNorm, Layer, Residual
from nextscale.graph_passes._channels_last import AutoencoderConstants, ChannelsLast, Feature, NamedKernel
from nextscale.graph_passes._graph_edit import MICROSOFT
from nextscale.graph_passes._symbolic_sizes import Size
from nextscale.graph_passes.qparams import ActivationQParams, Range
from nextscale.runtime._manifest import OPERATORS

Floats = NDArray[np.float32]


class FusedChannelsLast(ChannelsLast):
    """Builds the fused int8 graph of a list of layers; see `ChannelsLast`."""

    domains: ClassVar[tuple[str, ...]] = (MICROSOFT, OPERATORS)

    def __init__(
        self,
        source: ir.Model,
        integer: Collection[Convolution],
        ranges: Mapping[ir.Value, Range],
        channels: Mapping[ir.Value, Range],
        two_bytes: Collection[ir.Value],
        constants: AutoencoderConstants,
    ) -> None:
        super().__init__(source, integer, ranges, channels, two_bytes, constants)
        self.fused = self.builder.opset(OPERATORS)
        self.read_as_floats: set[ir.Value] = set()
        self.sums: dict[ir.Value, Residual] = {}  # by each of the two values

    def build(self, layers: Sequence[Layer]) -> ir.Model:
        """The model of these layers, with the inputs and outputs of the source."""
        for layer in layers:
            match layer:
                case Convolution() if layer.name not in self.integer:
                    self.read_as_floats.add(layer.x)
                case Residual():
                    self.read_as_floats |= {layer.a, layer.b}
                    self.sums |= {layer.a: layer, layer.b: layer}
                case Attention():
                    self.read_as_floats.add(layer.qkv)
        return super().build(layers)

    def _feature(self, height: Size, width: Size, channels: int) -> Feature:
        return Feature(height, width, channels, strips=1)

    def _multiply(
        self,
        codes: ir.Value,
        qparams: tuple[ir.Value, ir.Value],
        weight: tuple[ir.Value, ir.Value],
        bias: ir.Value | None,
        name: str,
    ) -> ir.Value:
        y = self.fused.Linear(codes, *qparams, *weight, bias, _name=name)
        y.dtype = ir.DataType.FLOAT
        return y

    def _convolve(
        self, x: ir.Value, activation: ActivationQParams, kernels: Sequence[NamedKernel], steps: Floats
    ) -> ir.Value:
        _, zero_point = self._qparams(activation)
        constants = [
            self._constant(f"{kernel.name}.{part}", array)
            for kernel in kernels
            for part, array in (
                ("codes", kernel.integers.weight.codes),
                ("to_codes", activation.scale[0] * (kernel.integers.weight.scale / steps)),
                ("bias", kernel.integers.bias),
            )
        ]
        upsample = int(len(kernels) > 1)
        y = self.fused.Convolution(x, zero_point, *constants, upsample=upsample, _name=kernels[0].name)
        y.dtype = ir.DataType.UINT8
        return y

    def _float_convolution(self, layer: Convolution) -> None:
        """One or two bytes [B, H, W, in] -> float32 rows, with what is added to them next."""
        source, out = self.features[layer.x], len(layer.weight)
        (codes, (_, zero_point)), *fine = self._bytes(layer.x)
        kernels = self._kernels(layer, layer.bias, self._last_byte(layer.x))
        constants = [
            self._constant(f"{kernel.name}.{part}", array)
            for kernel in kernels
            for part, array in (
                ("codes", kernel.columns),
                ("to_numbers", self.qparams[layer.x].scale[0] * kernel.integers.weight.scale),
                ("fine_bias" if fine else "integer_bias", kernel.integers.bias),
            )
        ]
        zoom = 2 if layer.upsampled else 1
        y = self._feature(zoom * source.height // layer.stride, zoom * source.width // layer.stride, out)
        added, pending, result = self._added(layer)
        residual = None if added is None else self.op.Reshape(added, self._shape([-1, y.height, y.width, out]))
        unused = [None] * (3 * (4 - len(kernels)))
        numbers = ir.Value(name=f"{layer.name}.numbers")
        numbers.dtype = ir.DataType.FLOAT
        self.fused.Convolution(
            self._as_pixels(layer.x, codes),
            zero_point,
            *constants,
            *unused,
            self._as_pixels(layer.x, fine[0][0]) if fine else None,
            residual,
            upsample=int(layer.upsampled),
            stride=layer.stride,
            result="float",
            _outputs=[ir.Value(name=""), numbers],
            _name=layer.name,
        )
        y.floats, y.pending = [self._as_rows(numbers, y)], pending
        self.features[result] = y

    def _added(self, layer: Convolution) -> tuple[ir.Value | None, Floats | None, ir.Value]:
        """What a residual adds to the convolution's result, if it is there by now: rows, what is to be added to them,
        and the value that the sum is.
        """
        residual = self.sums.get(layer.y)
        if residual is not None and len(layer.y.consumers()) == 1:
            other = residual.b if residual.a is layer.y else residual.a
            feature = self.features.get(other)
            if feature is not None and feature.floats:
                return feature.floats[0], feature.pending, residual.y
        return None, None, layer.y

    def _encode(self, value: ir.Value) -> None:
        feature, two_bytes = self.features[value], value in self.two_bytes
        outputs = [ir.Value(name=f"{value.name}.codes")]
        if two_bytes:
            outputs += [*(ir.Value(name="") for _ in range(3)), ir.Value(name=f"{value.name}.fine")]
        for output in outputs:
            output.dtype = ir.DataType.UINT8
        (rows,) = self._in_steps(value)
        qparams = self._qparams(self.qparams[value])
        self.fused.Quantize(rows, *qparams, **({"fine": 1} if two_bytes else {}), _outputs=outputs)
        feature.codes, feature.fine = outputs[0], outputs[-1] if two_bytes else None

    def _group_norm(self, layer: GroupNorm) -> None:
        """To codes at once, unless a layer reads the numbers."""
        x = self.features[layer.x]
        offset = x.pending if x.result_form is None else x.result_form.offset
        as_codes = layer.y in self.qparams and layer.y not in self.read_as_floats
        inputs = [
            None if offset is None else self._constant(f"{layer.name}.fused_offset", offset),
            self._constant(f"{layer.name}.fused_weight", layer.weight),
            self._constant(f"{layer.name}.fused_bias", layer.bias),
            *(self._code_inputs(layer) if as_codes else ()),
        ]
        attributes = {"groups": layer.groups, "epsilon": float(layer.eps), "silu": int(layer.silu)}
        codes, numbers = ir.Value(name=f"{layer.name}.codes"), ir.Value(name=f"{layer.name}.numbers")
        codes.dtype, numbers.dtype = ir.DataType.UINT8, ir.DataType.FLOAT
        outputs, fine = [codes] if as_codes else [ir.Value(name=""), numbers], None
        if as_codes and layer.y in self.two_bytes:
            fine = ir.Value(name=f"{layer.name}.fine")
            fine.dtype = ir.DataType.UINT8
            outputs += [ir.Value(name=""), fine]
            attributes["fine"] = 1
        if x.result_form is None:
            self.fused.GroupNorm(x.floats[0], *inputs, **attributes, _outputs=outputs, _name=layer.name)
        else:
            scale = self._constant(f"{layer.name}.fused_scale", x.result_form.scale)
            self.fused.CodesGroupNorm(x.results[0], scale, *inputs, **attributes, _outputs=outputs, _name=layer.name)
        self._derive(layer.y, layer.x, [] if as_codes else [numbers])
        if as_codes:
            self.features[layer.y].codes, self.features[layer.y].fine = codes, fine

    def _code_inputs(self, layer: GroupNorm) -> tuple[ir.Value, ir.Value]:
        """Scale, [] or [C], and zero point of what the layer makes."""
        scale, zero_point = self._qparams(self.qparams[layer.y])
        steps = self.steps.get(layer.y)
        return scale if steps is None else self._constant(f"{layer.name}.fused_steps", steps), zero_point

    def _residual(self, layer: Residual) -> None:
        """Unless the convolution itself has added what is added."""
        if layer.y not in self.features:
            super()._residual(layer)
