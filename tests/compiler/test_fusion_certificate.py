from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnx.parser
import onnx_ir as ir
import onnxruntime
import pytest
from tiny_model import ONE_THREAD, tiny_models

from nextscale.compiler.fusion_certificate import CertifiedLayer, FusionCertificate, certify
from nextscale.export.bundle_writer import write_graphs
from nextscale.export.graph_builder import Constants, add_output, finish, new_builder
from nextscale.export.var.encoder_graph import build_features_graph
from nextscale.graph_passes.linear_layers import nearest
from nextscale.graph_passes.qparams import Range
from nextscale.graph_passes.quantize_autoencoder import integer_convolutions
from nextscale.graph_passes.quantize_linear import quantize_linear
from nextscale.graph_passes.quantize_linear_dynamic import quantize_linear_by_image, quantize_linear_by_token
from nextscale.graph_passes.quantize_linear_pairs import PairRanges, quantize_linear_pairs
from nextscale.runtime._bundle import Bundle
from nextscale.runtime._errors import NextscaleError

BLOCK = ["attn.q", "attn.k", "attn.v", "attn.proj", "ffn.fc1", "ffn.fc2"]
LAYERS = [f"blocks.{i}.{part}" for i in range(2) for part in BLOCK] + ["head"]
CLASS_LAYERS = ["blocks.0.ada_lin.1", "blocks.1.ada_lin.1", "head_nm.ada_lin.1"]
ONE = np.ones(1, np.float32)


def test_every_linear_layer_of_a_bundle_is_integer(int8_bundle: Path) -> None:
    certificate = certify(int8_bundle / "stage.onnx", ONE_THREAD)
    certificate.require_integer()
    assert {layer.weight for layer in certificate.layers} == {f"{n}.weight.codes" for n in LAYERS + CLASS_LAYERS}
    # Blocks' layers multiply the row without the class and the difference that the class makes.
    once = ["head", *CLASS_LAYERS]
    for layer in certificate.layers:
        products = 1 if layer.weight.removesuffix(".weight.codes") in once else 2
        assert layer.kernels == ("MatMulIntegerToFloat",) * products, layer.weight
    assert certificate.kernel_counts() == {"MatMulIntegerToFloat": len(LAYERS + CLASS_LAYERS)}


def test_every_convolution_of_a_bundle_is_integer(int8_bundle: Path) -> None:
    certificate = certify(int8_bundle / "decoder.onnx", ONE_THREAD)
    certificate.require_integer()
    counts = certificate.kernel_counts()
    assert counts.keys() == {"QLinearConv", "MatMulIntegerToFloat"}
    assert sum(counts.values()) == len(certificate.layers)


def test_every_convolution_of_an_encoder_is_integer(int8_bundle: Path) -> None:
    """Two products of the same weights, of the coarse and of the fine codes."""
    certificate = certify(int8_bundle / "encoder.onnx", ONE_THREAD)
    certificate.require_integer()
    assert certificate.kernel_counts() == {"MatMulIntegerToFloat": len(certificate.layers)}
    names = {layer.weight.removesuffix(".codes") for layer in certificate.layers}
    assert names == set(integer_convolutions(build_features_graph(tiny_models()[1])))
    assert all(len(layer.kernels) >= 2 for layer in certificate.layers)


def test_the_single_file_has_the_kernels_of_both(int8_bundle: Path) -> None:
    """Within the Loop's body, too."""
    single, *parts = (certify(int8_bundle / f"{name}.onnx", ONE_THREAD) for name in ("generate", "stage", "decoder"))
    single.require_integer()
    kernels = {layer.weight: layer.kernels for layer in single.layers}
    assert kernels == {
        f"{part.graph.removesuffix('.onnx')}/{layer.weight}": layer.kernels for part in parts for layer in part.layers
    }


def test_a_float_bundle_has_no_integer_layers(fp32_bundle: Path) -> None:
    certificate = certify(fp32_bundle / "stage.onnx", ONE_THREAD)
    assert certificate.layers == ()
    certificate.require_integer()


def test_certifying_leaves_nothing_behind(int8_bundle: Path) -> None:
    before = sorted(int8_bundle.iterdir())
    certify(int8_bundle / "stage.onnx", ONE_THREAD)
    assert sorted(int8_bundle.iterdir()) == before


# Graphs that fall back


def write(folder: Path, model: ir.Model) -> Path:
    write_graphs(folder, {"graph": model})
    return folder / "graph.onnx"


def two_layers(*shape: int | str, bias: bool, packed: bool = False, products: bool = False) -> ir.Model:
    """Layers a and b of one input of this shape, quantized."""
    rng = np.random.default_rng(0)
    builder = new_builder("two_layers")
    op, constants = builder.op, Constants(builder)
    stage = builder.input("stage", ir.DataType.INT64, [])
    x = builder.input("x", ir.DataType.FLOAT, shape)
    for name in "ab":
        y = op.MatMul(x, constants(f"{name}.weight", rng.normal(size=(32, 32)).astype(np.float32)), _name=name)
        if bias:
            y = op.Add(y, constants(f"{name}.bias", rng.normal(size=32).astype(np.float32)))
        add_output(builder, y, f"{name}.y", ir.DataType.FLOAT, shape)
    add_output(builder, op.Identity(stage), "same_stage", ir.DataType.INT64, [])
    rounder = nearest(4) if packed else None
    return quantize_linear(
        finish(builder),
        dict.fromkeys("ab", Range(-ONE, ONE)),
        "stage",
        rounder=rounder,
        packed=packed,
        products=products,
    )


