"""A graph that is one attention, operands for it, and what it and the NumPy oracle make of them."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Literal

import attention_oracle as oracle
import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
from numpy.typing import NDArray

from nextscale.export.graph_builder import add_output, finish, new_builder
from nextscale.graph_passes.expand_attentive_tokens import ShiftAndSum
from nextscale.graph_passes.quantize_attention import (
    AttentionWeights,
    Magnitudes,
    overflow_name,
    quantize_attention,
)

Form = Literal["duplicate", "residual"]
WEIGHTS: tuple[AttentionWeights, ...] = ("log2", "log2-row", "row", "uniform")
BITS = (8, 6, 4, 3, 2)
FORMS: tuple[Form | None, ...] = (None, "residual", "duplicate")
THETA, PLACES = 0.03, (2, 6)
ROWS = 2
STAGE = 1
MIX = "mix"
# The integer total, the sum of the weights or the product of the scales, a quotient and a product are rounded to
# float32 once each, so that an output's relative error is at most (1 + 2^-24)^4 - 1.
RELATIVE = 5 * 2**-24
# Of exponents up to 24 the logarithm and its quotient are off by a few 2^-20, differently in each library.
UNSURE = 2**-16


@dataclass(frozen=True)
class Operands:
    """q [R, H, l, d], k [R, H, d, T], v [R, H, T, d]."""

    q: NDArray[np.float32]
    k: NDArray[np.float32]
    v: NDArray[np.float32]

    @classmethod
    def random(
        cls,
        rng: np.random.Generator,
        images: int = 2,
        heads: int = 3,
        queries: int = 9,
        keys: int = 14,
        width: int = 8,
        peak: float = 2,
    ) -> Operands:
        """Normal ones; the larger `peak`, the fewer tokens have all attention."""
        shapes = ((queries, width), (width, keys), (keys, width))
        q, k, v = (rng.normal(size=(ROWS * images, heads, *shape)).astype(np.float32) for shape in shapes)
        return cls(q * np.float32(peak), k, v)

    def image(self, i: int) -> Operands:
        """Image i alone: rows i and i + B."""
        rows = np.arange(i, len(self.q), len(self.q) // ROWS)
        return Operands(self.q[rows], self.k[rows], self.v[rows])


@dataclass(frozen=True)
class Outcome:
    """What a graph computed: y [R, H, l, d], its scores and attention weights [R, H, l, T], and the overflow."""

    y: NDArray[np.float32]
    scores: NDArray[np.float32]
    weights: NDArray[np.float32]
    overflow: int


def attention_model() -> ir.Model:
    """softmax(q k) v with all sizes open, and the stage, which shift-and-sum's places need."""
    builder = new_builder("attention")
    op = builder.op
    shapes = {"q": ["R", "H", "l", "d"], "k": ["R", "H", "d", "T"], "v": ["R", "H", "T", "d"]}
    q, k, v = (builder.input(name, ir.DataType.FLOAT, shape) for name, shape in shapes.items())
    stage = builder.input("stage", ir.DataType.INT64, [])
    scores = op.MatMul(q, k, _name="scores")
    weights = op.Softmax(scores, axis=-1, _name="softmax")
    for value in (scores, weights):
        value.dtype, value.shape = ir.DataType.FLOAT, ir.Shape(["R", "H", "l", "T"])
    add_output(builder, op.MatMul(weights, v, _name=MIX), "y", ir.DataType.FLOAT, shapes["q"])
    add_output(builder, op.Identity(stage), "same_stage", ir.DataType.INT64, [])
    return finish(builder)


def session_of(model: ir.Model) -> onnxruntime.InferenceSession:
    """A session with one thread, of a graph that the ONNX checker accepts."""
    proto = ir.to_proto(model)
    onnx.checker.check_model(proto, full_check=True)
    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(proto.SerializeToString(), settings, providers=["CPUExecutionProvider"])


class Attention:
    """A session of a graph that was `attention_model()`, with its scores and weights as further outputs."""

    def __init__(self, model: ir.Model) -> None:
        model = model.clone()
        (softmax,) = (node for node in model.graph if node.op_type == "Softmax")
        (scores,), (weights,) = softmax.inputs, softmax.outputs
        assert scores is not None
        model.graph.outputs.extend([scores, weights])
        self.names = ["y", str(scores.name), str(weights.name)]
        if overflow_name(MIX) in {output.name for output in model.graph.outputs}:
            self.names.append(overflow_name(MIX))
        self.session = session_of(model)

    def __call__(self, operands: Operands, stage: int = STAGE) -> Outcome:
        outputs = self.session.run(self.names, {**vars(operands), "stage": np.array(stage)})
        return Outcome(*outputs[:3], overflow=int(outputs[3]) if len(outputs) > 3 else 0)


def shift_and_sum(form: Form | None, theta: float = THETA, places: tuple[int, ...] = PLACES) -> ShiftAndSum | None:
    """One that counts the overflow, or none."""
    return None if form is None else ShiftAndSum(form, theta, places, count_overflow=True)


@cache
def integer_attention(
    weights: AttentionWeights,
    bits: int,
    form: Form | None = None,
    theta: float = THETA,
    places: tuple[int, ...] = PLACES,
    magnitudes: Magnitudes | None = None,
) -> Attention:
    """The attention made integer, with `ROWS` rows per image; made once for all tests."""
    known = None if magnitudes is None else {MIX: magnitudes}
    how = shift_and_sum(form, theta, places)
    return Attention(quantize_attention(attention_model(), weights, bits, ROWS, known, how, "stage"))


def assert_like_oracle(
    outcome: Outcome,
    operands: Operands,
    weights: str,
    bits: int,
    shift_and_sum: ShiftAndSum | None = None,
    stage: int = STAGE,
    magnitude: float | None = None,
    visible: NDArray[np.bool_] | None = None,
    rows: int = ROWS,
    queries: slice = slice(None),
) -> NDArray[np.float64]:
    """The outputs of some queries are those of the oracle, given the graph's weights of all; returns the oracle's."""
    theta, places = (None, 0) if shift_and_sum is None else (shift_and_sum.theta, shift_and_sum.places[stage])
    expected = oracle.mix(outcome.weights, operands.v, weights, bits, rows, theta, places, magnitude, visible)
    assert outcome.y.shape == expected.shape
    expected = expected[:, :, queries]
    sure = np.ones(expected.shape[:3], bool)
    if weights.startswith("log2"):
        sure = exponents_are_sure(outcome.weights, weights, rows)[:, :, queries]
        assert sure.mean() > 0.9
    # Of each output by itself, and so within 1e-6 of the largest. The last term is for what is no normal number.
    bound = RELATIVE * np.abs(expected) + np.finfo(np.float32).tiny
    error = np.abs(outcome.y[:, :, queries] - expected)
    assert (error <= bound)[sure].all(), f"{(error / bound)[sure].max():.3g} times the bound"
    return expected


def exponents_are_sure(a: NDArray[np.float32], weights: str, rows: int = ROWS) -> NDArray[np.bool_]:
    """The rows [R, H, l] of A none of whose exponents lies so near a tie that a logarithm's last bit decides."""
    s = oracle.image_magnitude(a, rows) if weights == "log2" else a.max(axis=-1, keepdims=True)
    with np.errstate(divide="ignore"):
        exact = np.log2(s.astype(np.float64)) - np.log2(a.astype(np.float64))
    exact = np.minimum(exact, 60.0)
    sure: NDArray[np.bool_] = (np.abs(exact - np.floor(exact) - 0.5) > UNSURE).all(axis=-1)
    return sure
