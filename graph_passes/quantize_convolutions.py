"""Insert QDQ around convolutions with static ranges: u8 inputs and results, s8 weights by channel, s32 biases.

    x -> QuantizeLinear -> DequantizeLinear \\
                                             Conv -> QuantizeLinear -> DequantizeLinear -> y
    s8 weight, s32 bias -> DequantizeLinear /

ONNX Runtime turns each such Conv into QLinearConv. A Relu or Clip behind it goes: where codes end, they clip. What one
convolution gives and another reads has one range and is quantized once; so is what several read.

Codes that convolutions alone give and read may have a step for each channel, which costs nothing. Such a Conv computes
with codes as numbers, x / s_x and y / s_y, and its weights take the steps:

    y_o / s_o = sum_c (s_c W_oc / s_o) (x_c / s_c) + b_o / s_o

Elsewhere a step for each channel would be slow: ONNX Runtime's QuantizeLinear works on single numbers then.

What only moves the numbers of a result, as DepthToSpace does, moves its codes, which are read as numbers behind it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray
from onnx_ir.passes.common import RemoveUnusedNodesPass

from nextscale.graph_passes._channel_steps import channel_steps
from nextscale.graph_passes._graph_edit import add_initializer, is_operator
from nextscale.graph_passes._integer_convolution import integer_kernel
from nextscale.graph_passes.convolutions import ConvolutionLayer, convolutions
from nextscale.graph_passes.linear_layers import CODES_SUFFIX, WEIGHT_SUFFIX, drop_unused
from nextscale.graph_passes.qparams import ActivationQParams, Range

BIAS_SUFFIX = ".bias"
UNIT = np.ones(1, np.float32)
MOVES = ("DepthToSpace", "Reshape", "Slice", "Transpose")


@dataclass(frozen=True)
class ConvolutionRanges:
    """Of a convolution: [C] each, a range for each channel, or [1].

    Attributes:
        x: of its input.
        y: of its result, behind its Relu or Clip.
    """

    x: Range
    y: Range


@dataclass(frozen=True)
class Codes:
    """How a value becomes u8.

    Attributes:
        steps: float32 [C], of each channel, or [1].
        zero_point: of all.
    """

    steps: NDArray[np.float32]
    zero_point: int


def quantize_convolutions(
    model: ir.Model,
    ranges: Mapping[str, ConvolutionRanges],
    alpha: float = 1.0,
    reduce_range: bool = False,
    codes: Mapping[str, Codes] | None = None,
) -> ir.Model:
    """A copy of `model` whose convolutions named in `ranges` are integer.

    Args:
        model: any graph; none of these gives one of its outputs.
        ranges: by the names of its convolutions.
        alpha: how much of the channels' spread weights take: 1 all, as each channel has the step that its range needs;
            0 none, as all have one.
        reduce_range: no pair of products leaves 16 bits, for CPUs without VNNI.
        codes: of what these convolutions read and give, by the values' names, as `choose_codes` chose them among more;
            None: it chooses them among these.
    Raises:
        ValueError: a name is no convolution of the model with a constant weight.
    """
    model = model.clone()
    layers = [layer for layer in convolutions(model.graph) if layer.name in ranges]
    missing = ranges.keys() - {layer.name for layer in layers}
    if missing:
        raise ValueError(f"no Conv with a constant weight is named {sorted(missing)[0]!r}")
    chosen = choose_codes(model, ranges, alpha) if codes is None else codes
    # What stands for a result is another value: they are looked up before the first is replaced.
    planned = [(layer, chosen[str(layer.activation.name)], chosen[str(layer.result.name)]) for layer in layers]
    coded = dict[ir.Value, ir.Value]()
    for layer, x, y in planned:
        if layer.activation not in coded:
            quantize = _quantize(model.graph, layer.activation, x)
            model.graph.insert_before(layer.node, quantize)
            coded[layer.activation] = quantize.outputs[0]
        _insert_kernel(model.graph, layer, coded[layer.activation], x, y, reduce_range)
        known, of_result = _code_result(model.graph, layer, y)
        coded[known] = of_result
    RemoveUnusedNodesPass()(model)
    return model


def choose_codes(model: ir.Model, ranges: Mapping[str, ConvolutionRanges], alpha: float) -> dict[str, Codes]:
    """Of each value that the convolutions named in `ranges` read or give, by its name, whoever else does.

    Args:
        model, ranges, alpha: as of `quantize_convolutions`.
    """
    layers = [layer for layer in convolutions(model.graph) if layer.name in ranges]
    found: dict[ir.Value, Range] = {}
    energy: dict[ir.Value, NDArray[np.float64]] = {}
    for layer in layers:
        for value, of_one in ((layer.activation, ranges[layer.name].x), (layer.result, ranges[layer.name].y)):
            found[value] = found[value].merge(of_one) if value in found else of_one
        energy[layer.activation] = energy.get(layer.activation, np.float64(0)) + _energy(layer)
    for layer in layers:
        moved = _moved(layer.result)
        if moved is not layer.result and moved in found:
            # What a Slice leaves out may go beyond the ends.
            found[moved] = found[layer.result] = found[moved].over_stages()
    nodes, codes = {layer.node for layer in layers}, dict[ir.Value, Codes]()
    # Codes with the steps of channels could go beyond the ends of a Clip.
    given = {layer.result for layer in layers if not is_operator(layer.last, "Clip")}
    for value, of_one in found.items():
        has_steps = alpha > 0 and value in given and all(node in nodes for node, _ in value.uses())
        if has_steps and len(of_one.minimum) > 1:
            steps, zero_point = channel_steps(of_one, energy.get(value, np.ones_like(of_one.minimum)))
            spread = steps**alpha * steps.max() ** (1 - alpha)
            codes[value] = Codes(spread.astype(np.float32), zero_point)
        else:
            qparams = ActivationQParams.from_range(of_one.over_stages())  # and over channels
            codes[value] = Codes(qparams.scale, int(qparams.zero_point[0]))
    return {str(value.name): of_one for value, of_one in codes.items()}


def _moves(value: ir.Value) -> list[ir.Node]:
    """What comes behind it in its graph, each reading alone, and only moves its numbers."""
    readers, maker = [node for node, _ in value.uses()], value.producer()
    if len(readers) != 1 or value.is_graph_output() or maker is None or readers[0].graph is not maker.graph:
        return []
    (node,) = readers
    if not any(is_operator(node, move) for move in MOVES) or node.outputs[0].is_graph_output():
        return []
    return [node, *_moves(node.outputs[0])]


def _moved(value: ir.Value) -> ir.Value:
    """It, or what moves make of it."""
    moves = _moves(value)
    return moves[-1].outputs[0] if moves else value


def _energy(layer: ConvolutionLayer) -> NDArray[np.float64]:
    """The sum of the squares of the weights that read each channel of the input."""
    weight = _floats(layer.weight)
    groups = layer.node.attributes.get_int("group", 1)
    squares = np.square(weight, dtype=np.float64).sum(axis=tuple(range(2, weight.ndim)))
    found: NDArray[np.float64] = squares.reshape(groups, -1, weight.shape[1]).sum(axis=1).ravel()
    return found


def _quantize(graph: ir.Graph, value: ir.Value, codes: Codes) -> ir.Node:
    """QuantizeLinear, not yet in the graph."""
    name = f"{value.name}/convolution"
    node = ir.node("QuantizeLinear", [value, *_constants(graph, name, codes)], name=f"{name}/quantize")
    node.outputs[0].name = f"{name}.codes"
    return node


def _dequantize(graph: ir.Graph, name: str, codes: ir.Value, constants: Sequence[ir.Value], axis: int) -> ir.Node:
    """DequantizeLinear, not yet in the graph."""
    node = ir.node("DequantizeLinear", [codes, *constants], {"axis": axis}, name=f"{name}/dequantize")
    node.outputs[0].name, node.outputs[0].dtype = f"{name}.known", ir.DataType.FLOAT
    return node


def _constants(graph: ir.Graph, name: str, codes: Codes) -> list[ir.Value]:
    """Scale and zero point, [] each, or [C] for channels."""
    shape = () if len(codes.steps) == 1 else codes.steps.shape
    return [
        add_initializer(graph, f"{name}.scale", codes.steps.reshape(shape)),
        add_initializer(graph, f"{name}.zero_point", np.full(shape, codes.zero_point, np.uint8)),
    ]


def _insert_kernel(
    graph: ir.Graph, layer: ConvolutionLayer, codes: ir.Value, x: Codes, y: Codes, reduce_range: bool
) -> None:
    """Feed the Conv numbers of codes: of its input, and of its weight and bias, which take all steps."""
    weight = _floats(layer.weight)
    groups = layer.node.attributes.get_int("group", 1)
    # Outputs of a group read its own channels: [C_in] -> [out, C_in / groups].
    steps = np.broadcast_to(x.steps, groups * weight.shape[1]).reshape(groups, weight.shape[1])
    steps = steps.repeat(len(weight) // groups, axis=0)
    stepped = weight * steps.reshape(*steps.shape, *[1] * (weight.ndim - 2))
    bias = np.zeros(len(weight), np.float32) if layer.bias is None else _floats(layer.bias)
    kernel = integer_kernel(stepped, bias, ActivationQParams(UNIT, np.array([x.zero_point], np.uint8)), reduce_range)
    scale = (kernel.weight.scale / y.steps).astype(np.float32)
    name = f"{layer.name}.input"
    feeds = [_dequantize(graph, name, codes, _constants(graph, name, Codes(UNIT, x.zero_point)), 1)]
    for end, numbers in ((WEIGHT_SUFFIX, kernel.weight.codes), (BIAS_SUFFIX, kernel.bias)):
        if end == WEIGHT_SUFFIX or layer.bias is not None:
            name = f"{layer.name}{end}"
            constants = [
                add_initializer(graph, f"{name}.scale", scale),
                add_initializer(graph, f"{name}.no_zero_point", np.zeros(len(scale), numbers.dtype)),
            ]
            feeds.append(_dequantize(graph, name, add_initializer(graph, name + CODES_SUFFIX, numbers), constants, 0))
    graph.insert_before(layer.node, feeds)
    floats = layer.node.inputs[1:]
    for i, feed in enumerate(feeds):
        layer.node.replace_input_with(i, feed.outputs[0])
    for value in floats:
        if value is not None:
            drop_unused(graph, value)


def _code_result(graph: ir.Graph, layer: ConvolutionLayer, y: Codes) -> tuple[ir.Value, ir.Value]:
    """Let all that reads the result read what its codes stand for, in its name; returns that, and the codes.

    What only moves the result moves the codes. Then it is the same with what it makes of them.
    """
    conv, result, moves, old = layer.node, layer.result, _moves(layer.result), _moved(layer.result)
    name, readers = str(old.name), tuple(old.uses())
    quantize = _quantize(graph, result, Codes(UNIT, y.zero_point))
    (codes,) = quantize.outputs
    for move in moves:
        move.replace_input_with(0, codes)
        (codes,) = move.outputs
        codes.name, codes.type = f"{codes.name}/convolution.codes", ir.TensorType(ir.DataType.UINT8)
    dequantize = _dequantize(graph, f"{name}/known", codes, _constants(graph, f"{name}/known", y), 1)
    (known,) = dequantize.outputs
    known.shape, known.type = old.shape, ir.TensorType(ir.DataType.FLOAT)
    for node, i in readers:
        node.replace_input_with(i, known)
    quantize.replace_input_with(0, conv.outputs[0])
    if layer.last is not conv:
        graph.remove(layer.last, safe=True)
    graph.insert_after(conv, quantize)
    graph.insert_after(moves[-1] if moves else quantize, dequantize)
    conv.outputs[0].name, known.name = f"{result.name}.exact", name
    return known, codes


def _floats(value: ir.Value) -> NDArray[np.float32]:
    assert value.const_value is not None
    array: NDArray[np.float32] = value.const_value.numpy()
    return array
