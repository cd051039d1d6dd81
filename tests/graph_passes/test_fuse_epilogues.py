"""What a fused linear layer takes of the nodes behind it, and what it leaves."""

from __future__ import annotations

from collections import Counter

import numpy as np
import onnx_ir as ir
import pytest

from nextscale.export.graph_builder import add_output, finish, new_builder
from nextscale.graph_passes._fused_nodes import OPERATORS, OPERATORS_VERSION, fused_nodes
from nextscale.graph_passes.fuse_epilogues import fuse_epilogues

FLOAT, UINT8, INT8 = ir.DataType.FLOAT, ir.DataType.UINT8, ir.DataType.INT8
K, N = 6, 5


def behind(*steps: str) -> ir.Model:
    """A Linear without a bias, and what is added behind it: bias, gain, constant gain, residual, gelu, erf, codes."""
    builder = new_builder("linear")
    op = builder.op
    builder.graph.opset_imports[OPERATORS] = OPERATORS_VERSION
    codes = builder.input("codes", UINT8, ["R", "l", K])
    residual, gain = (builder.input("x", FLOAT, ["R", "l", N]), builder.input("gain", FLOAT, ["R", 1, N]))
    scales = [builder.input("scale", FLOAT, []), builder.input("zero_point", UINT8, [])]

    def constant(name: str, array: np.ndarray) -> ir.Value:
        return op.builder.initializer(ir.tensor(array, name=name), name)

    weights = (constant("weight", np.ones((K, N), np.int8)), constant("weight_scale", np.ones(N, np.float32)))
    y = op.Linear(codes, *scales, *weights, _domain=OPERATORS, _name="layer")
    row = constant("row", np.ones(N, np.float32))
    for step in steps:
        y = {
            "bias": lambda y: op.Add(row, y),
            "gain": lambda y: op.Mul(gain, y),
            "constant gain": lambda y: op.Mul(y, row),
            "residual": lambda y: op.Add(residual, y),
            "gelu": lambda y: op.Gelu(y, approximate="tanh"),
            "erf": lambda y: op.Gelu(y),
            "codes": lambda y: op.Quantize(y, *scales, ranges="static", bits=6, _domain=OPERATORS, _name="quantize"),
        }[step](y)
    add_output(builder, y, "y", UINT8 if steps[-1:] == ("codes",) else FLOAT, ["R", "l", N])
    return finish(builder)


@pytest.mark.parametrize(
    ("steps", "inputs", "outputs", "attributes", "left"),
    [
        ((), 5, 1, set(), ()),
        (("bias",), 6, 1, set(), ()),
        (("gain", "residual"), 8, 1, set(), ()),
        (("bias", "gain", "residual"), 8, 1, set(), ()),
        (("gelu",), 5, 1, {"activation"}, ()),
        (("codes",), 10, 2, {"ranges", "bits"}, ()),
        (("bias", "gelu", "codes"), 10, 2, {"activation", "ranges", "bits"}, ()),
        (("bias", "erf"), 6, 1, set(), ("Gelu",)),
        (("gain",), 5, 1, set(), ("Mul",)),
        (("constant gain", "residual"), 5, 1, set(), ("Mul", "Add")),
        (("residual",), 5, 1, set(), ("Add",)),
    ],
)
def test_a_layer_ends_in_what_follows_it(
    steps: tuple[str, ...], inputs: int, outputs: int, attributes: set[str], left: tuple[str, ...]
) -> None:
    fused = fuse_epilogues(behind(*steps))
    (linear,) = fused_nodes(fused.graph, "Linear")
    assert (len(linear.inputs), len(linear.outputs), set(linear.attributes)) == (inputs, outputs, attributes)
    assert Counter(node.op_type for node in fused.graph) == Counter(["Linear", *left])
    assert [value.name for value in fused.graph.outputs] == ["y"]
    assert ir.to_proto(fuse_epilogues(fused)) == ir.to_proto(fused)


def test_a_result_that_is_read_twice_stays_a_result() -> None:
    model = behind("gelu", "codes")
    (linear,) = fused_nodes(model.graph, "Linear")
    model.graph.outputs.append(linear.outputs[0])
    fused = fuse_epilogues(model)
    assert Counter(node.op_type for node in fused.graph) == Counter(["Linear", "Gelu", "Quantize"])