@pytest.mark.parametrize("shape", [("B", 32), (4, 32), (2, 3, 32)], ids=str)
def test_a_layer_that_falls_back_is_reported(tmp_path: Path, shape: tuple[int | str, ...]) -> None:
    """ONNX Runtime looks for MatMul and bias of rank 2 or fixed shape first, and makes a float Gemm of them."""
    certificate = certify(write(tmp_path, two_layers(*shape, bias=True)), ONE_THREAD)
    assert [(layer.weight, layer.is_integer) for layer in certificate.layers] == [
        ("a.weight.codes", False),
        ("b.weight.codes", False),
    ]
    message = r"^graph\.onnx: 2 of 2 integer layers fell back to float in onnxruntime .+a\.weight\.codes -> .+"
    with pytest.raises(NextscaleError, match=message) as caught:
        certificate.require_integer()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("shape", "bias"), [(("B", 32), False), ((4, 32), False), (("B", "l", 32), True)], ids=str)
def test_layers_as_the_stage_graph_has_them_do_not_fall_back(
    tmp_path: Path, shape: tuple[int | str, ...], bias: bool
) -> None:
    certificate = certify(write(tmp_path, two_layers(*shape, bias=bias)), ONE_THREAD)
    certificate.require_integer()
    assert [layer.kernels for layer in certificate.layers] == [("MatMulIntegerToFloat",)] * 2


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("shape", [("B", 32), (4, 32), (2, 3, 32), ("B", "l", 32)], ids=str)
def test_products_that_are_written_out_do_not_fall_back(
    tmp_path: Path, shape: tuple[int | str, ...], bias: bool
) -> None:
    certificate = certify(write(tmp_path, two_layers(*shape, bias=bias, products=True)), ONE_THREAD)
    certificate.require_integer()
    assert [layer.kernels for layer in certificate.layers] == [("MatMulIntegerToFloat",)] * 2


def test_a_weight_that_no_layer_reads_is_reported(tmp_path: Path) -> None:
    """Layer b reads a's DequantizeLinear; its own weight goes to waste."""
    model = two_layers("B", "l", 32, bias=False)
    by_name = {node.name: node for node in model.graph}
    by_name["b"].replace_input_with(1, by_name["a"].inputs[1])
    certificate = certify(write(tmp_path, model), ONE_THREAD)
    assert [layer.weight for layer in certificate.layers if not layer.is_integer] == ["b.weight.codes"]
    with pytest.raises(NextscaleError, match=r"1 of 2 .+\(b\.weight\.codes -> "):
        certificate.require_integer()


def test_a_graph_that_onnxruntime_cannot_load_is_one_line(tmp_path: Path) -> None:
    text = (
        '<ir_version: 10, opset_import: ["" : 21, "nowhere" : 1]> g (float[1] x) => (float[1] y) { y = nowhere.Op(x) }'
    )
    path = tmp_path / "graph.onnx"
    onnx.save(onnx.parser.parse_model(text), path)
    with pytest.raises(NextscaleError, match=r"graph\.onnx: onnxruntime .+ cannot optimize it: ") as caught:
        certify(path, ONE_THREAD)
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == [path]


def test_one_fallen_layer_among_many_is_named() -> None:
    good = [CertifiedLayer(f"{i}.codes", ("QLinearConv",)) for i in range(5)]
    certificate = FusionCertificate(
        "stage.onnx", (*good, CertifiedLayer("bad.codes", ("DequantizeLinear",)), CertifiedLayer("gone.codes", ()))
    )
    message = r"2 of 7 .*\(bad\.codes -> DequantizeLinear, gone\.codes -> folded away\)"
    with pytest.raises(NextscaleError, match=message):
        certificate.require_integer()


def test_a_layer_with_one_float_consumer_is_not_integer() -> None:
    assert not CertifiedLayer("w.codes", ("MatMulIntegerToFloat", "DequantizeLinear")).is_integer


def test_no_more_than_three_layers_are_listed() -> None:
    certificate = FusionCertificate("a.onnx", tuple(CertifiedLayer(f"{i}.codes", ("Gemm",)) for i in range(9)))
    with pytest.raises(NextscaleError) as caught:
        certificate.require_integer()
    assert str(caught.value).count("Gemm") == 3


def test_a_planned_layer_that_no_pass_quantized_is_refused(int8_bundle: Path) -> None:
    certificate = certify(int8_bundle / "stage.onnx", ONE_THREAD)
    certificate.require_integer(["blocks.0.attn.q", "head"])
    with pytest.raises(NextscaleError, match=r"word_embed -> never quantized"):
        certificate.require_integer(["head", "word_embed"])


