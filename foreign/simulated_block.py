"""A residual block in torch: in float, and as a plan quantizes it, with gradients to its weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import onnx_ir as ir
import torch
from torch import Tensor

from nextscale.foreign._torch_operators import Operator, is_known, run_nodes
from nextscale.foreign.plan import Plan
from nextscale.foreign.residual_blocks import ResidualBlock
from nextscale.graph_passes._attention_patterns import AttentionPattern
from nextscale.graph_passes._graph_edit import input_of
from nextscale.graph_passes.expand_attentive_tokens import ShiftAndSum
from nextscale.graph_passes.integer_model import IntegerAttention, IntegerLayer
from nextscale.graph_passes.qparams import Range
from nextscale.graph_passes.quantize_attention import Magnitudes
from nextscale.simulation._fake_quantizers import (
    StaticInput,
    TokenInput,
    affine_qparams,
    fake_affine,
    fake_attention,
    fake_values,
    kernel_shifts,
    symmetric_scale,
)

CPU = torch.device("cpu")


class SimulatedBlock:
    """x + f(x) of a sample.

    Attributes:
        products: the block's integer layers, those that keep their codes too, and their names.
        weights: their float weights [K, N], by name.
    """

    def __init__(self, block: ResidualBlock, plan: Plan, patterns: Sequence[AttentionPattern]) -> None:
        """Of a normalized model's block and attentions.

        Raises:
            NotImplementedError: an operator is none that torch is told, or a constant of a type that it does not have.
        """
        unknown = sorted({node.op_type for node in block.nodes if not is_known(node)})
        if unknown:
            raise NotImplementedError(f"it has operators that torch is not told: {', '.join(unknown)}")
        self.block, self.plan = block, plan
        read = {value for node in block.nodes for value in node.inputs if value is not None}
        self.constants = {value: _tensor(value) for value in read if value.const_value is not None}
        self.products = {node: str(node.name) for node in block.nodes if node.name in plan.integer.layers}
        self.weights = {name: self.constants[input_of(node, 1)] for node, name in self.products.items()}
        self.attentions = dict[ir.Node, Operator]()
        attention = plan.integer.attention
        for pattern in patterns:
            if attention is not None and pattern.name in attention.names:
                known = None if plan.magnitudes is None else plan.magnitudes[pattern.name]
                simulated = _Attention(attention, known, plan.shift_and_sum.get(pattern.name), pattern.is_masked)
                self.attentions |= {pattern.scores: simulated.scores, pattern.mix: simulated.mix}

    def exact(self, inputs: Sequence[Tensor]) -> Tensor:
        """In float, of the block's inputs."""
        return self._run(inputs, {})

    def quantized(self, inputs: Sequence[Tensor], weights: Mapping[str, Tensor]) -> Tensor:
        """With quantized activations, and these weights [K, N] of the integer layers."""
        layers = {node: self._layer(weights[name]) for node, name in self.products.items()}
        return self._run(inputs, {**self.attentions, **layers})

    def _run(self, inputs: Sequence[Tensor], others: Mapping[ir.Node, Operator]) -> Tensor:
        values = self.constants | dict(zip(self.block.inputs, inputs, strict=True))
        run_nodes(self.block.nodes, values, others)
        return values[self.block.result]

    def _layer(self, weight: Tensor) -> Operator:
        plan = self.plan

        def product(node: ir.Node, x: Tensor, exact: Tensor) -> Tensor:
            name = str(node.name)
            return fake_input(x, plan.integer.layers[name], plan.integer.bits, plan.ranges.get(name)) @ weight

        return product


def fake_input(x: Tensor, layer: IntegerLayer, bits: int, known: Range | None) -> Tensor:
    """x [..., K] as its codes stand for it (`own_errors.coded_input`), with gradients."""
    if layer.granularity == "image":
        return _by_image(x, bits)
    if layer.granularity == "token":
        assert layer.zero_point is not None
        return TokenInput(bits, layer.zero_point)(x, x, False)
    assert known is not None
    return StaticInput(known, bits, CPU)(x, x, False)


def _by_image(x: Tensor, bits: int) -> Tensor:
    with torch.no_grad():
        axes = tuple(range(1, x.ndim))
        scale, zero_point = affine_qparams(x.amin(axes, keepdim=True), x.amax(axes, keepdim=True), bits)
    return fake_affine(x, scale, zero_point, bits, clips=False)


class _Attention:
    """Both products, of operands with any number of axes from 2 on (`graph_passes/_four_axes.py`)."""

    def __init__(
        self, choice: IntegerAttention, known: Magnitudes | None, expanded: ShiftAndSum | None, masked: bool
    ) -> None:
        self.choice, self.known, self.expanded, self.masked = choice, known, expanded, masked

    def scores(self, node: ir.Node, query: Tensor, key: Tensor) -> Tensor:
        """query key."""
        known = self.known
        queries = self._coded(_four_axes(query), None if known is None else known.query)
        keys = self._coded(_four_axes(key), None if known is None else known.key)
        return (queries @ keys).reshape(*query.shape[:-1], key.shape[-1])

    def mix(self, node: ir.Node, weights: Tensor, value: Tensor) -> Tensor:
        """weights value."""
        choice, of_four, values = self.choice, _four_axes(weights), _four_axes(value)
        visible = of_four > 0 if self.masked else None
        quantized = fake_attention(of_four, choice.weights, choice.bits, visible, paired=False)
        magnitude = None if self.known is None else self.known.value
        if self.expanded is None:
            coded = self._coded(values, magnitude)
        else:
            shifts = kernel_shifts(of_four, self.expanded.theta, self.expanded.places[0])
            coded = fake_values(values, self._scale(values, magnitude), choice.bits, shifts)
        return (quantized @ coded).reshape(*weights.shape[:-1], value.shape[-1])

    def _coded(self, x: Tensor, magnitude: float | None) -> Tensor:
        bits = self.choice.bits
        return fake_affine(x, self._scale(x, magnitude), 2.0 ** (bits - 1), bits, clips=magnitude is not None)

    def _scale(self, x: Tensor, magnitude: float | None) -> Tensor:
        """[R, 1, 1, 1], or [] of a known magnitude."""
        largest = x.detach().abs().amax((1, 2, 3), keepdim=True) if magnitude is None else torch.tensor(magnitude)
        return symmetric_scale(largest, self.choice.bits)


def _four_axes(x: Tensor) -> Tensor:
    if x.ndim > 4:
        return x.flatten(1, -3)
    return x[None, None] if x.ndim == 2 else x[:, None] if x.ndim == 3 else x


def _tensor(value: ir.Value) -> Tensor:
    assert value.const_value is not None
    array = value.const_value.numpy()
    try:
        return torch.from_numpy(array.copy())
    except TypeError:
        raise NotImplementedError(f"constants of {array.dtype}") from None
