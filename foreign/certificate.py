"""Which kernel each operator got in the graph that ONNX Runtime makes of the integer model when it loads it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import onnx_ir as ir

from nextscale.compiler.fusion_certificate import INTEGER_KERNELS, all_nodes, optimize
from nextscale.foreign.plan import Plan
from nextscale.graph_passes.linear_layers import CODES_SUFFIX, WEIGHT_SUFFIX, find_layers
from nextscale.runtime._operators import wanted_library
from nextscale.runtime._session import SessionOptions

# A product of attention that is not scaled at once, and a layer by nextscale-ops.
OTHER_KERNELS = frozenset({"MatMulInteger", "Linear"})
# What a product of attention may be.
PRODUCTS = frozenset({"MatMul", "FusedMatMul", "MatMulInteger", "MatMulIntegerToFloat"})


@dataclass(frozen=True)
class Kernels:
    """What multiplies.

    Attributes:
        names: of the operators in the optimized graph, without repetition.
    """

    names: tuple[str, ...]

    @property
    def are_integer(self) -> bool:
        """Whether there are some, and all of them multiply integers."""
        return bool(self.names) and (INTEGER_KERNELS | OTHER_KERNELS).issuperset(self.names)


def certify(path: Path, model: ir.Model, plan: Plan, options: SessionOptions) -> dict[str, Kernels]:
    """By name of each layer, convolution and attention that was to become integer.

    Args:
        path: of the integer model.
        model: normalized, as it was before.
        plan: what was to become integer in it.
        options: threads and memory.
    """
    integer, library = plan.integer, wanted_library(options.ops, options.ops_library)
    by_weight, by_attention = dict[str, list[str]](), dict[str, list[str]]()
    attentions = () if integer.attention is None else integer.attention.names
    before = {str(node.name) for node in model.graph}
    for node in all_nodes(optimize(path, options, library).graph):
        for name in node.input:
            if name.endswith(CODES_SUFFIX):
                by_weight.setdefault(name.removesuffix(CODES_SUFFIX), []).append(node.op_type)
        if node.op_type in PRODUCTS and node.name not in before:
            # `quantize_attention` begins the names of what it makes of an attention with its own.
            owners = [name for name in attentions if node.name.startswith((f"{name}/scores/", f"{name}/integer/"))]
            for name in owners:
                by_attention.setdefault(name, []).append(node.op_type)
    layers = {layer.name: str(layer.weight.name) for layer in find_layers(model.graph, set(integer.layers))}
    layers |= {name: f"{name}{WEIGHT_SUFFIX}" for name in plan.convolutions}
    found: dict[str, list[str]] = {name: by_weight.get(weight, []) for name, weight in layers.items()}
    found |= {name: by_attention.get(name, []) for name in attentions}
    return {name: Kernels(tuple(dict.fromkeys(kernels))) for name, kernels in found.items()}
