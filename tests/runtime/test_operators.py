"""Which variant of a bundle's graphs runs: what is asked for, what the bundle has, and which library is there."""

from __future__ import annotations

import json
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nextscale.runtime import Generator, NextscaleError
from nextscale.runtime import _operators as operators
from nextscale.runtime._bundle import Bundle
from nextscale.runtime._session import SessionOptions
from nextscale.runtime._variants import each_variant
from nextscale.runtime._verify import verify


@pytest.fixture
def fused_options(ops_library: Path) -> SessionOptions:
    return SessionOptions(threads=1, ops="fused", ops_library=str(ops_library))


@pytest.fixture
def changed(int8_bundle: Path, tmp_path: Path) -> Callable[[Callable[[dict[str, Any]], object]], Path]:
    """A copy of the int8 bundle whose manifest a function has changed."""

    def change(edit: Callable[[dict[str, Any]], object]) -> Path:
        bundle = shutil.copytree(int8_bundle, tmp_path / "changed")
        manifest = json.loads((bundle / "manifest.json").read_text())
        edit(manifest)
        (bundle / "manifest.json").write_text(json.dumps(manifest))
        return bundle

    return change


def test_without_a_library_the_stock_graphs_run(int8_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(operators, "installed_library", lambda: None)
    choice = Generator(int8_bundle).ops
    assert choice.variant == "stock"
    assert "nextscale-ops is not installed" in choice.reason
    with pytest.raises(NextscaleError, match="fused operators cannot run: nextscale-ops is not installed"):
        Generator(int8_bundle, SessionOptions(ops="fused"))


def test_auto_takes_the_fused_graphs_where_they_can_run(int8_bundle: Path, ops_library: Path) -> None:
    choice = Generator(int8_bundle, SessionOptions(ops_library=str(ops_library))).ops
    assert (choice.variant, choice.library) == ("fused", ops_library)
    assert Generator(int8_bundle, SessionOptions(ops="stock", ops_library=str(ops_library))).ops.variant == "stock"


def test_auto_takes_stock_operators_where_fused_ones_are_plain_code(
    int8_bundle: Path, ops_library: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NEXTSCALE_OPS_ISA", "portable")
    assert Generator(int8_bundle, SessionOptions(ops_library=str(ops_library))).ops.variant == "stock"
    assert Generator(int8_bundle, SessionOptions(ops="fused", ops_library=str(ops_library))).ops.variant == "fused"


def test_a_full_precision_bundle_has_no_fused_graphs(fp32_bundle: Path, fused_options: SessionOptions) -> None:
    with pytest.raises(NextscaleError, match="the bundle has no fused graphs"):
        Generator(fp32_bundle, fused_options)


def test_a_library_of_another_version_does_not_fit(
    changed: Callable[[Callable[[dict[str, Any]], object]], Path], fused_options: SessionOptions
) -> None:
    def newer(manifest: dict[str, Any]) -> None:
        manifest["graphs"]["stage"]["variants"]["fused"]["operators"]["nextscale"] = 7

    with pytest.raises(NextscaleError, match=r"they need version 7 of nextscale-ops' operators, and .* has version 1"):
        Generator(changed(newer), fused_options)


def test_operators_of_another_domain_do_not_fit(
    changed: Callable[[Callable[[dict[str, Any]], object]], Path], fused_options: SessionOptions
) -> None:
    def foreign(manifest: dict[str, Any]) -> None:
        manifest["graphs"]["stage"]["variants"]["fused"]["operators"]["else\x1bwhere"] = 1

    with pytest.raises(NextscaleError, match=r"they need operators of else\\x1bwhere"):
        Generator(changed(foreign), fused_options)


@pytest.mark.parametrize("content", [None, b"", b"no library"])
def test_what_is_no_library_is_refused(int8_bundle: Path, tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "library.so"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(NextscaleError, match=r"library\.so: cannot be loaded as a library of operators"):
        Generator(int8_bundle, SessionOptions(ops="fused", ops_library=str(path)))


def test_a_library_without_operators_is_refused(int8_bundle: Path) -> None:
    other = np._core._multiarray_umath.__file__
    with pytest.raises(NextscaleError, match=r"\.so: a library without nextscale's operators"):
        Generator(int8_bundle, SessionOptions(ops="fused", ops_library=other))


@pytest.mark.parametrize("options", [{"ops": "fast"}, {"ops": None}, {"ops_library": 3}, {"ops": np.array("auto")}])
def test_other_choices_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(NextscaleError, match=r"^ops"):
        SessionOptions(**options)


def test_a_fused_graph_that_is_not_listed_is_refused(
    changed: Callable[[Callable[[dict[str, Any]], object]], Path],
) -> None:
    def unlisted(manifest: dict[str, Any]) -> None:
        manifest["graphs"]["stage"]["variants"]["fused"]["file"] = "../stage.onnx"

    with pytest.raises(NextscaleError, match="plain file name"):
        Bundle.open(changed(unlisted))


def test_a_pickled_generator_runs_the_same_graphs(int8_bundle: Path, fused_options: SessionOptions) -> None:
    generator = Generator(int8_bundle, fused_options)
    assert pickle.loads(pickle.dumps(generator)).ops == generator.ops


def test_each_variant_is_what_can_run(int8_bundle: Path, fp32_bundle: Path, ops_library: Path) -> None:
    options = SessionOptions(ops_library=str(ops_library))
    assert [found.ops for found in each_variant(Bundle.open(int8_bundle), options)] == ["stock", "fused"]
    assert [found.ops for found in each_variant(Bundle.open(fp32_bundle), options)] == ["stock"]
    stock = SessionOptions(ops="stock")
    assert each_variant(Bundle.open(int8_bundle), stock) == [stock]


def test_verify_checks_both(int8_bundle: Path, fused_options: SessionOptions) -> None:
    report = verify(Bundle.open(int8_bundle), fused_options)
    assert [check.name for check in report.checks[1:3]] == ["contract (fused)", "logits (fused)"]
