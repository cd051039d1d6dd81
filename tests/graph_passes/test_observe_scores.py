from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
from tiny_model import tiny_source

from nextscale.export.generate_graph import build_generate_graph
from nextscale.export.graph_builder import add_output, finish, new_builder
from nextscale.export.var.decoder_graph import build_decoder_graph
from nextscale.export.var.stage_graph import build_stage_graph
from nextscale.graph_passes.observe_scores import observe_scores, scores_name
from nextscale.runtime._var_request import var_request

D = 4


@pytest.fixture
def model() -> ir.Model:
    """Two attentions a and b over the same query [B, H, T', d], key [B, H, d, T] and value [B, H, T, d]."""
    builder = new_builder("attention")
    op = builder.op
    query = builder.input("query", ir.DataType.FLOAT, ["B", "H", "T'", D])
    key = builder.input("key", ir.DataType.FLOAT, ["B", "H", D, "T"])
    value = builder.input("value", ir.DataType.FLOAT, ["B", "H", "T", D])
    a = op.MatMul(op.Softmax(op.MatMul(query, key), axis=-1), value, _name="a")
    b = op.MatMul(op.Softmax(op.MatMul(op.Add(query, a), key), axis=-1), value, _name="b")
    add_output(builder, b, "y", ir.DataType.FLOAT, ["B", "H", "T'", D])
    return finish(builder)


def run(model: ir.Model, feeds: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    session = onnxruntime.InferenceSession(ir.to_proto(model).SerializeToString(), providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(names, feeds), strict=True))


def test_each_attention_gets_an_output_and_nothing_else_changes(model: ir.Model) -> None:
    before = ir.to_proto(model).SerializeToString()
    observed = observe_scores(model)
    assert [value.name for value in observed.graph.outputs] == ["y", scores_name("a"), scores_name("b")]
    count = len(list(model.graph))
    assert [node.op_type for node in list(observed.graph)[count:]] == ["ReduceMean"] * 2
    assert ir.to_proto(model).SerializeToString() == before


def test_once_is_enough(model: ir.Model) -> None:
    once = observe_scores(model)
    assert ir.to_proto(observe_scores(once)).SerializeToString() == ir.to_proto(once).SerializeToString()


def test_the_graph_is_valid_before_and_after(model: ir.Model) -> None:
    for checked in (model, observe_scores(model)):
        onnx.checker.check_model(ir.to_proto(checked), full_check=True)


def softmax(x: np.ndarray) -> np.ndarray:
    e: np.ndarray = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def test_scores_are_those_of_numpy_for_random_shapes(model: ir.Model) -> None:
    observed = observe_scores(model)
    for seed in range(5):
        print("seed", seed)
        rng = np.random.default_rng(seed)
        b, h, queries, t = rng.integers(1, 7, 4)
        shapes = {"query": (b, h, queries, D), "key": (b, h, D, t), "value": (b, h, t, D)}
        feeds = {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}
        found = run(observed, feeds)
        q, k, v = (feeds[name].astype(np.float64) for name in ("query", "key", "value"))
        weights = {"a": softmax(q @ k)}
        weights["b"] = softmax((q + weights["a"] @ v) @ k)
        for name, expected in weights.items():
            # Logits off by few roundings of sums of 4 products below 2^5 change a weight by at most that much.
            np.testing.assert_allclose(found[scores_name(name)], expected.mean(-2), rtol=0, atol=2**5 * 8 * 2**-23)
        np.testing.assert_array_equal(found["y"], run(model, feeds)["y"])


def test_every_block_of_the_stage_graph_is_observed() -> None:
    source = tiny_source()
    model = build_stage_graph(source.var, source.vqvae.quantize)
    names = [value.name for value in observe_scores(model).graph.outputs][len(model.graph.outputs) :]
    assert names == [scores_name(f"blocks.{i}.attn.mix") for i in range(source.var.config.depth)]


def test_an_attention_in_a_subgraph_is_refused() -> None:
    source = tiny_source()
    stage, decoder = build_stage_graph(source.var, source.vqvae.quantize), build_decoder_graph(source.vqvae)
    model = build_generate_graph(stage, decoder, source.var.config.num_stages, var_request(source.model_info()))
    with pytest.raises(ValueError, match=r"attn\.mix is in a subgraph"):
        observe_scores(model)