def test_the_manifest_names_each_layers_kernel(int8_bundle: Path) -> None:
    kernels = Bundle.open(int8_bundle).manifest.recipe["kernels"]
    assert kernels["stage"]["blocks.1.ffn.fc2.weight"] == "MatMulIntegerToFloat"
    assert kernels["decoder"]["decoder.mid.block_1.conv1"] == "QLinearConv"
    assert "decoder.conv_in" not in kernels["decoder"]
    assert set(kernels["stage"].values()) == {"MatMulIntegerToFloat"}


# Packed weights and dynamic ranges


def float_layers(bias: bool) -> ir.Model:
    """x a and x b of [R, l, 32], with a bias each."""
    rng = np.random.default_rng(1)
    builder = new_builder("layers")
    op, constants = builder.op, Constants(builder)
    stage = builder.input("stage", ir.DataType.INT64, [])
    x = builder.input("x", ir.DataType.FLOAT, ["R", "l", 32])
    for name in "ab":
        y = op.MatMul(x, constants(f"{name}.weight", rng.normal(size=(32, 48)).astype(np.float32)), _name=name)
        if bias:
            y = op.Add(y, constants(f"{name}.bias", rng.normal(size=48).astype(np.float32)))
        add_output(builder, y, f"{name}.y", ir.DataType.FLOAT, ["R", "l", 48])
    add_output(builder, op.Identity(stage), "same_stage", ir.DataType.INT64, [])
    return finish(builder)


PASSES: dict[str, Callable[[ir.Model, int, bool], ir.Model]] = {
    "static": lambda model, bits, packed: quantize_linear(
        model, dict.fromkeys("ab", Range(-ONE, ONE)), "stage", bits, nearest(bits), packed
    ),
    "by image": lambda model, bits, packed: quantize_linear_by_image(
        model, dict.fromkeys("ab", 2), bits, nearest(bits), packed
    ),
    "pairs": lambda model, bits, packed: quantize_linear_pairs(
        model, dict.fromkeys("ab", PairRanges(Range(-ONE, ONE), Range(-ONE, ONE))), "stage", bits, nearest(bits), packed
    ),
    "by token": lambda model, bits, packed: quantize_linear_by_token(
        model, dict.fromkeys("ab", 2 ** (bits - 1)), bits, nearest(bits), packed
    ),
}


@pytest.mark.parametrize("bias", [False, True], ids=["no bias", "bias"])
@pytest.mark.parametrize(("bits", "packed"), [(8, False), (4, False), (4, True), (2, True)], ids=str)
@pytest.mark.parametrize("make_integer", PASSES.values(), ids=PASSES.keys())
def test_every_pass_makes_layers_that_are_certified(
    tmp_path: Path, make_integer: Callable[[ir.Model, int, bool], ir.Model], bits: int, packed: bool, bias: bool
) -> None:
    path = write(tmp_path, make_integer(float_layers(bias), bits, packed))
    names = {tensor.name for tensor in onnx.load(path, load_external_data=False).graph.initializer}
    assert (f"a.weight.{'packed' if packed else 'codes'}") in names
    certificate = certify(path, ONE_THREAD)
    certificate.require_integer(["a", "b"])
    assert {layer.weight for layer in certificate.layers} == {"a.weight.codes", "b.weight.codes"}
    assert certificate.kernel_counts() == {"MatMulIntegerToFloat": 2}
    assert certificate.by_layer() == dict.fromkeys(["a.weight", "b.weight"], "MatMulIntegerToFloat")


@pytest.mark.parametrize("make_integer", [PASSES["by image"], PASSES["by token"]], ids=["by image", "by token"])
def test_onnxruntime_moves_no_bias_into_a_product_with_a_scale_for_each_row(
    tmp_path: Path, make_integer: Callable[[ir.Model, int, bool], ir.Model]
) -> None:
    """It would be multiplied by the scales (see test_graph_edit.py)."""
    path = write(tmp_path, make_integer(float_layers(bias=True), 8, False))
    settings = onnxruntime.SessionOptions()
    settings.optimized_model_filepath = str(tmp_path / "optimized.onnx")
    onnxruntime.InferenceSession(path, settings, providers=["CPUExecutionProvider"])
    for name in (path, tmp_path / "optimized.onnx"):
        products = [n for n in onnx.load(name).graph.node if n.op_type == "MatMulIntegerToFloat"]
        assert len(products) == 2
        assert all(len([i for i in node.input if i]) == 5 for node in products)


def test_a_packed_weight_that_falls_back_is_reported(tmp_path: Path) -> None:
    """Of rank 2 with a bias, as above."""
    model = two_layers("B", 32, bias=True, packed=True)
    certificate = certify(write(tmp_path, model), ONE_THREAD)
    with pytest.raises(NextscaleError, match=r"2 of 2 integer layers fell back to float .+a\.weight\.codes -> "):
        certificate.require_integer()
