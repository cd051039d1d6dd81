"""A linear layer beside an Add or Mul that is no bias of it, for the passes that take a bias in."""

import numpy as np
import onnx_ir as ir

from nextscale.export.graph_builder import Constants, add_output, finish, new_builder


def not_a_bias(case: str, width: int) -> ir.Model:
    """A layer `a`, whose product meets something that the integer product must not swallow.

    x float32 [R, l, width] -> y, and stage int64 [] as it is.
    """
    rng = np.random.default_rng(0)
    builder = new_builder("no_bias")
    op, constants = builder.op, Constants(builder)
    x = builder.input("x", ir.DataType.FLOAT, ["R", "l", width])
    stage = builder.input("stage", ir.DataType.INT64, [])
    product = op.MatMul(x, constants("a.weight", rng.normal(size=(width, width)).astype(np.float32)), _name="a")
    bias = constants("bias", rng.normal(size=width).astype(np.float32))
    sums = {
        "another activation": lambda: op.Add(product, x),
        "a constant of two axes": lambda: op.Add(constants("rows", np.ones((1, width), np.float32)), product),
        "two consumers": lambda: op.Add(op.Add(product, bias), op.Tanh(product)),
        "a graph output": lambda: op.Add(product, bias),
        "a product": lambda: op.Mul(product, bias),
        "a bias from the left": lambda: op.Add(bias, product),
    }
    add_output(builder, sums[case](), "y", ir.DataType.FLOAT, ["R", "l", width])
    if case == "a graph output":
        add_output(builder, product, "product", ir.DataType.FLOAT, ["R", "l", width])
    add_output(builder, op.Identity(stage), "same_stage", ir.DataType.INT64, [])
    return finish(builder)
