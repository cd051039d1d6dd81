"""The int8 decoder: the float graph's layers again, channels last, every convolution u8 x s8.

What is integer and what is float, and why:

- A 3x3 convolution is a contrib QLinearConv(channels_last=1), u8 in, u8 out, int32 bias: the fast form on x86.
- Nearest upsampling and its convolution are four small convolutions (`subpixel_upsample`).
- A 1x1 convolution is a matrix product of the rows, MatMulIntegerToFloat; its float result needs no range.
- The residual stream, GroupNorm, SiLU, softmax and the attention products are float: in u8 they cost 4 dB.
- The last convolution has 3 outputs padded to 16, which is faster, and its output quantization makes the picture.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import onnx_ir as ir

from nextscale.graph_passes.channels_last import ChannelsLast
from nextscale.graph_passes.decoder_patterns import Convolution, Layer, Picture, parse_layers
from nextscale.graph_passes.qparams import Range


def observed_nodes(model: ir.Model) -> list[str]:
    """The nodes of a float decoder graph whose first input's range `quantize_decoder` needs.

    They are the convolutions, and one reader of each 3x3 convolution's result.
    """
    names: list[str] = []
    for value in _quantized_values(parse_layers(model.graph)):
        readers = [node for node in value.consumers() if node.inputs[0] is value]
        if not readers:
            raise ValueError(f"{value.name!r} is no node's first input, so that its range can't be observed")
        names.append(str(readers[0].name))
    return names


def quantize_decoder(model: ir.Model, ranges: Mapping[str, Range]) -> ir.Model:
    """The int8 form of a float decoder graph: f_hat float32 [B, Cvae, h, w] -> images uint8 [B, H, W, 3].

    Args:
        model: of `build_decoder_graph`; not modified.
        ranges: for each of `observed_nodes(model)`, the range of its first input, [1]-shaped.
    Raises:
        PatternRefused: a node of the graph is part of no layer that is known here.
        ValueError: a range is missing.
    """
    layers = parse_layers(model.graph)
    missing = [name for name in observed_nodes(model) if name not in ranges]
    if missing:
        raise ValueError(f"no range for the first input of {len(missing)} nodes, of which the first is {missing[0]!r}")
    by_value: dict[ir.Value, Range] = {}
    for node in model.graph:
        if node.name in ranges and node.inputs[0] is not None:
            by_value[node.inputs[0]] = ranges[str(node.name)]
    return ChannelsLast(model, by_value).build(layers)


def _quantized_values(layers: Sequence[Layer]) -> list[ir.Value]:
    """What is ever u8, but the picture: each convolution's input and each 3x3 convolution's result."""
    pictures = {layer.x for layer in layers if isinstance(layer, Picture)}
    values: dict[ir.Value, None] = {}
    for layer in layers:
        if isinstance(layer, Convolution):
            values[layer.x] = None
            if layer.kernel_size > 1 and layer.y not in pictures:
                values[layer.y] = None
    return list(values)
