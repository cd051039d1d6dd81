"""Everything that multiplies is listed, taken or with the reason why not."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper, parser

from nextscale.foreign.normalize import normalize
from nextscale.foreign.survey import Found, survey

RNG = np.random.default_rng(0)


def model(text: str, **weights: np.ndarray) -> ir.Model:
    """Of a graph in ONNX's own text form, with weights by name."""
    graph = parser.parse_graph(text)
    for name, array in weights.items():
        graph.initializer.append(onnx.numpy_helper.from_array(array, name))
    for i, node in enumerate(graph.node):
        node.name = node.name or f"n{i}"
    imports = [helper.make_opsetid("", 17), helper.make_opsetid("com.microsoft", 1)]
    return ir.from_proto(helper.make_model(graph, opset_imports=imports, ir_version=8))


def normal(*shape: int) -> np.ndarray:
    return RNG.normal(size=shape).astype(np.float32)


def found_in(text: str, **weights: np.ndarray) -> list[Found]:
    return list(survey(normalize(model(text, **weights)).model).found)


LAYER = "g (float[2, 5, 8] x) => (float[2, 5, 4] y) { y = MatMul (x, w) }"
ATTENTION = """g (float[2, 3, 5, 8] q, float[2, 3, 8, 7] k, float[2, 3, 7, 4] v) => (float[2, 3, 5, 4] y) {
    s = MatMul (q, k)
    a = Softmax <axis = -1> (s)
    y = MatMul (a, v)
}"""


def test_what_is_taken() -> None:
    assert found_in(LAYER, w=normal(8, 4)) == [Found("n0", "linear layer", None, (4, 8))]
    assert found_in(ATTENTION) == [Found("n2", "attention")]


LEFT: dict[str, tuple[str, dict[str, np.ndarray], str, str]] = {
    "weight on the left": (
        "g (float[8, 5] x) => (float[4, 5] y) { y = MatMul (w, x) }",
        {"w": normal(4, 8)},
        "linear layer",
        "its weight is on the left",
    ),
    "weights of a batch": (
        "g (float[3, 5, 8] x) => (float[3, 5, 4] y) { y = MatMul (x, w) }",
        {"w": normal(3, 8, 4)},
        "linear layer",
        "its weight has 3 axes; expected 2",
    ),
    "a vector": (
        "g (float[8] x) => (float[4] y) { y = MatMul (x, w) }",
        {"w": normal(8, 4)},
        "linear layer",
        "its input is a vector",
    ),
    "float64": (
        "g (double[5, 8] x) => (double[5, 4] y) { y = MatMul (x, w) }",
        {"w": normal(8, 4).astype(np.float64)},
        "linear layer",
        "its weight is double, not float32",
    ),
    "two activations": (
        "g (float[5, 8] x, float[8, 4] z) => (float[5, 4] y) { y = MatMul (x, z) }",
        {},
        "product",
        "both operands are activations, and it is no attention",
    ),
    "convolution": (
        "g (float[1, 3, 8, 8] x) => (float[1, 2, 6, 6] y) { y = Conv (x, w) }",
        {"w": normal(2, 3, 3, 3)},
        "convolution",
        "its result is an output of the model, which 8 bits would be too few for",
    ),
    "whole attention": (
        "g (float[1, 5, 8] q, float[1, 5, 8] k, float[1, 5, 8] v) => (float[1, 5, 8] y) "
        "{ y = com.microsoft.MultiHeadAttention <num_heads = 2> (q, k, v) }",
        {},
        "attention",
        "com.microsoft MultiHeadAttention is one operator; export it as products",
    ),
    "integers": (
        "g (uint8[5, 8] x) => (int32[5, 4] y) { y = MatMulInteger (x, w) }",
        {"w": RNG.integers(0, 9, (8, 4)).astype(np.uint8)},
        "product",
        "MatMulInteger is quantized already",
    ),
}


@pytest.mark.parametrize(("text", "weights", "kind", "reason"), LEFT.values(), ids=LEFT.keys())
def test_what_is_left_has_a_reason(text: str, weights: dict[str, np.ndarray], kind: str, reason: str) -> None:
    (item,) = found_in(text, **weights)
    assert (item.kind, item.refused) == (kind, reason)


def test_a_softmax_between_products_that_is_no_attention() -> None:
    """Both products and the refusal are listed."""
    found = found_in(ATTENTION.replace("y = MatMul (a, v)", "b = Relu (a)\n y = MatMul (b, v)"))
    assert [item.kind for item in found] == ["product", "attention", "product"]
    assert found[1].refused is not None
    assert "is Relu, not MatMul" in found[1].refused


