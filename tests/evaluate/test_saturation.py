"""The emulation of CPUs without VNNI: against their kernels, against a plain form, and of whole bundles."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from numpy.typing import NDArray
from tiny_model import ONE_THREAD, no_progress, tiny_options, tiny_source

from nextscale.calib_data.subjects import Subjects
from nextscale.compiler._rounders import require_reducible
from nextscale.compiler.build import build_bundle
from nextscale.evaluate.integer_products import integer_products, reduction_rows
from nextscale.evaluate.saturation import Saturation, as_report, measure_saturation, saturate
from nextscale.graph_passes.recipe import load_recipe, recipe_names
from nextscale.runtime import Bundle
from nextscale.runtime._errors import NextscaleError

GOLDEN = np.load(Path(__file__).parents[1] / "goldens" / "avx2_products.npz")


def exact(a: NDArray[np.uint8], b: NDArray[np.int8]) -> NDArray[np.int64]:
    product: NDArray[np.int64] = a.astype(np.int64) @ b.astype(np.int64)
    return product


def plain(a: NDArray[np.uint8], b: NDArray[np.int8]) -> tuple[NDArray[np.int64], int]:
    """The formula of the module, term by term; and how many pairs saturate."""
    result, pairs = np.zeros((len(a), b.shape[1]), np.int64), 0
    for m, n in np.ndindex(*result.shape):
        products = a[m].astype(int) * b[:, n].astype(int)
        for j in range(0, len(products), 2):
            total = int(products[j : j + 2].sum())
            clipped = min(max(total, -(2**15)), 2**15 - 1)
            result[m, n] += clipped
            pairs += clipped != total
    return result, pairs


# The emulation


@pytest.mark.parametrize("i", range(4))
def test_products_are_those_of_avx2(i: int) -> None:
    """Of ONNX Runtime on a CPU without VNNI (goldens/make_avx2_products.py), odd lengths and single rows among them."""
    a, b, y = (GOLDEN[f"product.{i}.{name}"] for name in "aby")
    assert (exact(a, b) != y).mean() > 0.5
    np.testing.assert_array_equal(exact(a, b) - saturate(a, b).lost, y)


@pytest.mark.parametrize("i", range(3))
def test_convolutions_are_those_of_avx2(i: int) -> None:
    """With and without an im2col: the same pairs, as a product of windows and `reduction_rows`."""
    x, w, y = (GOLDEN[f"convolution.{i}.{name}"] for name in "xwy")
    padded = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)), constant_values=100)
    windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), (1, 2))
    a = windows.transpose(0, 1, 2, 4, 5, 3).reshape(-1, w[0].size)
    b = reduction_rows(w).T

    def result(product: NDArray[np.int64]) -> NDArray[np.int64]:
        codes = np.round((product - 100 * b.sum(0, dtype=np.int64)) / 1500) + 128
        clipped: NDArray[np.int64] = np.clip(codes, 0, 255).astype(np.int64).reshape(y.shape)
        return clipped

    assert (result(exact(a, b)) != y).mean() > 0.5
    np.testing.assert_array_equal(result(exact(a, b) - saturate(a, b).lost), y)


@pytest.mark.parametrize("seed", range(8))
def test_any_shape_is_as_the_formula_says(seed: int) -> None:
    rng = np.random.default_rng(seed)
    m, k, n = rng.integers(1, 9, 3)
    a = rng.choice(np.array([0, 200, 255], np.uint8), (m, k))
    b = rng.choice(np.array([-128, -127, 0, 100, 127], np.int8), (k, n))
    expected, pairs = plain(a, b)
    found = saturate(a, b)
    np.testing.assert_array_equal(exact(a, b) - found.lost, expected, err_msg=f"seed {seed}")
    assert found.pairs == pairs


def test_many_pairs_are_looked_at_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    a, b = GOLDEN["product.0.a"], GOLDEN["product.0.b"]
    whole = saturate(a, b)
    monkeypatch.setattr("nextscale.evaluate.saturation.CHUNK", 37)
    parts = saturate(a, b)
    np.testing.assert_array_equal(parts.lost, whole.lost)
    assert parts.pairs == whole.pairs > 37


def test_16_bits_hold_minus_32768_and_plus_32767() -> None:
    a = np.array([[128, 128, 255, 1, 255, 2]], np.uint8)
    assert saturate(a, np.array([[-128], [-128], [0], [0], [0], [0]], np.int8)).pairs == 0  # -32,768
    assert saturate(a, np.array([[0], [0], [127], [127], [0], [0]], np.int8)).pairs == 0  # 32,512
    assert saturate(a[:, 2:], np.array([[127], [127], [127], [127]], np.int8)).pairs == 0  # 32,639
    over = saturate(np.array([[255, 4]], np.uint8), np.array([[127], [96]], np.int8))  # 32,769
    assert (over.lost.tolist(), over.pairs) == ([[2]], 1)


# Bundles


def build(folder: Path, recipe: str, reduce_range: bool, encoder: bool = False) -> Bundle:
    options = tiny_options(recipe, reduce_range=reduce_range, encoder=encoder, fused=False)
    return build_bundle(tiny_source(), folder / f"{recipe}-{reduce_range}", options, no_progress)


def measure(bundle: Bundle) -> dict[str, Saturation]:
    graphs = {name: ir.load(bundle.graph_path(name)) for name in ("stage", "decoder")}
    return measure_saturation(bundle, graphs, ONE_THREAD, Subjects.of_classes(np.array([0])))


@pytest.mark.parametrize("recipe", ["default", "static-w8a8", "rtn-w8a8", "nearest-w4a4"])
def test_a_reduced_range_never_saturates(recipe: str, tmp_path: Path) -> None:
    """Each constant weight with the worst codes there are; no graph has to be run to know that."""
    bundle = build(tmp_path, recipe, reduce_range=True)
    assert bundle.manifest.recipe["reduce_range"] is True
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("nextscale.evaluate.saturation._runs", lambda bundle, graphs, wanted, *further: [*wanted])
        found = measure(bundle)
    assert not any(item.possible for item in found.values())
    for graph in ("stage", "decoder"):
        for product in integer_products(ir.load(bundle.graph_path(graph))):
            if product.weight.const_value is not None:
                b = np.ascontiguousarray(reduction_rows(product.weight.const_value.numpy()).T)
                worst = np.stack([np.full(len(b), 255, np.uint8), *np.where(b.T > 0, 255, 0).astype(np.uint8)])
                assert saturate(worst, b).pairs == 0
                assert not saturate(worst, b).lost.any()


def test_what_can_saturate_is_in_the_manifest(int8_bundle: Path, tmp_path: Path) -> None:
    recipe = Bundle.open(int8_bundle).manifest.recipe
    assert recipe["reduce_range"] is False
    report = recipe["saturation"]
    assert set(report["can_saturate"]) <= {name for kernels in recipe["kernels"].values() for name in kernels}
    assert "blocks.0.ffn.fc1.weight" in report["can_saturate"]
    assert any(item["error"] for item in report["can_saturate"].values())
    reduced = build(tmp_path, "default", reduce_range=True, encoder=True).manifest.recipe["saturation"]
    assert reduced == {"products": report["products"], "can_saturate": {}}


def test_integer_attention_saturates_in_8_bits_alone(tmp_path: Path) -> None:
    """Its scores: two powers of two of at most 128 times s8 stay within 16 bits."""
    found = measure(build(tmp_path, "rtn-w8a8", reduce_range=False))
    assert {name for name in found if name.startswith("blocks.0.attn.") and "weight" not in name} == {
        "blocks.0.attn.scores",
        "blocks.0.attn.mix",
    }
    assert found["blocks.0.attn.scores"].possible
    assert found["blocks.0.attn.scores"].pairs is not None
    assert found["blocks.0.attn.mix"] == Saturation(False, None, None)


def test_recipes_of_few_bits_can_saturate_in_the_decoder_alone(tmp_path: Path) -> None:
    found = measure(build(tmp_path, "nearest-w4a4", reduce_range=False))
    assert {name.partition(".")[0] for name, item in found.items() if item.possible} == {"decoder"}


def test_the_observed_error_is_that_of_the_rows(int8_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where all rows are looked at, the figure is the one that the plain formula gives."""
    monkeypatch.setattr("nextscale.evaluate.saturation.ROWS", 10**6)
    bundle, seen = Bundle.open(int8_bundle), list[tuple[NDArray[np.uint8], NDArray[np.int8]]]()

    def remember(a: NDArray[np.uint8], b: NDArray[np.int8]) -> object:
        seen.append((a, b))
        return saturate(a, b)

    monkeypatch.setattr("nextscale.evaluate.saturation.saturate", remember)
    found = measure(bundle)
    model = ir.load(bundle.graph_path("stage"))
    codes = model.graph.initializers["head.weight.codes"].const_value
    assert codes is not None
    ((a, b),) = [(a, b) for a, b in seen if b.shape == codes.numpy().shape and (b == codes.numpy()).all()]
    assert len(a) == 30  # tokens of the four stages, guided rows mixed
    _, pairs = plain(a, b)
    assert found["head.weight"].pairs == pytest.approx(pairs / (len(a) * len(b) / 2 * b.shape[1]))
    assert 0 <= (found["head.weight"].error or 0) < 1


def test_a_report_is_plain() -> None:
    found = {"a": Saturation(True, 0.5, 0.25), "b": Saturation(False, None, None)}
    assert as_report(found) == {"products": 2, "can_saturate": {"a": {"pairs": 0.5, "error": 0.25}}}


# Recipes with learned rounding


@pytest.mark.parametrize("name", recipe_names())
def test_rounding_learned_for_8_bits_is_not_reduced(name: str) -> None:
    recipe = load_recipe(name)
    if name.endswith("w8a8") and recipe.weights.rounding == "reconstructed":
        with pytest.raises(NextscaleError, match=f"recipe {name}: its rounding was learned for 8 bits, which --red"):
            require_reducible(recipe)
    else:
        require_reducible(recipe)


def test_a_build_refuses_it(tmp_path: Path) -> None:
    options = tiny_options("brecq-w8a8", reduce_range=True)
    with pytest.raises(NextscaleError, match="its rounding was learned for 8 bits"):
        build_bundle(tiny_source(), tmp_path / "bundle", options, no_progress)
    assert not list(tmp_path.iterdir())
