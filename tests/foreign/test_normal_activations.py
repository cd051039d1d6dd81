"""x clip(x + 3, 0, 6) / 6 in all ways of writing it is HardSwish, and what is nearly so stays."""

from __future__ import annotations

import itertools

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
from numpy.typing import NDArray
from onnx import helper, numpy_helper, parser

from nextscale.foreign._normal_activations import join_hard_swish
from nextscale.foreign.normalize import normalize

Arrays = dict[str, NDArray[np.generic]]
CONSTANTS: Arrays = {
    "three": np.float32(3), "zero": np.float32(0), "six": np.float32(6), "sixth": np.float32(1 / 6),
}  # fmt: skip
X = np.linspace(-5, 5, 24, dtype=np.float32).reshape(2, 3, 4)


def model(body: str, kind: str = "float", output: str | None = None, **arrays: NDArray[np.generic]) -> onnx.ModelProto:
    graph = parser.parse_graph(f"g ({kind}[2, 3, 4] x) => ({output or f'{kind}[2, 3, 4] y'}) {{ {body} }}")
    read = {name for node in graph.node for name in node.input}
    for name, array in (CONSTANTS | arrays).items():
        if name in read:
            graph.initializer.append(numpy_helper.from_array(np.asarray(array), name))
    for node in graph.node:
        node.name = node.output[0]
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)


def run(proto: onnx.ModelProto, x: NDArray[np.generic] = X) -> list[NDArray[np.generic]]:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 3
    session = onnxruntime.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return list(session.run(None, {"x": x}))


def operators(built: ir.Model) -> list[str]:
    return [node.op_type for node in built.graph]


SHIFTED = ("a = Add (x, three)", "a = Add (three, x)")
PRODUCTS = ("p = Mul (x, c)", "p = Mul (c, x)")
LASTS = ("y = Div (p, six)", "y = Mul (p, sixth)", "y = Mul (sixth, p)")


@pytest.mark.parametrize("lines", [*itertools.product(SHIFTED, PRODUCTS, LASTS)], ids=lambda lines: ", ".join(lines))
def test_all_ways_of_writing_it(lines: tuple[str, str, str]) -> None:
    shift, product, last = lines
    proto = model(f"{shift} c = Clip (a, zero, six) {product} {last}")
    built = ir.from_proto(proto)
    assert join_hard_swish(built) == 1
    assert built.graph.outputs[0].name == "y"
    normalized = normalize(ir.from_proto(proto))
    assert operators(normalized.model) == ["HardSwish"]
    assert normalized.notes == ("1 HardSwish was put together",)
    found = ir.to_proto(normalized.model)
    onnx.checker.check_model(found, full_check=True)
    expected = X.astype(np.float64) * np.clip(X.astype(np.float64) + 3, 0, 6) / 6
    np.testing.assert_allclose(run(found)[0], expected, rtol=0, atol=2e-6)
    assert normalize(normalized.model).notes == ()


def test_constants_of_four_digits_and_of_one_entry() -> None:
    body = "a = Add (x, three) c = Clip (a, zero, six) p = Mul (x, c) y = Mul (p, sixth)"
    proto = model(body, sixth=np.float32([[0.16667]]), three=np.float32([3]))
    assert operators(normalize(ir.from_proto(proto)).model) == ["HardSwish"]


def test_one_behind_the_other_and_names() -> None:
    body = """a = Add (x, three) c = Clip (a, zero, six) p = Mul (x, c) h = Div (p, six)
              b = Add (h, three) d = Clip (b, zero, six) q = Mul (h, d) y = Div (q, six)"""
    proto = model(body)
    normalized = normalize(ir.from_proto(proto))
    assert operators(normalized.model) == ["HardSwish", "HardSwish"]
    assert normalized.notes == ("2 HardSwish were put together",)
    assert [node.outputs[0].name for node in normalized.model.graph] == ["h", "y"]
    np.testing.assert_allclose(run(ir.to_proto(normalized.model))[0], run(proto)[0], atol=1e-5)


