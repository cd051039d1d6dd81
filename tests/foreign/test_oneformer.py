"""OneFormer's forms: which attentions are taken, which are refused by name, and what shared weights become."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import Literal

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
from numpy.typing import NDArray
from tiny_segmenter import DEFORMABLE, LAYERS, RANK_3, SHARED, SWIN, segmenter_model, segmenter_samples

from nextscale.foreign.normalize import normalize
from nextscale.foreign.quantize_model import QuantizeOptions, quantize_model, read_model
from nextscale.foreign.report import Report
from nextscale.foreign.survey import Found, survey
from nextscale.graph_passes.recipe import ActivationRecipe, AttentionRecipe, Recipe
from nextscale.runtime._session import SessionOptions

UNTIMED = QuantizeOptions(SessionOptions(threads=1), rounds=0)
PROGRAM = Path(__file__).parents[2] / "examples" / "oneformer" / "export.py"


def attentions(model: ir.Model) -> dict[str, Found]:
    return {item.name: item for item in survey(normalize(model).model).found if item.kind == "attention"}


def recipe(form: Literal["off", "residual", "duplicate"] = "off") -> Recipe:
    attention = AttentionRecipe("integer", "image", "log2", form, budget=0.5)
    return Recipe("forms", activations=ActivationRecipe(granularity="image"), attention=attention)


def outputs(model: ir.Model) -> list[NDArray[np.float32]]:
    """Of three samples."""
    session = onnxruntime.InferenceSession(ir.to_proto(model).SerializeToString(), providers=["CPUExecutionProvider"])
    given = segmenter_samples()
    feeds = [{name: array[i : i + 1] for name, array in given.items()} for i in range(3)]
    return [np.concatenate(found) for found in zip(*(session.run(None, feed) for feed in feeds), strict=True)]


def test_attentions_of_rank_3_and_4_are_taken_and_deformable_ones_are_not() -> None:
    found = attentions(segmenter_model())
    assert {name for name, item in found.items() if item.refused is None} == {*SWIN, *RANK_3}
    assert {name: item.refused for name, item in found.items() if item.refused is not None} == {
        DEFORMABLE: "its consumer how is Reshape, not MatMul"
    }


@pytest.fixture(scope="module")
def plain() -> tuple[ir.Model, Report]:
    """The integer model by log2 weights."""
    return quantize_model(segmenter_model(), segmenter_samples(), recipe(), UNTIMED)


@pytest.mark.exact_products
def test_all_of_them_become_integer(plain: tuple[ir.Model, Report]) -> None:
    integer, report = plain
    onnx.checker.check_model(ir.to_proto(integer), full_check=True)
    lines = {line.name: line for line in report.lines if line.kind == "attention"}
    assert report.fallen == []
    for name in (*SWIN, *RANK_3):
        error = lines[name].error
        assert lines[name].is_integer
        assert error is not None
        assert 0 < error.relative < 0.3
    assert lines[DEFORMABLE].kernels == ()


@pytest.mark.exact_products
def test_weights_of_the_mask_head_are_stored_once(plain: tuple[ir.Model, Report]) -> None:
    """For four readers each, all of which are integer."""
    integer, report = plain
    readers = {f"h{i}_{part}" for part in SHARED for i in range(LAYERS + 1)}
    assert readers <= {line.name for line in report.taken if line.is_integer}
    tensors = [value.const_value for value in integer.graph.initializers.values() if value.const_value is not None]
    codes = [tensor.numpy() for tensor in tensors if tensor.dtype in (ir.DataType.INT8, ir.DataType.UINT8)]
    square = [array.tobytes() for array in codes if array.shape == (8, 8)]
    assert len(square) == len(set(square))


@pytest.mark.exact_products
def test_both_forms_of_shift_and_sum_give_the_same_bits_at_rank_3(plain: tuple[ir.Model, Report]) -> None:
    residual, duplicate = (
        outputs(quantize_model(segmenter_model(), segmenter_samples(), recipe(form), UNTIMED)[0])
        for form in ("residual", "duplicate")
    )
    for first, second, without in zip(residual, duplicate, outputs(plain[0]), strict=True):
        np.testing.assert_array_equal(first, second)
        assert (first != without).any()


def exporter() -> ModuleType:
    """The program of the example."""
    spec = importlib.util.spec_from_file_location("oneformer_export", PROGRAM)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.filterwarnings("default")
def test_transformers_own_oneformer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("transformers")
    pytest.importorskip("scipy")
    path = tmp_path / "oneformer.onnx"
    monkeypatch.setattr(sys, "argv", ["export.py", "--config", "tiny", "--out", str(path)])
    exporter().main()
    found = attentions(read_model(path)).values()
    refused = [item.refused for item in found if item.refused is not None]
    assert len(found) == 20
    assert len(refused) == 2
    assert all("self_attn/Reshape_3 is Reshape, not MatMul" in reason for reason in refused)
