from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
import torch
from onnxscript import OpBuilder
from tiny_model import tiny_models, tiny_source

from nextscale.export.generate_graph import build_generate_graph
from nextscale.export.graph_builder import Constants, add_output, finish, new_builder
from nextscale.export.var.decoder_graph import build_decoder_graph
from nextscale.export.var.stage_graph import build_stage_graph
from nextscale.graph_passes._attention_patterns import attention_patterns, refusals
from nextscale.runtime._var_request import var_request

H, D, T = 2, 4, 5


def attention_model(write: Callable[[OpBuilder, SimpleNamespace], ir.Value]) -> ir.Model:
    """A graph over query [B, H, T', d], key [B, H, d, T], value [B, H, T, d], mask [T', T] and a few constants."""
    builder = new_builder("attention")
    constants = Constants(builder)
    shapes: dict[str, list[int | str]] = {
        "query": ["B", H, "T'", D],
        "key": ["B", H, D, T],
        "value": ["B", H, T, D],
        "mask": ["T'", T],
    }
    values = {name: builder.input(name, ir.DataType.FLOAT, shape) for name, shape in shapes.items()}
    rng = np.random.default_rng(0)
    values["half"] = constants("half", np.float32([0.5]))
    values["weight"] = constants("weight", rng.normal(size=(D, T)).astype(np.float32))
    values["codes"] = constants("codes", rng.normal(size=(T, D)).astype(np.float32))
    add_output(builder, write(builder.op, SimpleNamespace(**values)), "y", ir.DataType.FLOAT, ["B", H, None, None])
    return finish(builder)


def attend(op: OpBuilder, v: SimpleNamespace, scores: ir.Value, **softmax: int) -> ir.Value:
    return op.MatMul(op.Softmax(scores, **({"axis": -1} | softmax)), v.value, _name="mix")


def product(op: OpBuilder, v: SimpleNamespace) -> ir.Value:
    return op.MatMul(v.query, v.key, _name="scores")


FOUND: dict[str, Callable[[OpBuilder, Any], ir.Value]] = {
    "bare": lambda op, v: attend(op, v, product(op, v)),
    "positive axis": lambda op, v: attend(op, v, product(op, v), axis=3),
    "scaled": lambda op, v: attend(op, v, op.Div(product(op, v), v.half)),
    "scaled from the left": lambda op, v: attend(op, v, op.Mul(v.half, product(op, v))),
    "scaled by a Constant node": lambda op, v: attend(op, v, op.Mul(product(op, v), op.Constant(value_float=0.5))),
    "masked": lambda op, v: attend(op, v, op.Add(product(op, v), v.mask)),
    "masked from the left": lambda op, v: attend(op, v, op.Add(op.Mul(v.mask, v.half), product(op, v))),
    "scaled, masked, scaled": lambda op, v: attend(
        op, v, op.Mul(op.Add(op.Div(product(op, v), v.half), v.mask), v.half)
    ),
    "Identity on both sides": lambda op, v: op.MatMul(
        op.Identity(op.Softmax(op.Identity(product(op, v)), axis=-1)), v.value, _name="mix"
    ),
}


@pytest.mark.parametrize("write", FOUND.values(), ids=FOUND.keys())
def test_each_form_is_found(write: Callable[[OpBuilder, Any], ir.Value]) -> None:
    model = attention_model(write)
    (pattern,) = attention_patterns(model.graph)
    assert (pattern.query.name, pattern.key.name, pattern.value.name) == ("query", "key", "value")
    assert pattern.weights.producer() is pattern.softmax
    assert (pattern.scores.name, pattern.mix.name, pattern.name) == ("scores", "mix", "mix")
    assert pattern.graph is model.graph
    assert refusals(model.graph) == []


def two_consumers(op: OpBuilder, v: SimpleNamespace) -> ir.Value:
    weights = op.Softmax(product(op, v), axis=-1, _name="softmax")
    return op.Mul(op.MatMul(weights, v.value, _name="mix"), op.ReduceMax(weights))


REFUSED: dict[str, tuple[Callable[[OpBuilder, Any], ir.Value], str]] = {
    "softmax over the queries": (
        lambda op, v: attend(op, v, product(op, v), axis=2, _name="softmax"),
        "axis 2 is not the last of 4",
    ),
    "negative axis": (lambda op, v: attend(op, v, product(op, v), axis=-2, _name="softmax"), "axis -2 is not the last"),
    "weights used twice": (two_consumers, "its output has 2 consumers"),
    "classifier": (lambda op, v: op.Softmax(product(op, v), axis=-1, _name="softmax"), "its output leaves the graph"),
    "no product after": (
        lambda op, v: op.Relu(op.Softmax(product(op, v), axis=-1, _name="softmax"), _name="relu"),
        "its consumer relu is Relu, not MatMul",
    ),
    "weights on the right": (
        lambda op, v: op.MatMul(v.query, op.Softmax(product(op, v), axis=-1, _name="softmax"), _name="other"),
        "other has it as the right operand",
    ),
    "no product before": (
        lambda op, v: attend(op, v, op.Tanh(product(op, v)), _name="softmax"),
        "its input is no MatMul",
    ),
    "no product at all": (lambda op, v: attend(op, v, v.mask, _name="softmax"), "its input is no MatMul"),
    "scaled by an activation": (
        lambda op, v: attend(op, v, op.Mul(product(op, v), v.mask), _name="softmax"),
        "its input is no MatMul",
    ),
    "a constant over the product": (
        lambda op, v: attend(op, v, op.Div(v.half, product(op, v)), _name="softmax"),
        "its input is no MatMul",
    ),
    "sum of two products": (
        lambda op, v: attend(op, v, op.Add(product(op, v), op.MatMul(v.query, v.key)), _name="softmax"),
        "its input is no MatMul",
    ),
    "gate of a linear layer": (
        lambda op, v: attend(op, v, op.MatMul(v.query, v.weight, _name="gate"), _name="softmax"),
        "the key side of gate is a constant",
    ),
    "soft look-up": (
        lambda op, v: op.MatMul(op.Softmax(product(op, v), axis=-1, _name="softmax"), v.codes, _name="look_up"),
        "the value side of look_up is a constant",
    ),
}


