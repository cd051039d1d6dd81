"""A foreign model of fused operators, and one whose products fit into 16 bits."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
from numpy.typing import NDArray

import nextscale
from nextscale.foreign.quantize_model import QuantizeOptions, quantize_model
from nextscale.graph_passes.recipe import ActivationRecipe, AttentionRecipe, Recipe, WeightRecipe
from nextscale.runtime import _operators
from nextscale.runtime._errors import NextscaleError
from nextscale.runtime._session import SessionOptions

from .block_model import LAYERS, block, block_proto, samples

OF_TWO_AXES = "y"
STATIC, TOKEN, IMAGE = (
    Recipe(name, activations=ActivationRecipe(granularity=name)) for name in ("tensor", "token", "image")
)
INT16 = 2**15 - 1


def options(ops: str, library: Path) -> QuantizeOptions:
    return QuantizeOptions(SessionOptions(threads=1, ops=ops, ops_library=str(library)), rounds=0)


@pytest.mark.exact_products
@pytest.mark.parametrize("recipe", [STATIC, TOKEN, IMAGE], ids=lambda recipe: recipe.name)
def test_layers_of_three_axes_become_fused_operators_with_the_same_integers(recipe: Recipe, ops_library: Path) -> None:
    stock, of_stock = quantize_model(block(), samples(), recipe, options("stock", ops_library))
    fused, of_fused = quantize_model(block(), samples(), recipe, options("fused", ops_library))
    found = {line.name: line for line in of_fused.lines}
    for name in LAYERS:
        assert found[name].is_integer
        # ONNX Runtime's integer product of two axes may end in codes.
        assert found[name].kernels == ("Linear",) or name == OF_TWO_AXES
    assert "Linear" not in found[OF_TWO_AXES].kernels
    assert any("nextscale-ops" in note for note in of_fused.notes)
    assert not any("nextscale-ops" in note for note in of_stock.notes)
    weights = {
        name: value.const_value.numpy()
        for name, value in stock.graph.initializers.items()
        if name.endswith(".codes") and value.const_value is not None
    }
    assert len(weights) == len(LAYERS)
    for name, codes in weights.items():
        (same,) = (value.const_value for other, value in fused.graph.initializers.items() if other == name)
        assert same is not None
        np.testing.assert_array_equal(same.numpy(), codes)
    x = samples(4, seed=9)
    settings = onnxruntime.SessionOptions()
    settings.register_custom_ops_library(str(ops_library))
    a, b = (
        onnxruntime.InferenceSession(ir.to_proto(model).SerializeToString(), settings).run(None, x)[0]
        for model in (stock, fused)
    )
    np.testing.assert_allclose(a, b, rtol=0, atol=2e-3 * np.abs(a).max())


def test_fused_operators_without_their_library_are_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_operators, "installed_library", lambda: None)
    with pytest.raises(NextscaleError, match="nextscale-ops is not installed"):
        nextscale.quantize(block_proto(), samples(), STATIC, QuantizeOptions(SessionOptions(threads=1, ops="fused")))


def largest_pair(codes: NDArray[np.int8]) -> int:
    """Of products of two neighbouring codes of a column with inputs of 8 bits, the largest sum of one sign."""
    wide = codes.astype(np.int64)
    wide = np.concatenate([wide, np.zeros((len(wide) % 2, wide.shape[1]), np.int64)])
    pairs = wide.reshape(-1, 2, wide.shape[1])
    return 255 * max(int(np.maximum(pairs, 0).sum(axis=1).max()), int(np.maximum(-pairs, 0).sum(axis=1).max()))


def codes_of(model: ir.Model) -> list[NDArray[np.int8]]:
    values = model.graph.initializers.items()
    return [value.const_value.numpy() for name, value in values if name.endswith(".codes") and value.const_value]


@pytest.mark.parametrize("recipe", [STATIC, TOKEN], ids=lambda recipe: recipe.name)
def test_a_reduced_range_keeps_pairs_of_products_within_16_bits(recipe: Recipe) -> None:
    plain = QuantizeOptions(SessionOptions(threads=1), rounds=0)
    full, _ = quantize_model(block(), samples(), recipe, plain)
    reduced, report = quantize_model(block(), samples(), recipe, replace(plain, reduce_range=True))
    onnx.checker.check_model(ir.to_proto(reduced), full_check=True)
    assert max(map(largest_pair, codes_of(full))) > INT16
    assert max(map(largest_pair, codes_of(reduced))) <= INT16
    assert report.outputs["y"].error.relative < 0.05


def test_a_reduced_range_takes_a_bit_of_attention() -> None:
    recipe = replace(STATIC, attention=AttentionRecipe("integer", "tensor"))
    plain = QuantizeOptions(SessionOptions(threads=1), rounds=0)
    _, full = quantize_model(block(), samples(), recipe, plain)
    _, reduced = quantize_model(block(), samples(), recipe, replace(plain, reduce_range=True))
    of_full, of_reduced = (
        next(line.error for line in report.lines if line.kind == "attention") for report in (full, reduced)
    )
    assert of_full is not None
    assert of_reduced is not None
    assert 1.3 * of_full.relative < of_reduced.relative < 4 * of_full.relative


def test_learned_rounding_is_not_undone() -> None:
    recipe = replace(STATIC, weights=WeightRecipe(rounding="reconstructed"))
    with pytest.raises(NextscaleError, match="reduce-range would undo"):
        quantize_model(block(), samples(), recipe, QuantizeOptions(reduce_range=True, rounds=0))
