"""ONNX operators in torch, with gradients, as opset 21 means them: what residual blocks are made of.

An operator takes its node and its inputs, None for those that are left out, and gives one tensor or several. Integers
such as shapes are tensors, too. An attribute or a form that is not here raises NotImplementedError.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
import torch
import torch.nn.functional as F
from torch import Tensor

Operator = Callable[..., Tensor | Sequence[Tensor]]


def run_nodes(nodes: Sequence[ir.Node], values: dict[ir.Value, Tensor], others: Mapping[ir.Node, Operator]) -> None:
    """Run nodes in order.

    Args:
        nodes: of the operators here, or of `others`.
        values: what they read from outside, constants too; what they give is added.
        others: what to compute in place of some nodes, of the same arguments.
    Raises:
        NotImplementedError: an operator is used in a form that is not here.
    """
    for node in nodes:
        given = [None if value is None else values[value] for value in node.inputs]
        found = (others.get(node) or OPERATORS[node.op_type])(node, *given)
        if len(node.outputs) > 1 and isinstance(found, Tensor) and any(value.uses() for value in node.outputs[1:]):
            raise NotImplementedError(f"{node.op_type} whose other results are read")
        for value, tensor in zip(node.outputs, [found] if isinstance(found, Tensor) else found, strict=False):
            values[value] = tensor


def is_known(node: ir.Node) -> bool:
    """Whether the operator is here."""
    return node.domain == "" and node.op_type in OPERATORS


def _plain(function: Callable[..., Tensor]) -> Operator:
    return lambda node, *inputs: function(*inputs)


def _attribute(node: ir.Node, name: str, default: Any) -> Any:
    found = node.attributes.get(name)
    return default if found is None else found.value


def _ints(tensor: Tensor) -> list[int]:
    found: list[int] = tensor.tolist()
    return found


def _all_of(function: Callable[[Tensor, Tensor], Tensor]) -> Operator:
    """Of one input or more."""

    def run(node: ir.Node, first: Tensor, *rest: Tensor) -> Tensor:
        for other in rest:
            first = function(first, other)
        return first

    return run


def _div(node: ir.Node, a: Tensor, b: Tensor) -> Tensor:
    return a / b if a.is_floating_point() else torch.div(a, b, rounding_mode="trunc")


def _mod(node: ir.Node, a: Tensor, b: Tensor) -> Tensor:
    return torch.fmod(a, b) if _attribute(node, "fmod", 0) else torch.remainder(a, b)


def _clip(node: ir.Node, x: Tensor, low: Tensor | None = None, high: Tensor | None = None) -> Tensor:
    return x if low is None and high is None else torch.clamp(x, low, high)


def _cast(node: ir.Node, x: Tensor) -> Tensor:
    dtype = ir.DataType(_attribute(node, "to", None))
    return x.to(torch.from_numpy(np.zeros(0, dtype.numpy())).dtype)


def _softmax(node: ir.Node, x: Tensor) -> Tensor:
    return x.softmax(_attribute(node, "axis", -1))


def _layer_normalization(node: ir.Node, x: Tensor, scale: Tensor, bias: Tensor | None = None) -> Tensor:
    axis, epsilon = _attribute(node, "axis", -1), _attribute(node, "epsilon", 1e-5)
    normal = F.layer_norm(x, x.shape[axis:], eps=epsilon) * scale
    return normal if bias is None else normal + bias


def _gelu(node: ir.Node, x: Tensor) -> Tensor:
    return F.gelu(x, approximate=_attribute(node, "approximate", "none"))


def _hard_sigmoid(node: ir.Node, x: Tensor) -> Tensor:
    return (x * _attribute(node, "alpha", 0.2) + _attribute(node, "beta", 0.5)).clamp(0, 1)


def _leaky_relu(node: ir.Node, x: Tensor) -> Tensor:
    return F.leaky_relu(x, _attribute(node, "alpha", 0.01))


def _shape(node: ir.Node, x: Tensor) -> Tensor:
    return torch.tensor(x.shape)[_attribute(node, "start", 0) : _attribute(node, "end", None)]


def _reshape(node: ir.Node, x: Tensor, shape: Tensor) -> Tensor:
    sizes = _ints(shape)
    if not _attribute(node, "allowzero", 0):
        sizes = [x.shape[axis] if size == 0 else size for axis, size in enumerate(sizes)]
    return x.reshape(sizes)


def _flatten(node: ir.Node, x: Tensor) -> Tensor:
    axis = _attribute(node, "axis", 1)
    rows = int(np.prod(x.shape[:axis]))
    return x.reshape(rows, -1)


def _transpose(node: ir.Node, x: Tensor) -> Tensor:
    return x.permute(*_attribute(node, "perm", range(x.ndim)[::-1]))


def _unsqueeze(node: ir.Node, x: Tensor, axes: Tensor) -> Tensor:
    rank = x.ndim + len(axes)
    for axis in sorted(axis % rank for axis in _ints(axes)):
        x = x.unsqueeze(axis)
    return x


def _squeeze(node: ir.Node, x: Tensor, axes: Tensor | None = None) -> Tensor:
    return x.squeeze() if axes is None else x.squeeze(tuple(_ints(axes)))


def _concat(node: ir.Node, *parts: Tensor) -> Tensor:
    return torch.cat(parts, dim=_attribute(node, "axis", None))


def _split(node: ir.Node, x: Tensor, sizes: Tensor | None = None) -> Sequence[Tensor]:
    axis, parts = _attribute(node, "axis", 0), len(node.outputs)
    return x.split(-(-x.shape[axis] // parts) if sizes is None else _ints(sizes), dim=axis)


def _slice(
    node: ir.Node, x: Tensor, starts: Tensor, ends: Tensor, axes: Tensor | None = None, steps: Tensor | None = None
) -> Tensor:
    chosen = range(len(starts)) if axes is None else _ints(axes)
    strides = [1] * len(starts) if steps is None else _ints(steps)
    if min(strides, default=1) < 0:
        raise NotImplementedError("Slice backwards")
    index = [slice(None)] * x.ndim
    for axis, start, end, stride in zip(chosen, _ints(starts), _ints(ends), strides, strict=True):
        index[axis] = slice(*slice(start, end, stride).indices(x.shape[axis]))
    return x[tuple(index)]


def _gather(node: ir.Node, x: Tensor, indices: Tensor) -> Tensor:
    axis = _attribute(node, "axis", 0) % x.ndim
    indices = indices % x.shape[axis]
    found = x.index_select(axis, indices.reshape(-1))
    return found.reshape([*x.shape[:axis], *indices.shape, *x.shape[axis + 1 :]])


def _expand(node: ir.Node, x: Tensor, shape: Tensor) -> Tensor:
    return x.expand(torch.broadcast_shapes(x.shape, _ints(shape)))


def _tile(node: ir.Node, x: Tensor, repeats: Tensor) -> Tensor:
    return x.repeat(_ints(repeats))


def _pad(node: ir.Node, x: Tensor, pads: Tensor, value: Tensor | None = None, axes: Tensor | None = None) -> Tensor:
    if _attribute(node, "mode", "constant") != "constant":
        raise NotImplementedError("Pad that repeats")
    chosen, sizes = range(x.ndim) if axes is None else [axis % x.ndim for axis in _ints(axes)], _ints(pads)
    of_axes = {axis: (sizes[i], sizes[i + len(chosen)]) for i, axis in enumerate(chosen)}
    ends = [size for axis in reversed(range(x.ndim)) for size in of_axes.get(axis, (0, 0))]
    return F.pad(x, ends, value=0.0 if value is None else float(value))


def _reduction(function: Callable[[Tensor, list[int], bool], Tensor]) -> Operator:
    def run(node: ir.Node, x: Tensor, axes: Tensor | None = None) -> Tensor:
        chosen = [] if axes is None else _ints(axes)
        if not chosen and _attribute(node, "noop_with_empty_axes", 0):
            return x
        return function(x, chosen or list(range(x.ndim)), bool(_attribute(node, "keepdims", 1)))

    return run


def _convolution(node: ir.Node, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    if _attribute(node, "auto_pad", "NOTSET") != "NOTSET":
        raise NotImplementedError("Conv that pads by itself")
    rank = x.ndim - 2
    if rank > 3:
        raise NotImplementedError("Conv of more than 3 axes")
    pads = _attribute(node, "pads", [0] * 2 * rank)
    ends = [size for axis in reversed(range(rank)) for size in (pads[axis], pads[axis + rank])]
    strides, dilations = (_attribute(node, name, [1] * rank) for name in ("strides", "dilations"))
    convolve = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}[rank]
    return convolve(F.pad(x, ends), weight, bias, tuple(strides), 0, tuple(dilations), _attribute(node, "group", 1))


OPERATORS: dict[str, Operator] = {
    "Abs": _plain(torch.abs),
    "Add": _plain(torch.add),
    "And": _plain(torch.logical_and),
    "Cast": _cast,
    "Ceil": _plain(torch.ceil),
    "Clip": _clip,
    "Concat": _concat,
    "Conv": _convolution,
    "Cos": _plain(torch.cos),
    "Div": _div,
    "Equal": _plain(torch.eq),
    "Erf": _plain(torch.erf),
    "Exp": _plain(torch.exp),
    "Expand": _expand,
    "Flatten": _flatten,
    "Floor": _plain(torch.floor),
    "Gather": _gather,
    "Gelu": _gelu,
    "Greater": _plain(torch.gt),
    "GreaterOrEqual": _plain(torch.ge),
    "HardSigmoid": _hard_sigmoid,
    "HardSwish": _plain(F.hardswish),
    "Identity": _plain(lambda x: x),
    "IsNaN": _plain(torch.isnan),
    "LayerNormalization": _layer_normalization,
    "LeakyRelu": _leaky_relu,
    "Less": _plain(torch.lt),
    "LessOrEqual": _plain(torch.le),
    "Log": _plain(torch.log),
    "MatMul": _plain(torch.matmul),
    "Max": _all_of(torch.maximum),
    "Min": _all_of(torch.minimum),
    "Mod": _mod,
    "Mul": _plain(torch.mul),
    "Neg": _plain(torch.neg),
    "Not": _plain(torch.logical_not),
    "Or": _plain(torch.logical_or),
    "Pad": _pad,
    "Pow": _plain(lambda x, exponent: torch.pow(x, exponent.to(x.dtype))),
    "Reciprocal": _plain(torch.reciprocal),
    "ReduceMax": _reduction(lambda x, axes, keep: x.amax(axes, keep)),
    "ReduceMean": _reduction(lambda x, axes, keep: x.mean(axes, keep)),
    "ReduceMin": _reduction(lambda x, axes, keep: x.amin(axes, keep)),
    "ReduceSum": _reduction(lambda x, axes, keep: x.sum(axes, keep)),
    "Relu": _plain(F.relu),
    "Reshape": _reshape,
    "Shape": _shape,
    "Sigmoid": _plain(torch.sigmoid),
    "Sin": _plain(torch.sin),
    "Slice": _slice,
    "Softmax": _softmax,
    "Softplus": _plain(F.softplus),
    "Split": _split,
    "Sqrt": _plain(torch.sqrt),
    "Squeeze": _squeeze,
    "Sub": _plain(torch.sub),
    "Tanh": _plain(torch.tanh),
    "Tile": _tile,
    "Transpose": _transpose,
    "Unsqueeze": _unsqueeze,
    "Where": _plain(torch.where),
}
