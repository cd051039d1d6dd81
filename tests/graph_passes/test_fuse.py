"""The fuse passes: which nodes they leave, what they refuse, and that the numbers are those of the stock graph."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from tiny_model import L, V, no_progress, tiny_options, tiny_source

from nextscale.compiler.build import build_bundle
from nextscale.graph_passes.fuse_attention import fuse_attention
from nextscale.graph_passes.fuse_epilogues import fuse_epilogues
from nextscale.graph_passes.fuse_norm import fuse_norm
from nextscale.runtime import Generator
from nextscale.runtime._session import SessionOptions

# Of two blocks: q, k, v, proj, fc1, fc2 each, and two adaLN layers.
LAYERS = 12


def operators(path: Path) -> Counter[str]:
    return Counter(node.op_type for node in onnx.load(path, load_external_data=False).graph.node if node.domain)


@pytest.fixture(scope="module")
def exact_bundles(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Bundles whose stock graphs do not saturate on any CPU, by recipe."""
    folder = tmp_path_factory.mktemp("exact")
    bundles = {}
    for recipe in ("default", "static-w8a8", "nearest-w4a6"):
        bundles[recipe] = folder / recipe
        options = tiny_options(recipe, reduce_range=True, encoder=recipe == "default")
        build_bundle(tiny_source(), bundles[recipe], options, no_progress)
    return bundles


def test_default_has_no_stock_layer_norm_attention_or_sampling_left(exact_bundles: dict[str, Path]) -> None:
    found = operators(exact_bundles["default"] / "stage.fused.onnx")
    assert found == {"PairLinear": LAYERS, "Linear": 4, "NormQuantize": 4, "Attention": 2, "Quantize": 2, "Sample": 1}


def test_static_layers_are_fused_as_well(exact_bundles: dict[str, Path]) -> None:
    found = operators(exact_bundles["static-w8a8"] / "stage.fused.onnx")
    assert found["PairLinear"] == 0
    assert (found["Linear"], found["NormQuantize"], found["Attention"]) == (16, 4, 2)


def test_layers_with_ranges_of_images_are_fused(tmp_path: Path) -> None:
    build_bundle(tiny_source(), tmp_path / "bundle", tiny_options("rtn-w8a8", encoder=False), no_progress)
    found = operators(tmp_path / "bundle" / "stage.fused.onnx")
    assert found["NormQuantize"] == 4
    assert found["Linear"] >= LAYERS
    assert found["MatMulIntegerToFloat"] <= 2 * 2  # the scores of attention


@pytest.mark.parametrize("recipe", ["default", "static-w8a8", "nearest-w4a6"])
def test_logits_are_those_of_the_stock_graph(
    exact_bundles: dict[str, Path], ops_library: Path, recipe: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No code lies so near a tie here that another order of sums moves it, so that all that differs is rounding.

    Tiles are another matter: they keep 16 bits of attention's numbers (kernels/README.md), which does move codes.
    """
    monkeypatch.setenv("NEXTSCALE_OPS_ISA", "portable")
    bundle = exact_bundles[recipe]
    stock = Generator(bundle, SessionOptions(threads=1, ops="stock"))
    fused = Generator(bundle, SessionOptions(threads=1, ops="fused", ops_library=str(ops_library)))
    forced = np.random.default_rng(0).integers(0, V, (2, L))
    stages = [g.stream([1, 5], seed=0, forced_tokens=forced, outputs=["logits"]) for g in (stock, fused)]
    for one, other in zip(*stages, strict=True):
        logits = one.outputs["logits"]
        np.testing.assert_allclose(other.outputs["logits"], logits, rtol=0, atol=1e-6 * np.abs(logits).max())


def test_both_forms_make_the_same_pictures(exact_bundles: dict[str, Path], ops_library: Path) -> None:
    fused = Generator(exact_bundles["default"], SessionOptions(threads=1, ops="fused", ops_library=str(ops_library)))
    single = fused.generate([1, 2], seed=3)
    streamed = fused.generate([1, 2], seed=3, on_stage=lambda stage: None)
    np.testing.assert_array_equal(single.token_maps, streamed.token_maps)
    np.testing.assert_array_equal(single.images, streamed.images)


@pytest.mark.parametrize("graph", ["generate", "stage", "decoder", "encoder"])
def test_graphs_are_valid_and_declare_the_domain(exact_bundles: dict[str, Path], graph: str) -> None:
    path = exact_bundles["default"] / f"{graph}.fused.onnx"
    onnx.checker.check_model(str(path), full_check=True)
    opsets = {item.domain: item.version for item in onnx.load(path, load_external_data=False).opset_import}
    assert opsets["nextscale"] == 1


def test_the_passes_find_nothing_more_in_what_they_made(exact_bundles: dict[str, Path]) -> None:
    model = ir.load(exact_bundles["default"] / "stage.fused.onnx")
    before = [str(node.op_type) for node in model.graph]
    for fuse in (fuse_norm, fuse_epilogues, fuse_attention):
        model = fuse(model)
    assert [str(node.op_type) for node in model.graph] == before


def test_what_is_read_elsewhere_is_not_swallowed(exact_bundles: dict[str, Path]) -> None:
    """A result that leaves the graph, such as an observed one, keeps its own node."""
    model = ir.load(exact_bundles["default"] / "stage.fused.onnx")
    norm = next(node for node in model.graph if node.op_type == "NormQuantize")
    x, gain, shift = norm.inputs[:3]
    plain = ir.node("LayerNormalization", [x, _ones(model)], {"axis": -1, "epsilon": 1e-6}, name="plain")
    scaled = ir.node("Mul", [plain.outputs[0], gain], name="scaled")
    moved = ir.node("Add", [scaled.outputs[0], shift], name="moved")
    coded = ir.Node(
        "nextscale", "Quantize", [moved.outputs[0], *norm.inputs[3:]], norm.attributes.values(), num_outputs=2
    )
    for i, output in enumerate(coded.outputs):
        output.name = f"coded.{('codes', 'difference')[i]}"
    for node in (plain, scaled, moved):
        node.outputs[0].name = f"{node.name}.y"
    for node in (plain, scaled, moved, coded):
        model.graph.insert_before(norm, node)
    norm.outputs[0].replace_all_uses_with(coded.outputs[0])
    norm.outputs[1].replace_all_uses_with(coded.outputs[1])
    assert fused_norms(fuse_norm(model)) == 4
    moved.outputs[0].shape, moved.outputs[0].dtype = ir.Shape(["2B", "l", 64]), ir.DataType.FLOAT
    model.graph.outputs.append(moved.outputs[0])
    assert fused_norms(fuse_norm(model)) == 3


def fused_norms(model: ir.Model) -> int:
    return sum(node.op_type == "NormQuantize" for node in model.graph)


def _ones(model: ir.Model) -> ir.Value:
    tensor = ir.tensor(np.ones(64, np.float32), name="ones")
    value = ir.Value(name="ones", shape=ir.Shape([64]), type=ir.TensorType(ir.DataType.FLOAT), const_value=tensor)
    model.graph.register_initializer(value)
    return value
