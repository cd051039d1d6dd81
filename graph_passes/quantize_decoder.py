"""The int8 decoder, or encoder: the float graph's layers again, channels last, its convolutions u8 x s8.

What is integer and what is float, and why (benchmarks/NOTES.md has the figures):

- A 3x3 convolution is a contrib QLinearConv(channels_last=1), u8 in, u8 out, int32 bias: the fast form on x86. Its
  result has a range for each channel.
- Nearest upsampling and its convolution are four small convolutions (`subpixel_upsample`).
- A 1x1 convolution of what was normalized or mixed is a matrix product of the rows, MatMulIntegerToFloat; its float
  result needs no range.
- The residual stream, GroupNorm, SiLU, softmax and the attention products are float: in u8 they cost 4 dB.
- Float are also the convolutions that cost little and lose much: those of f_hat and of an encoder's features, which are
  small, the 1x1 shortcuts, which read the residual stream, and those that read or make a picture's 3 channels.
- A convolution of stride 2 is a matrix product of what each output sees, in float behind it: its result is the residual
  stream.

`fused_decoder` has the same integers and ranges with the operators of kernels/README.md, which pass over a feature map
once where stock operators do it five times.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import onnx_ir as ir

from nextscale.graph_passes._channels_last import ChannelsLast, DecoderConstants, has_codes
from nextscale.graph_passes._decoder_patterns import (
    Attention,
    Convolution,
    GroupNorm,
    Layer,
    Picture,
    Pixels,
    parse_layers,
)
from nextscale.graph_passes._fused_channels_last import FusedChannelsLast
from nextscale.graph_passes.observe_inputs import PIXELS, Input, Observer
from nextscale.graph_passes.qparams import Range


def integer_convolutions(model: ir.Model) -> list[str]:
    """The names of the convolutions of a float decoder graph that `quantize_decoder` computes in integers."""
    return [layer.name for layer in _integer_convolutions(parse_layers(model.graph))]


@dataclass(frozen=True)
class DecoderRanges:
    """What `quantize_decoder` needs to know of a float decoder graph, by the names of nodes.

    Attributes:
        inputs: of the first input of each integer convolution, [1].
        results: of each channel of each 3x3 integer convolution's result, [C], by the node that `observed_results`
            names.
    """

    inputs: Mapping[str, Range]
    results: Mapping[str, Range]


def observed_results(model: ir.Model) -> list[str]:
    """One reader, with its first input, of each 3x3 integer convolution's result."""
    names: list[str] = []
    for layer in _integer_convolutions(parse_layers(model.graph)):
        if has_codes(layer):
            readers = [node for node in layer.y.consumers() if node.inputs[0] is layer.y]
            if not readers:
                raise ValueError(f"{layer.y.name!r} is no node's first input, so that its range can't be observed")
            names.append(str(readers[0].name))
    return names


def decoder_observers(model: ir.Model) -> tuple[list[Observer], list[Observer]]:
    """What tells the ranges that int8 needs of a float decoder graph: of `DecoderRanges.inputs`, and of its results."""
    inputs = [Observer(Input(name), "range") for name in integer_convolutions(model)]
    return inputs, [Observer(Input(name), "channels", PIXELS) for name in observed_results(model)]


def quantize_decoder(model: ir.Model, ranges: DecoderRanges, reduce_range: bool = False) -> ir.Model:
    """The int8 form of a float decoder graph: f_hat float32 [B, Cvae, h, w] -> images uint8 [B, H, W, 3].

    Args:
        model: of `build_decoder_graph`; not modified.
        ranges: of its values.
        reduce_range: keep every pair of products within 16 bits, for CPUs without VNNI.
    Raises:
        PatternRefused: a node of the graph is part of no layer that is known here.
        ValueError: a range is missing.
    """
    return _build(ChannelsLast, model, ranges, DecoderConstants(reduce_range))


def fused_decoder(model: ir.Model, ranges: DecoderRanges, reduce_range: bool = False) -> ir.Model:
    """The same layers, integers and ranges with the fused operators of kernels/README.md; see `quantize_decoder`."""
    return _build(FusedChannelsLast, model, ranges, DecoderConstants(reduce_range))


def stock_and_fused_decoder(
    model: ir.Model, ranges: DecoderRanges, reduce_range: bool = False
) -> tuple[ir.Model, ir.Model]:
    """`quantize_decoder` and `fused_decoder`, which share the tensors of their weights."""
    constants = DecoderConstants(reduce_range)
    return _build(ChannelsLast, model, ranges, constants), _build(FusedChannelsLast, model, ranges, constants)


def _build(
    builder: type[ChannelsLast], model: ir.Model, ranges: DecoderRanges, constants: DecoderConstants
) -> ir.Model:
    layers = parse_layers(model.graph)
    integer = _integer_convolutions(layers)
    names, readers = [layer.name for layer in integer], observed_results(model)
    for wanted, found in ((names, ranges.inputs), (readers, ranges.results)):
        missing = [name for name in wanted if name not in found]
        if missing:
            raise ValueError(f"no range for the first input of {len(missing)} nodes, the first of them {missing[0]!r}")
    inputs = {layer.x: ranges.inputs[layer.name] for layer in integer}
    results = (layer.y for layer in integer if has_codes(layer))
    channels = {value: ranges.results[name] for value, name in zip(results, readers, strict=True)}
    return builder(model, integer, inputs, channels, constants).build(layers)


def _integer_convolutions(layers: Sequence[Layer]) -> list[Convolution]:
    """All but those of pictures and latents, which stand first and last, and the shortcuts."""
    narrow = {layer.y for layer in layers if isinstance(layer, GroupNorm | Attention)}
    inner = [layer for layer in layers if not isinstance(layer, Pixels | Picture)]
    first = next((i for i, layer in enumerate(inner) if not _is_plain(layer)), 0)
    last = next((i for i, layer in enumerate(reversed(inner)) if not _is_plain(layer)), 0)
    return [
        layer
        for layer in inner[first : len(inner) - last]
        if isinstance(layer, Convolution) and (layer.kernel_size > 1 or layer.x in narrow)
    ]


def _is_plain(layer: Layer) -> bool:
    return isinstance(layer, Convolution) and not layer.upsampled and layer.stride == 1