@pytest.mark.parametrize(("write", "reason"), REFUSED.values(), ids=REFUSED.keys())
def test_each_refusal_names_the_node_and_says_why(write: Callable[[OpBuilder, Any], ir.Value], reason: str) -> None:
    model = attention_model(write)
    assert attention_patterns(model.graph) == []
    (refusal,) = refusals(model.graph)
    assert str(refusal).startswith("softmax: ")
    assert reason in str(refusal)


def test_a_positive_axis_of_unknown_rank_is_refused() -> None:
    model = attention_model(lambda op, v: attend(op, v, product(op, v), axis=3, _name="softmax"))
    (softmax,) = (node for node in model.graph if node.op_type == "Softmax")
    for value in (softmax.inputs[0], softmax.outputs[0]):
        assert value is not None
        value.shape = None
    assert attention_patterns(model.graph) == []
    assert "unknown rank" in refusals(model.graph)[0].reason


def test_the_blocks_of_the_stage_graph_are_found_whatever_their_names() -> None:
    var, vqvae = tiny_models()
    model = build_stage_graph(var, vqvae.quantize)
    for i, node in enumerate(model.graph):
        node.name = f"n{i}"
    patterns = attention_patterns(model.graph)
    assert len(patterns) == var.config.depth
    for i, pattern in enumerate(patterns):
        assert (pattern.key.name, pattern.value.name) == (f"present.{i}.key", f"present.{i}.value")
        assert pattern.graph is model.graph
    (smooth,) = refusals(model.graph)
    assert smooth.reason == "its output leaves the graph"


def test_the_blocks_are_found_inside_the_loop() -> None:
    source = tiny_source()
    stage, decoder = build_stage_graph(source.var, source.vqvae.quantize), build_decoder_graph(source.vqvae)
    model = build_generate_graph(stage, decoder, source.var.config.num_stages, var_request(source.model_info()))
    patterns = attention_patterns(model.graph)
    assert len(patterns) == source.var.config.depth
    assert all(pattern.graph is not model.graph and pattern.mix in list(pattern.graph) for pattern in patterns)
    # The decoder's own attention works on columns.
    smooth, *others = refusals(model.graph)
    assert smooth.reason == "its output leaves the graph"
    assert all("is Transpose, not MatMul" in refusal.reason for refusal in others)


class Attention(torch.nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads, self.qkv, self.proj = heads, torch.nn.Linear(width, 3 * width), torch.nn.Linear(width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        b, n, c = x.shape
        q, k, v = self.qkv(x).reshape(b, n, 3, self.heads, c // self.heads).permute(2, 0, 3, 1, 4)
        weights = (q @ k.transpose(-2, -1) / (c // self.heads) ** 0.5).softmax(-1)
        return self.proj((weights @ v).transpose(1, 2).reshape(b, n, c))


class MultiheadAttention(torch.nn.MultiheadAttention):
    """torch's own, which averages over the heads if it is to return the weights."""

    def __init__(self, width: int, heads: int, need_weights: bool = False) -> None:
        super().__init__(width, heads, batch_first=True)
        self.need_weights = need_weights

    def forward(self, x: torch.Tensor) -> torch.Tensor:  # type: ignore[override]
        y, weights = super().forward(x, x, x, need_weights=self.need_weights)
        return y if weights is None else y * weights.mean()


class ViT(torch.nn.Module):
    """A small vision transformer: patches, two blocks, and a classifier whose softmax is no attention."""

    def __init__(self, attention: Callable[[int, int], torch.nn.Module], width: int = 16, heads: int = 2) -> None:
        super().__init__()
        self.patches = torch.nn.Conv2d(3, width, 4, 4)
        self.attention = torch.nn.ModuleList(attention(width, heads) for _ in range(2))
        self.norm = torch.nn.ModuleList(torch.nn.LayerNorm(width) for _ in range(2))
        self.head = torch.nn.Linear(width, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.patches(x).flatten(2).transpose(1, 2)
        for attention, norm in zip(self.attention, self.norm, strict=True):
            x = x + attention(norm(x))
        return self.head(x.mean(1)).softmax(-1)


def exported(module: torch.nn.Module) -> ir.Model:
    """By torch's exporter, as anyone's model comes."""
    program = torch.onnx.export(module.eval(), (torch.randn(2, 3, 16, 16),), dynamo=True, verbose=False)
    assert program is not None
    return program.model


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
@pytest.mark.parametrize("attention", [Attention, MultiheadAttention])
def test_a_foreign_vision_transformer(attention: Callable[[int, int], torch.nn.Module]) -> None:
    model = exported(ViT(attention))
    patterns = attention_patterns(model.graph)
    assert len(patterns) == 2
    for pattern in patterns:
        assert pattern.weights.shape is not None
        assert list(pattern.weights.shape)[-2:] == [16, 16]
    assert [refusal.reason for refusal in refusals(model.graph)] == ["its output leaves the graph"]


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_a_foreign_model_that_uses_its_weights_twice_is_refused() -> None:
    model = exported(ViT(lambda width, heads: MultiheadAttention(width, heads, need_weights=True)))
    assert attention_patterns(model.graph) == []
    assert ["consumers" in refusal.reason for refusal in refusals(model.graph)] == [True, True, False]
