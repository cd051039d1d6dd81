"""The text encoder's graph against the torch model, which equals transformers' (tests/models/t5/test_encoder.py)."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
import torch
from numpy.typing import NDArray

from nextscale.export.bundle_writer import write_graphs
from nextscale.export.text_encoder_graph import MAX_TOKENS, build_text_encoder_graph
from nextscale.graph_passes.linear_layers import linear_layer_shapes
from nextscale.models.t5.encoder import T5Config
from nextscale.models.t5.layers import wide_layers
from nextscale.models.t5.random_weights import random_t5
from nextscale.runtime._session import SessionOptions, new_session, session_settings
from tests.goldens.text_parity import CONFIG, FEATURES, LENGTHS, condensed, small_encoder, token_ids

# As in tests/models/t5/test_encoder.py.
TOLERANCE = 2e-5


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path: Path = tmp_path_factory.mktemp("text") / "text_encoder.onnx"
    ir.save(build_text_encoder_graph(small_encoder()), path)
    return path


@pytest.fixture(scope="module")
def session(path: Path) -> onnxruntime.InferenceSession:
    return new_session(path, session_settings(SessionOptions(threads=1)))


def run(session: onnxruntime.InferenceSession, ids: NDArray[np.int64]) -> NDArray[np.float32]:
    features: NDArray[np.float32] = session.run(["text_features"], {"token_ids": ids})[0]
    return features


@pytest.mark.parametrize("length", LENGTHS)
def test_features_are_those_of_transformers(session: onnxruntime.InferenceSession, length: int) -> None:
    found = run(session, token_ids(length))
    with np.load(FEATURES) as goldens:
        np.testing.assert_allclose(condensed(found), goldens[f"features.{length}"], rtol=0, atol=TOLERANCE)


def test_the_contract(path: Path) -> None:
    """Role `text_encoder` of docs/decisions/0013."""
    onnx.checker.check_model(str(path), full_check=True)
    graph = ir.load(path).graph
    (ids,), (features,) = graph.inputs, graph.outputs
    assert (ids.name, ids.dtype, str(ids.shape)) == ("token_ids", ir.DataType.INT64, "[B,N]")
    assert (features.name, features.dtype) == ("text_features", ir.DataType.FLOAT)
    assert str(features.shape) == f"[B,N,{CONFIG.embed_dim}]"


def test_linear_layers_are_named_as_their_modules(path: Path) -> None:
    shapes = linear_layer_shapes(ir.load(path).graph)
    weights = {
        name.removesuffix(".weight"): tuple(tensor.shape)
        for name, tensor in small_encoder().state_dict().items()
        if name.endswith(
            (".q.weight", ".k.weight", ".v.weight", ".o.weight", "wi_0.weight", "wi_1.weight", "wo.weight")
        )
    }
    assert shapes == weights
    assert len(shapes) == 7 * CONFIG.depth


def test_biases_of_positions_are_a_table_and_no_square(path: Path) -> None:
    tensors = ir.load(path).graph.initializers
    assert tensors["position_bias"].shape == (CONFIG.num_heads, 2 * MAX_TOKENS - 1)
    assert max(value.const_value.size for value in tensors.values() if value.const_value is not None) < MAX_TOKENS**2


def test_texts_of_a_batch_do_not_see_each_other(session: onnxruntime.InferenceSession) -> None:
    """Bit for bit where the batch has the same size."""
    ids, others = token_ids(17), token_ids(17)
    others[1] = (others[1] + 5) % CONFIG.vocab_size
    np.testing.assert_array_equal(run(session, ids)[0], run(session, others)[0])
    assert (run(session, ids)[1] != run(session, others)[1]).any()


def test_one_token_too_many_is_an_error(session: onnxruntime.InferenceSession) -> None:
    with pytest.raises(onnxruntime.capi.onnxruntime_pybind11_state.InvalidArgument, match="out of data bounds"):
        run(session, token_ids(MAX_TOKENS + 1))


def test_random_shapes(tmp_path: Path) -> None:
    for seed in range(4):
        print("seed", seed)
        rng = np.random.default_rng(seed)
        heads, head_dim, depth, width, hidden, count = (int(n) for n in rng.integers(1, [5, 20, 4, 50, 70, 40]))
        config = T5Config(count, width, depth, heads, head_dim, hidden, num_buckets=8, max_distance=20)
        encoder = random_t5(config, seed)
        ir.save(build_text_encoder_graph(encoder), tmp_path / "t.onnx")
        session = new_session(tmp_path / "t.onnx", session_settings(SessionOptions(threads=1)))
        ids = rng.integers(0, count, (int(rng.integers(1, 4)), int(rng.integers(1, 60))))
        np.testing.assert_allclose(run(session, ids), encoder(torch.from_numpy(ids)).numpy(), rtol=0, atol=1e-4)


def test_unequal_columns_change_hands_and_not_the_features(tmp_path: Path) -> None:
    """Factors between wi_1 and wo are powers of two: features are the same to the last bit as without them."""
    encoder, even = small_encoder(), small_encoder()
    for i in range(CONFIG.depth):
        ffn = encoder.block(i).feed_forward.DenseReluDense
        ffn.wo.weight[:, 3:9] /= 64
        ffn.wi_1.weight[3:9] *= 64
    graphs = [build_text_encoder_graph(model) for model in (encoder, even)]
    features = []
    for graph in graphs:
        ir.save(graph, tmp_path / "t.onnx")
        session = new_session(tmp_path / "t.onnx", session_settings(SessionOptions(threads=1)))
        features.append(run(session, token_ids(9)))
    np.testing.assert_array_equal(*features)
    for name in wide_layers(CONFIG):
        weight = graphs[0].graph.initializers[f"{name}.weight"].const_value
        assert weight is not None
        largest = np.abs(weight.numpy()).max(axis=1)
        assert largest.max() < 2 * np.median(largest) < 4 * largest.min()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_stored_half_precision_becomes_float32_when_it_is_written(tmp_path: Path, dtype: torch.dtype) -> None:
    half = small_encoder().to(dtype)
    model = build_text_encoder_graph(half)
    lazy = [v.const_value for v in model.graph.initializers.values() if isinstance(v.const_value, ir.LazyTensor)]
    assert len(lazy) == 1 + 9 * CONFIG.depth + 1  # the table, seven layers and two norms of each block, the last norm
    write_graphs(tmp_path, {"text_encoder": model})
    session = new_session(tmp_path / "text_encoder.onnx", session_settings(SessionOptions(threads=1)))
    ids = token_ids(9)
    expected = half(torch.from_numpy(ids)).numpy()
    np.testing.assert_allclose(run(session, ids), expected, rtol=0, atol=TOLERANCE)


def test_norms_are_single_operators(path: Path, tmp_path: Path) -> None:
    """ONNX Runtime knows the form that they have: four passes over memory become one."""
    settings = session_settings(SessionOptions(threads=1))
    settings.optimized_model_filepath = str(tmp_path / "optimized.onnx")
    new_session(path, settings)
    found = Counter(node.op_type for node in onnx.load(tmp_path / "optimized.onnx").graph.node)
    assert found["SimplifiedLayerNormalization"] + found["SkipSimplifiedLayerNormalization"] == 2 * CONFIG.depth + 1
    assert found["Pow"] == found["ReduceMean"] == 0
