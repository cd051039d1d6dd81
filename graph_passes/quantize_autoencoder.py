"""The int8 decoder, or encoder: the float graph's layers again, channels last, its convolutions u8 x s8.

What is integer and what is float, and why (benchmarks/NOTES.md has the figures):

- A 3x3 convolution whose result a GroupNorm alone reads is a contrib QLinearConv(channels_last=1), u8 in, u8 out, int32
  bias: the fast form on x86. Its result has a range for each channel.
- Other results join the residual stream, where an error in 8 bits would stay: they are float, matrix products of the
  patches that each output sees.
- What is normalized or upsampled is read with a step for each channel, folded into the weights (`channel_steps`).
- Where 8 bits are too few, a convolution reads two bytes of each number, the second of which has what the first leaves
  over. That is so for all of an encoder, where one token that changes changes all later ones, and for a decoder's
  narrow convolutions, whose errors are seen: few channels' do not cancel, and plain surfaces get rings.
- Nearest upsampling and its convolution are four small convolutions (`subpixel_upsample`).
- A 1x1 convolution of what was normalized or mixed is a matrix product of the rows, MatMulIntegerToFloat; its float
  result needs no range.
- The residual stream, GroupNorm, SiLU, softmax and the attention products are float.
- Float are also the convolutions that cost little and lose much: those of f_hat and of an encoder's features, which are
  small, the 1x1 shortcuts, which read the residual stream, and those that read or make a picture's 3 channels.

Sides of the input that its shape names, as h and w, are learned when the graph runs (`_symbolic_sizes`): it is then one
for pictures of all sizes.

The fused form has the same integers and ranges with the operators of kernels/README.md, which pass over a feature map
once where stock operators do it five times.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

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
    parse_layers,
)
from nextscale.graph_passes._channels_last import AutoencoderConstants, ChannelsLast
from nextscale.graph_passes._fused_channels_last import FusedChannelsLast
from nextscale.graph_passes.observe_inputs import PIXELS, Input, Observer
from nextscale.graph_passes.qparams import Range


@dataclass(frozen=True)
class AutoencoderObservation:
    """What `quantize_autoencoder` needs to know of a float graph's values, by the names of nodes.

    Attributes:
        inputs: the range of the first input of each integer convolution, [1], or [C] if its channels have steps.
        results: of each channel of each result that becomes codes, [C], by the node that `observed_results` names.
        moments: second moments of what the kernels of `two_byte_convolutions` see, float [K, K]; weights of layers
            without are rounded to nearest.
        narrow: a decoder's convolutions to at most so many channels read two bytes of each number.
    """

    inputs: Mapping[str, Range]
    results: Mapping[str, Range]
    moments: Mapping[str, NDArray[np.float32]] = field(default_factory=dict)
    narrow: int = 0


def integer_convolutions(model: ir.Model) -> list[str]:
    """The names of the convolutions of a float graph that `quantize_autoencoder` computes in integers."""
    return [layer.name for layer in _integer_convolutions(parse_layers(model.graph))]


def two_byte_convolutions(model: ir.Model, narrow: int = 0) -> list[str]:
    """Those of them that read two bytes of each number, in order (`AutoencoderObservation.narrow`)."""
    layers = parse_layers(model.graph)
    return [layer.name for layer in _two_byte_convolutions(layers, narrow)]


def observed_results(model: ir.Model, narrow: int = 0) -> list[str]:
    """One reader, with its first input, of each result that becomes codes."""
    layers = parse_layers(model.graph)
    names: list[str] = []
    for layer in _with_codes(layers, narrow):
        readers = [node for node in layer.y.consumers() if node.inputs[0] is layer.y]
        if not readers:
            raise ValueError(f"{layer.y.name!r} is no node's first input, so that its range can't be observed")
        names.append(str(readers[0].name))
    return names


def autoencoder_observers(model: ir.Model, narrow: int = 0) -> tuple[list[Observer], list[Observer]]:
    """What tells the ranges that int8 needs of a float graph: of the observation's inputs, and of its results."""
    layers = parse_layers(model.graph)
    stepped = _stepped(layers, narrow)
    inputs = [
        Observer(Input(layer.name), *(("channels", PIXELS) if layer.x in stepped else ("range",)))
        for layer in _integer_convolutions(layers)
    ]
    return inputs, [Observer(Input(name), "channels", PIXELS) for name in observed_results(model, narrow)]


