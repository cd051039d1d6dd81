"""A decoder's layers with fused operators (kernels/README.md), channels last: the integers of `ChannelsLast`.

Three values of a feature map are ever in memory: the float residual stream, a convolution's codes, and the codes that
the next one reads. No value is split into strips, since no operator between two convolutions reads one twice.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import ClassVar

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from nextscale.graph_passes._channels_last import ChannelsLast, DecoderConstants, Feature, NamedKernel
from nextscale.graph_passes._decoder_patterns import Attention, Convolution, GroupNorm, Layer, Residual
from nextscale.graph_passes._graph_edit import MICROSOFT
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
        constants: DecoderConstants,
    ) -> None:
        super().__init__(source, integer, ranges, channels, constants)
        self.fused = self.builder.opset(OPERATORS)
        self.read_as_floats: set[ir.Value] = set()

    def build(self, layers: Sequence[Layer]) -> ir.Model:
        """The model of these layers, with the inputs and outputs of the source."""
        for layer in layers:
            match layer:
                case Convolution() if layer.name not in self.integer:
                    self.read_as_floats.add(layer.x)
                case Residual():
                    self.read_as_floats |= {layer.a, layer.b}
                case Attention():
                    self.read_as_floats.add(layer.qkv)
        return super().build(layers)

    def _feature(self, height: int, width: int, channels: int) -> Feature:
        return Feature(height, width, channels, strips=1)

    def _multiply(
        self,
        codes: ir.Value,
        qparams: tuple[ir.Value, ir.Value],
        weight: tuple[ir.Value, ir.Value],
        bias: ir.Value,
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

    def _group_norm(self, layer: GroupNorm) -> None:
        """To codes at once, unless a layer reads the numbers."""
        x = self.features[layer.x]
        offset = x.pending if x.result_form is None else x.result_form.offset
        as_codes = layer.y in self.qparams and layer.y not in self.read_as_floats
        inputs = [
            None if offset is None else self._constant(f"{layer.name}.fused_offset", offset),
            self._constant(f"{layer.name}.fused_weight", layer.weight),
            self._constant(f"{layer.name}.fused_bias", layer.bias),
            *(self._qparams(self.qparams[layer.y]) if as_codes else ()),
        ]
        attributes = {"groups": layer.groups, "epsilon": float(layer.eps), "silu": int(layer.silu)}
        codes, numbers = ir.Value(name=f"{layer.name}.codes"), ir.Value(name=f"{layer.name}.numbers")
        codes.dtype, numbers.dtype = ir.DataType.UINT8, ir.DataType.FLOAT
        outputs = [codes] if as_codes else [ir.Value(name=""), numbers]
        if x.result_form is None:
            self.fused.GroupNorm(x.floats[0], *inputs, **attributes, _outputs=outputs, _name=layer.name)
        else:
            scale = self._constant(f"{layer.name}.fused_scale", x.result_form.scale)
            self.fused.CodesGroupNorm(x.results[0], scale, *inputs, **attributes, _outputs=outputs, _name=layer.name)
        self._derive(layer.y, layer.x, [] if as_codes else [numbers])
        if as_codes:
            self.features[layer.y].codes = codes

    def _residual(self, layer: Residual) -> None:
        """Results of convolutions stay codes until here."""
        a, b = self.features[layer.a], self.features[layer.b]
        if a.result_form is not None and b.result_form is None:
            a, b = b, a
        if b.result_form is None:
            super()._residual(layer)
            return
        form = b.result_form
        scale = self._constant(f"{layer.name}.fused_scale", form.scale)
        if a.result_form is None:
            offset = form.offset if a.pending is None else form.offset + a.pending
            inputs = [a.floats[0], b.results[0], scale, None, None]
        else:
            offset = form.offset + a.result_form.offset
            more_scale = self._constant(f"{layer.name}.fused_more_scale", a.result_form.scale)
            inputs = [None, b.results[0], scale, a.results[0], more_scale]
        self._derive(layer.y, layer.a, [self._add_codes(layer.name, *inputs, offset=offset)])

    def _unfinished(self, value: ir.Value) -> tuple[list[ir.Value], Floats | None]:
        feature = self.features[value]
        form = feature.result_form
        if not feature.floats and form is not None:
            scale = self._constant(f"{value.name}.scale", form.scale)
            name = f"{value.name}.numbers"
            feature.floats = [self._add_codes(name, None, feature.results[0], scale, None, None, offset=form.offset)]
        return feature.floats, feature.pending

    def _add_codes(self, name: str, *inputs: ir.Value | None, offset: Floats) -> ir.Value:
        y = self.fused.AddCodes(*inputs, self._constant(f"{name}.fused_offset", offset), _name=name)
        y.dtype = ir.DataType.FLOAT
        return y
