from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
from numpy.typing import NDArray
from onnxscript import OpBuilder

from nextscale.export.graph_builder import Constants, add_output, finish, new_builder
from nextscale.graph_passes._attention_patterns import attention_patterns
from nextscale.graph_passes.tile_attention import tile_attention, untiled_attentions

D = 4
Arrays = dict[str, NDArray[np.float32]]
Attend = Callable[[OpBuilder, SimpleNamespace], ir.Value]


def attention_model(attend: Attend) -> ir.Model:
    """A graph over query [B, H, l, d], key [B, H, d, T], value [B, H, T, d], bias [B, 1, 1, T] and mask [l, T]."""
    builder = new_builder("attention")
    shapes: dict[str, list[int | str]] = {
        "query": ["B", "H", "l", D],
        "key": ["B", "H", D, "T"],
        "value": ["B", "H", "T", D],
        "bias": ["B", 1, 1, "T"],
        "mask": ["l", "T"],
    }
    values = {name: builder.input(name, ir.DataType.FLOAT, shape) for name, shape in shapes.items()}
    values["half"] = Constants(builder)("half", np.float32(0.5))
    add_output(builder, attend(builder.op, SimpleNamespace(**values)), "y", ir.DataType.FLOAT, ["B", "H", "l", D])
    return finish(builder)


def biased(op: OpBuilder, v: SimpleNamespace) -> ir.Value:
    """softmax(query key / 2 + bias) value, and then a second attention of what that gives."""
    scores = op.Add(op.Mul(op.MatMul(v.query, v.key, _name="a.scores"), v.half), v.bias)
    a = op.MatMul(op.Softmax(scores, axis=-1), v.value, _name="a.mix")
    weights = op.Softmax(op.MatMul(op.Add(a, v.query), v.key, _name="b.scores"), axis=-1)
    return op.MatMul(weights, v.value, _name="b.mix")


@pytest.fixture(scope="module")
def model() -> ir.Model:
    return attention_model(biased)


def random_arrays(rng: np.random.Generator, b: int, h: int, length: int, keys: int) -> Arrays:
    shapes = {
        "query": (b, h, length, D), "key": (b, h, D, keys), "value": (b, h, keys, D), "bias": (b, 1, 1, keys),
        "mask": (length, keys),
    }  # fmt: skip
    return {name: rng.standard_normal(shape, np.float32) for name, shape in shapes.items()}


def run(model: ir.Model, arrays: Arrays) -> list[NDArray[np.float32]]:
    serialized = ir.to_proto(model).SerializeToString()
    session = onnxruntime.InferenceSession(serialized, providers=["CPUExecutionProvider"])
    found: list[NDArray[np.float32]] = session.run(None, arrays)
    return found


def by_hand(arrays: Arrays) -> NDArray[np.float64]:
    """`biased` in float64."""
    query, key, value, bias = (arrays[name].astype(np.float64) for name in ("query", "key", "value", "bias"))
    a = softmax(query @ key / 2 + bias) @ value
    return softmax((a + query) @ key) @ value


def softmax(x: NDArray[np.float64]) -> NDArray[np.float64]:
    e: NDArray[np.float64] = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def test_attentions_move_into_scans_with_their_names(model: ir.Model) -> None:
    before = ir.to_proto(model).SerializeToString()
    tiled = tile_attention(model, 100)
    scans = [node for node in tiled.graph if node.op_type == "Scan"]
    assert [scan.attributes["body"].as_graph()[-1].name for scan in scans] == ["a.mix", "b.mix"]
    assert not {"Softmax", "MatMul"} & {node.op_type for node in tiled.graph}
    assert [pattern.name for pattern in attention_patterns(tiled.graph)] == ["a.mix", "b.mix"]
    assert ir.to_proto(model).SerializeToString() == before


def test_once_is_enough(model: ir.Model) -> None:
    once = tile_attention(model, 100)
    assert ir.to_proto(tile_attention(once, 7)).SerializeToString() == ir.to_proto(once).SerializeToString()


def test_the_graph_is_valid_before_and_after(model: ir.Model) -> None:
    for checked in (model, tile_attention(model, 100)):
        onnx.checker.check_model(ir.to_proto(checked), full_check=True)


@pytest.mark.parametrize("seed", range(12))
def test_numbers_and_parts(model: ir.Model, seed: int) -> None:
    """The result is attention's; parts are as few and as equal as keep their scores within the bound."""
    rng = np.random.default_rng(seed)
    b, h, length, keys = (int(size) for size in rng.integers(1, [3, 4, 40, 30], endpoint=True))
    most = int(rng.integers(1, 2 * b * h * length * keys))
    arrays = random_arrays(rng, b, h, length, keys)
    tiled = tile_attention(model, most)
    (scan, _) = (node for node in tiled.graph if node.op_type == "Scan")
    assert scan.inputs[0] is not None
    parts = scan.inputs[0]
    tiled.graph.outputs.append(parts)
    parts.dtype, parts.shape = ir.DataType.FLOAT, ir.Shape([None] * 5)
    found, queries = run(tiled, arrays)
    # Sums of d = 4 and of T numbers, softmax between: some tens of roundings of values of about 1.
    np.testing.assert_allclose(found, by_hand(arrays), rtol=0, atol=1e-5, err_msg=f"seed {seed}")
    _, _, count, size, _ = queries.shape
    row = b * h * keys
    assert row * size <= most or size == 1, f"seed {seed}"
    assert count == 1 or row * -(-length // (count - 1)) > most, f"seed {seed}"
    assert 0 <= count * size - length < count, f"seed {seed}"


def masked_by_query(op: OpBuilder, v: SimpleNamespace) -> ir.Value:
    scores = op.Add(op.MatMul(v.query, v.key), v.mask, _name="masking")
    return op.MatMul(op.Softmax(scores, axis=-1), v.value, _name="mix")


def with_other_readers(op: OpBuilder, v: SimpleNamespace) -> ir.Value:
    scores = op.MatMul(v.query, v.key, _outputs=["raw"])
    y = op.MatMul(op.Softmax(scores, axis=-1), v.value, _name="mix")
    return op.Add(y, op.ReduceMax(scores, [-1], keepdims=1))


def of_three_dimensions(op: OpBuilder, v: SimpleNamespace) -> ir.Value:
    query, key, value = (op.Squeeze(op.Slice(x, [0], [1], [0]), [0]) for x in (v.query, v.key, v.value))
    weights = op.Softmax(op.MatMul(query, key), axis=-1)
    return op.Unsqueeze(op.MatMul(weights, value, _name="mix"), [0])


@pytest.mark.parametrize(
    ("attend", "reason"),
    [
        (masked_by_query, "mix: what masking takes beside the scores may differ between queries"),
        (with_other_readers, "mix: v_raw is read by others, too"),
        (of_three_dimensions, "mix: its queries are not known to be of four dimensions, [R, H, l, d]"),
    ],
)
def test_what_is_not_tiled_is_told(attend: Attend, reason: str) -> None:
    model = attention_model(attend)
    assert [str(refusal) for refusal in untiled_attentions(model)] == [reason]
    assert ir.to_proto(tile_attention(model, 1)).SerializeToString() == ir.to_proto(model).SerializeToString()