def quantize_autoencoder(model: ir.Model, observed: AutoencoderObservation, reduce_range: bool = False) -> ir.Model:
    """The int8 form of a float decoder or encoder, with its inputs and outputs.

    Args:
        model: of `build_decoder_graph` or `build_features_graph`; not modified.
        observed: of its values.
        reduce_range: keep every pair of products within 16 bits, for CPUs without VNNI.
    Raises:
        PatternRefused: a node of the graph is part of no layer that is known here.
        ValueError: a range is missing.
    """
    return _build(ChannelsLast, model, observed, _constants(model, observed, reduce_range))


def stock_and_fused_autoencoder(
    model: ir.Model, observed: AutoencoderObservation, reduce_range: bool = False
) -> tuple[ir.Model, ir.Model]:
    """`quantize_autoencoder`, and the same integers and ranges with fused operators; they share their weights."""
    constants = _constants(model, observed, reduce_range)
    stock, fused = (_build(builder, model, observed, constants) for builder in (ChannelsLast, FusedChannelsLast))
    return stock, fused


def _constants(model: ir.Model, observed: AutoencoderObservation, reduce_range: bool) -> AutoencoderConstants:
    """An encoder's seven bits stay within 16 as they are; numbers beyond a decoder's ranges may get codes of eight."""
    return AutoencoderConstants(reduce_range and not _is_encoder(parse_layers(model.graph)), observed.moments)


def _build(
    builder: type[ChannelsLast], model: ir.Model, observed: AutoencoderObservation, constants: AutoencoderConstants
) -> ir.Model:
    layers, narrow = parse_layers(model.graph), observed.narrow
    integer = _integer_convolutions(layers)
    names, readers = [layer.name for layer in integer], observed_results(model, narrow)
    for wanted, found in ((names, observed.inputs), (readers, observed.results)):
        missing = [name for name in wanted if name not in found]
        if missing:
            raise ValueError(f"no range for the first input of {len(missing)} nodes, the first of them {missing[0]!r}")
    inputs = {layer.x: observed.inputs[layer.name] for layer in integer}
    results = [layer.y for layer in _with_codes(layers, narrow)]
    channels = {value: observed.results[name] for value, name in zip(results, readers, strict=True)}
    two_bytes = {layer.x for layer in _two_byte_convolutions(layers, narrow)}
    return builder(model, integer, inputs, channels, two_bytes, constants).build(layers)


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


def _two_byte_convolutions(layers: Sequence[Layer], narrow: int) -> list[Convolution]:
    """Of those in integers all of an encoder, which reads a picture, and the narrow ones of a decoder."""
    encoder = _is_encoder(layers)
    return [layer for layer in _integer_convolutions(layers) if encoder or len(layer.weight) <= narrow]


def _is_encoder(layers: Sequence[Layer]) -> bool:
    return any(isinstance(layer, Pixels) for layer in layers)


def _with_codes(layers: Sequence[Layer], narrow: int) -> list[Convolution]:
    """Those whose results are codes in ranges of their channels: a GroupNorm alone reads them."""
    two_bytes = {layer.name for layer in _two_byte_convolutions(layers, narrow)}
    read_otherwise = {value for layer in layers if not isinstance(layer, GroupNorm) for value in _read(layer)}
    return [
        layer
        for layer in _integer_convolutions(layers)
        if layer.kernel_size > 1 and layer.name not in two_bytes and layer.y not in read_otherwise
    ]


def _read(layer: Layer) -> tuple[ir.Value, ...]:
    match layer:
        case Residual():
            return layer.a, layer.b
        case Attention():
            return (layer.qkv,)
        case _:
            return (layer.x,)


def _stepped(layers: Sequence[Layer], narrow: int) -> set[ir.Value]:
    """What integer convolutions read in one byte with a step for each channel: what is normalized, or upsampled."""
    normalized = {layer.y for layer in layers if isinstance(layer, GroupNorm)}
    two_bytes = {layer.name for layer in _two_byte_convolutions(layers, narrow)}
    return {
        layer.x
        for layer in _integer_convolutions(layers)
        if (layer.x in normalized or layer.upsampled) and layer.name not in two_bytes
    }