def test_what_others_read_of_it_stays() -> None:
    body = "a = Add (x, three) c = Clip (a, zero, six) p = Mul (x, c) y = Div (p, six) z = Neg (c)"
    proto = model(body, output="float[2, 3, 4] y, float[2, 3, 4] z, float[2, 3, 4] p")
    normalized = normalize(ir.from_proto(proto))
    assert sorted(operators(normalized.model)) == ["Add", "Clip", "HardSwish", "Mul", "Neg"]
    for found, expected in zip(run(ir.to_proto(normalized.model)), run(proto), strict=True):
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)


WHOLE = "a = Add (x, three) c = Clip (a, zero, six) p = Mul (x, c) y = Div (p, six)"
OTHER: dict[str, tuple[str, Arrays]] = {
    "another shift": (WHOLE, {"three": np.float32(3.01)}),
    "another top": (WHOLE.replace("zero, six", "zero, seven"), {"seven": np.float32(7)}),
    "another bottom": (WHOLE.replace("zero, six", "low, six"), {"low": np.float32(-1)}),
    "no bottom": (WHOLE.replace("zero, six", ", six"), {}),
    "no top": (WHOLE.replace("zero, six", "zero"), {}),
    "another divisor": (WHOLE.replace("(p, six)", "(p, other)"), {"other": np.float32(5.9)}),
    "a sixth as divisor": (WHOLE.replace("(p, six)", "(p, sixth)"), {}),
    "a product with six": (WHOLE.replace("Div (p, six)", "Mul (p, six)"), {}),
    "six over it": (WHOLE.replace("(p, six)", "(six, p)"), {}),
    "of another value": (WHOLE.replace("Add (x, three)", "Add (w, three)").replace("a =", "w = Neg (x) a ="), {}),
    "a difference": (WHOLE.replace("Add (x", "Sub (x"), {}),
    "a sum": (WHOLE.replace("p = Mul", "p = Add"), {}),
    "numbers of each row": (WHOLE, {"three": np.full(4, 3, np.float32)}),
    "of another domain": (WHOLE.replace("y = Div", "y = com.microsoft.Div"), {}),
    "computed": (WHOLE.replace("(p, six)", "(p, s)").replace("a =", "s = ReduceMax <keepdims = 0> (x) a ="), {}),
    "the square of a clip": (WHOLE.replace("Mul (x, c)", "Mul (c, c)"), {}),
}


@pytest.mark.parametrize("name", OTHER)
def test_what_is_nearly_so_stays(name: str) -> None:
    body, arrays = OTHER[name]
    built = ir.from_proto(model(body, **arrays))
    before = ir.to_proto(built).SerializeToString()
    assert join_hard_swish(built) == 0
    assert ir.to_proto(built).SerializeToString() == before


@pytest.mark.parametrize("constant", ["three", "six", "sixth"])
def test_a_constant_that_adds_axes(constant: str) -> None:
    """One number of four axes makes four axes of three."""
    body = WHOLE.replace("Div (p, six)", "Mul (p, sixth)") if constant == "sixth" else WHOLE
    body = body.replace("zero, six", "zero, top")
    arrays = {constant: np.asarray(CONSTANTS[constant]).reshape(1, 1, 1, 1), "top": np.float32(6)}
    proto = model(body, output="float[1, 2, 3, 4] y", **arrays)
    found = run(ir.to_proto(normalize(ir.from_proto(proto)).model))[0]
    np.testing.assert_allclose(found, run(proto)[0], rtol=0, atol=1e-5)
    assert found.shape == (1, 2, 3, 4)


@pytest.mark.parametrize(("kind", "dtype"), [("int32", np.int32), ("double", np.float64)])
def test_other_types_stay(kind: str, dtype: type) -> None:
    """HardSwish is of no integers, and ONNX Runtime has none of float64."""
    arrays = {name: np.asarray(value).astype(dtype) for name, value in CONSTANTS.items()}
    proto = model(WHOLE, kind, **arrays)
    normalized = normalize(ir.from_proto(proto)).model
    assert "HardSwish" not in operators(normalized)
    x = X.astype(dtype)
    np.testing.assert_array_equal(run(ir.to_proto(normalized), x)[0], run(proto, x)[0])