TOLD_ONCE: dict[str, tuple[str, str]] = {
    "keys that are repeated": (
        ATTENTION.replace("float[2, 3, 8, 7] k", "float[2, 1, 8, 7] k"),
        "n0 repeats an operand: [2, 3, 5, 8] times [2, 1, 8, 7]",
    ),
    "another axis": (ATTENTION.replace("<axis = -1>", "<axis = 2>"), "axis 2 is not the last of 4"),
    "weights that are an output": (
        ATTENTION.replace("(float[2, 3, 5, 4] y)", "(float[2, 3, 5, 4] y, float[2, 3, 5, 7] a)"),
        "its output leaves the graph",
    ),
    "weights that another reads": (
        ATTENTION.replace("=> (float[2, 3, 5, 4] y)", "=> (float[2, 3, 5, 4] y, float[2, 3, 5, 7] r)")
        .replace("y = MatMul (a, v)", "y = MatMul (a, v)\n r = Relu (a)"),
        "its output has 2 consumers, not the product with the values alone",
    ),
    "weights on the right": (
        ATTENTION.replace("y = MatMul (a, v)", "y = MatMul (v, a)").replace("[2, 3, 7, 4] v", "[2, 3, 4, 5] v")
        .replace("float[2, 3, 5, 4] y", "float[2, 3, 4, 7] y"),
        "n2 has it as the right operand",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("text", "reason"), TOLD_ONCE.values(), ids=TOLD_ONCE.keys())
def test_a_refused_attention_is_one_line(text: str, reason: str) -> None:
    """Both of its products are in it."""
    assert found_in(text) == [Found("n1", "attention", reason)]


def test_a_product_beside_a_linear_layer_has_its_own_line() -> None:
    """Of a softmax that is no attention's."""
    text = "g (float[5, 8] x, float[7, 4] v) => (float[5, 4] y) { s = MatMul (x, w) a = Softmax (s) y = MatMul (a, v) }"
    found = found_in(text, w=normal(8, 7))
    assert [(item.name, item.kind) for item in found] == [
        ("n0", "linear layer"), ("n1", "attention"), ("n2", "product")
    ]  # fmt: skip
    assert [item.refused is None for item in found] == [True, False, False]


def test_a_product_in_other_words_than_attentions_has_its_own_line() -> None:
    """Its keys are quantized already, which the refused attention does not tell."""
    text = ATTENTION.replace("float[2, 3, 8, 7] k", "uint8[2, 1, 8, 7] c, float u").replace(
        "s = MatMul", "k = DequantizeLinear (c, u)\n s = MatMul"
    )
    found = {item.name: item.refused for item in found_in(text)}
    assert found["n1"] == "it is quantized already"
    assert str(found["n2"]).startswith("n1 repeats an operand")
    assert set(found) == {"n1", "n2"}


def test_a_classifiers_softmax_is_not_listed() -> None:
    text = LAYER.replace("y = MatMul (x, w)", "s = MatMul (x, w)\n y = Softmax <axis = -1> (s)")
    assert [item.kind for item in found_in(text, w=normal(8, 4))] == ["linear layer"]
    text = text.replace("float[2, 5, 4] y)", "float[2, 5, 4] y, float[2, 5, 3] z)").replace(
        "y = Softmax <axis = -1> (s)", "y = Softmax <axis = -1> (s)\n z = MatMul (y, u)"
    )
    assert [item.kind for item in found_in(text, w=normal(8, 4), u=normal(4, 3))] == ["linear layer"] * 2


def test_a_layer_in_a_subgraph() -> None:
    then = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["a"], "inner")],
        "then",
        [],
        [helper.make_tensor_value_info("a", TensorProto.FLOAT, [5, 4])],
    )
    other = helper.make_graph(
        [helper.make_node("Mul", ["z", "z"], ["b"], "square")],
        "other",
        [],
        [helper.make_tensor_value_info("b", TensorProto.FLOAT, [5, 4])],
    )
    graph = helper.make_graph(
        [helper.make_node("If", ["c"], ["y"], "choose", then_branch=then, else_branch=other)],
        "g",
        [
            helper.make_tensor_value_info("c", TensorProto.BOOL, []),
            helper.make_tensor_value_info("x", TensorProto.FLOAT, [5, 8]),
            helper.make_tensor_value_info("z", TensorProto.FLOAT, [5, 4]),
        ],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [5, 4])],
        [onnx.numpy_helper.from_array(normal(8, 4), "w")],
    )
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    (item,) = survey(normalize(ir.from_proto(proto)).model).found
    assert (item.name, item.refused) == ("inner", "in a subgraph, which calibration does not see")


def test_further_refusals() -> None:
    found = survey(normalize(model(LAYER, w=normal(8, 4))).model)
    assert [item.refused for item in found.without({"n0": "bad", "other": "worse"}).found] == ["bad"]
    assert found.without({"n0": "bad"}).taken("linear layer") == []
