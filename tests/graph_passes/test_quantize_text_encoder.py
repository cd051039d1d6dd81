"""The integer text encoder: which layers are integer, how near it is to float, and what of it is fused."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
from numpy.typing import NDArray

from nextscale.compiler.fusion_certificate import certify
from nextscale.export.bundle_writer import write_graphs
from nextscale.export.text_encoder_graph import build_text_encoder_graph
from nextscale.graph_passes.fuse_two_bytes import fuse_two_bytes
from nextscale.graph_passes.linear_layers import linear_layers, nearest
from nextscale.graph_passes.quantize_text_encoder import TABLE, fuse_text_encoder, quantize_text_encoder
from nextscale.models.t5.layers import wide_layers
from tests.goldens.text_parity import CONFIG, small_encoder, token_ids

WIDE = wide_layers(CONFIG)
LAYERS = 7 * CONFIG.depth
IDS = token_ids(40)


@pytest.fixture(scope="module")
def float_model() -> ir.Model:
    return build_text_encoder_graph(small_encoder())


@pytest.fixture(scope="module")
def stock(float_model: ir.Model) -> ir.Model:
    return quantize_text_encoder(float_model, WIDE, nearest())


def features(model: ir.Model, ids: NDArray[np.int64] = IDS, library: Path | None = None) -> NDArray[np.float32]:
    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads = 1
    if library is not None:
        settings.register_custom_ops_library(str(library))
    content = ir.to_proto(model).SerializeToString()
    session = onnxruntime.InferenceSession(content, settings, providers=["CPUExecutionProvider"])
    found: NDArray[np.float32] = session.run(None, {"token_ids": ids})[0]
    return found


def error(found: NDArray[np.float32], expected: NDArray[np.float32]) -> float:
    return float(np.linalg.norm(found - expected) / np.linalg.norm(expected))


def operators(model: ir.Model) -> Counter[str]:
    return Counter(node.op_type for node in model.graph if node.domain)


def test_all_linear_layers_are_integer_and_attention_is_float(stock: ir.Model) -> None:
    assert linear_layers(stock.graph) == []
    assert operators(stock) == {"MatMulIntegerToFloat": LAYERS}
    assert sum(node.op_type == "MatMul" for node in stock.graph) == 2 * CONFIG.depth
    # One range for q, k and v, one for o, one for both gates; two bytes for wo.
    assert sum(node.op_type == "QuantizeLinear" for node in stock.graph) == 5 * CONFIG.depth
    onnx.checker.check_model(ir.to_proto(stock), full_check=True)


def test_every_layer_has_an_integer_kernel(stock: ir.Model, tmp_path: Path) -> None:
    write_graphs(tmp_path, {"text_encoder": stock.clone()})
    certificate = certify(tmp_path / "text_encoder.onnx")
    certificate.require_integer()
    assert certificate.kernel_counts() == {"MatMulIntegerToFloat": LAYERS}


def test_the_contract_stays(stock: ir.Model, float_model: ir.Model) -> None:
    for found, expected in zip(
        (*stock.graph.inputs, *stock.graph.outputs),
        (*float_model.graph.inputs, *float_model.graph.outputs),
        strict=True,
    ):
        assert (found.name, found.dtype, str(found.shape)) == (expected.name, expected.dtype, str(expected.shape))


@pytest.mark.exact_products
def test_features_are_near_those_of_float(stock: ir.Model, float_model: ir.Model) -> None:
    """Rounding to 8 bits of some 4 standard deviations loses 4 / 127 / 12^0.5 = 0.9% of a normal input and of a weight;
    what 3 blocks lose of the stream adds up to about twice that."""
    found = error(features(stock), features(float_model))
    assert 0.002 < found < 0.03


@pytest.mark.exact_products
def test_two_bytes_save_what_outliers_hide(stock: ir.Model, float_model: ir.Model) -> None:
    """Gates that open a hundred times as far for one unit of each block, most of whose weights in wo are that much
    smaller, cost two bytes no more than a quarter, and one byte more than a half (benchmarks/text_encoder.py has the
    figures of a larger model)."""
    encoder = small_encoder()
    for i in range(CONFIG.depth):
        ffn = encoder.block(i).feed_forward.DenseReluDense
        ffn.wi_1.weight[5] *= 100
        ffn.wo.weight[1:, 5] /= 100
    model = build_text_encoder_graph(encoder)
    expected = features(model)[..., 1:]  # what the others hold, beside a channel that the unit makes large
    one, two = (
        error(features(quantize_text_encoder(model, wide, nearest()))[..., 1:], expected) for wide in ([], WIDE)
    )
    without = error(features(stock), features(float_model))
    assert two < 1.25 * without < 1.5 * without < one


def test_texts_of_a_batch_do_not_see_each_other(stock: ir.Model) -> None:
    others = IDS.copy()
    others[1] = (others[1] + 7) % CONFIG.vocab_size
    np.testing.assert_array_equal(features(stock)[0], features(stock, others)[0])


def test_a_second_time_is_refused(stock: ir.Model) -> None:
    with pytest.raises(ValueError, match="no MatMul with a constant 2-D weight is named"):
        quantize_text_encoder(stock, WIDE, nearest())


def test_a_graph_without_the_table_is_refused(float_model: ir.Model) -> None:
    other = float_model.clone()
    other.graph.initializers[TABLE].name = "embeddings"
    with pytest.raises(ValueError, match=r"no float32 initializer is named 'shared\.weight'"):
        quantize_text_encoder(other, WIDE, nearest())


# Fused


def test_what_is_fused(stock: ir.Model) -> None:
    fused = fuse_text_encoder(stock, WIDE)
    assert operators(fused) == {"Linear": LAYERS, "Quantize": 3 * CONFIG.depth}
    gates = [node for node in fused.graph if node.op_type == "Gelu"]
    assert not gates  # done by the layers before them
    assert operators(stock) == {"MatMulIntegerToFloat": LAYERS}


def test_fused_graphs_share_the_stock_ones_constants(stock: ir.Model) -> None:
    fused = fuse_text_encoder(stock, WIDE)
    for name, value in fused.graph.initializers.items():
        if name.endswith((".codes", ".half")):
            assert value.const_value is stock.graph.initializers[name].const_value


@pytest.mark.exact_products
def test_fused_features_are_the_stock_ones(stock: ir.Model, ops_library: Path) -> None:
    """But for codes at the middle between two, which rounding takes to either side."""
    found = features(fuse_text_encoder(stock, WIDE), library=ops_library)
    assert error(found, features(stock)) < 0.006


@pytest.mark.parametrize("fuse", [fuse_text_encoder, fuse_two_bytes])
def test_a_float_graph_is_not_fused(float_model: ir.Model, fuse: Callable[..., ir.Model]) -> None:
    with pytest.raises(ValueError, match=r"layer 'encoder\.block\.0\..*': no (integer )?product"):
        fuse(float_model, WIDE)


def test_products_of_two_bytes_are_fused_once(stock: ir.Model) -> None:
    once = fuse_two_bytes(stock, WIDE)
    assert operators(once)["Linear"] == len(WIDE)
    assert ir.to_proto(fuse_two_bytes(once, WIDE)).SerializeToString() == ir.to_proto(once).SerializeToString()
