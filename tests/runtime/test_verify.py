import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fake_bundle import read_manifest, write_manifest

from nextscale.runtime import Bundle, Generator, StageResult
from nextscale.runtime._verify import Check, verify

WHOLE = [(name, True) for name in ("files", "contract", "logits", "tokens", "streaming")]


def names(checks: tuple[Check, ...]) -> list[tuple[str, bool]]:
    return [(check.name, check.passed) for check in checks]


def test_a_whole_bundle_passes(fake_bundle: Path) -> None:
    seen: list[Check] = []
    report = verify(Bundle.open(fake_bundle), on_check=seen.append)
    assert report.passed
    assert names(report.checks) == WHOLE
    assert report.checks == tuple(seen)
    assert report.checks[3].detail == "all 28 tokens are the stored ones"


def test_a_whole_bundle_of_schema_1_passes(fake_v1_bundle: Path) -> None:
    report = verify(Bundle.open(fake_v1_bundle))
    assert names(report.checks) == WHOLE
    assert report.checks[3].detail == "all 28 tokens are the stored ones"


def test_a_bundle_without_generate_has_one_form_to_check(fake_text_bundle: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(fake_text_bundle, tmp_path / "text")
    found = names(verify(Bundle.open(folder)).checks)
    assert found == [("files", True), ("contract", True), ("logits", True), ("tokens", True)]
    manifest = read_manifest(folder)
    manifest["verify"]["token_maps"][1][-1] ^= 1
    write_manifest(folder, manifest)
    report = verify(Bundle.open(folder))  # bits, each judged given those before it: 35 of 36 agree
    assert report.passed
    assert "97.2% of the tokens agree" in report.checks[3].detail


def test_a_changed_file_ends_the_checks(damaged: Path) -> None:
    content = bytearray((damaged / "weights.data").read_bytes())
    content[0] ^= 1
    (damaged / "weights.data").write_bytes(content)
    report = verify(Bundle.open(damaged))
    assert names(report.checks) == [("files", False)]
    assert "weights.data" in report.checks[0].detail


def test_a_graph_of_another_contract_fails(damaged: Path) -> None:
    manifest = read_manifest(damaged)
    manifest["graphs"]["decoder"]["inputs"][0]["shape"] = ["B", 9, 3, 3]
    write_manifest(damaged, manifest)
    report = verify(Bundle.open(damaged))
    assert names(report.checks) == [("files", True), ("contract", False)]


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_logits_that_are_not_finite_fail(fake_bundle: Path, monkeypatch: pytest.MonkeyPatch, value: float) -> None:
    """One of them is enough."""
    stream = Generator.stream

    def spoilt(self: Generator, *arguments: Any, **settings: Any) -> Iterator[StageResult]:
        for stage in stream(self, *arguments, **settings):
            if stage.stage == 1 and stage.outputs:
                stage.outputs["logits"][1, 2, 3] = value
            yield stage

    monkeypatch.setattr(Generator, "stream", spoilt)
    report = verify(Bundle.open(fake_bundle))
    assert names(report.checks) == [("files", True), ("contract", True), ("logits", False)]
    assert report.checks[2].detail == (
        "NaN or infinite in stage 1: the weights, or what they lead to, overflow float32"
    )


def store(folder: Path, changes: int) -> Bundle:
    """Change the last tokens of the stored maps: nothing comes after them that they could change."""
    manifest = read_manifest(folder)
    for token in range(changes):
        row, column = token % 2, -1 - token // 2
        manifest["verify"]["token_maps"][row][column] = (manifest["verify"]["token_maps"][row][column] + 1) % 16
    write_manifest(folder, manifest)
    return Bundle.open(folder)


@pytest.mark.parametrize(
    ("top1", "expected", "passed"),
    [(1.0, "95%", False), (0.8, "90%", False), (0.6, "80%", True), (None, "95%", False)],
)
def test_a_coarse_recipe_may_differ_by_half_of_what_it_differs_from_full_precision(
    damaged: Path, top1: float | None, expected: str, passed: bool
) -> None:
    store(damaged, 4)
    manifest = read_manifest(damaged)
    manifest["recipe"]["agreement"] = {"top1": top1}
    write_manifest(damaged, manifest)
    [tokens] = [check for check in verify(Bundle.open(damaged)).checks if check.name == "tokens"]
    assert tokens.passed is passed
    assert f"85.7% of the tokens agree (expected {expected})" in tokens.detail


@pytest.mark.parametrize(("top1", "expected", "passed"), [(0.9, "90%", False), (0.8, "80%", True)])
def test_where_only_the_stored_tokens_saturated_they_may_differ_as_much_as_from_full_precision(
    damaged: Path, top1: float, expected: str, passed: bool
) -> None:
    store(damaged, 4)
    manifest = read_manifest(damaged)
    manifest["recipe"]["agreement"] = {"top1": top1, "saturated": True}
    write_manifest(damaged, manifest)
    [tokens] = [check for check in verify(Bundle.open(damaged)).checks if check.name == "tokens"]
    assert tokens.passed is passed
    assert (
        f"85.7% of the tokens agree (expected {expected}); the bundle was built on a CPU without VNNI" in tokens.detail
    )


def test_a_token_that_differs_is_judged_given_those_before_it(damaged: Path) -> None:
    report = verify(store(damaged, 1))  # 27 of 28 agree: 96.4%
    assert report.passed
    assert "96.4% of the tokens agree" in report.checks[3].detail
    assert "rounds differently" in report.checks[3].detail


def test_too_many_differing_tokens_fail(damaged: Path) -> None:
    report = verify(store(damaged, 4))  # 24 of 28: 85.7%
    assert names(report.checks)[-1] == ("tokens", False)
    assert "85.7% of the tokens agree" in report.checks[3].detail


def test_forms_that_differ_fail(fake_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    at_once = Generator._generate_at_once

    def change_last_token(self: Generator, request: object) -> tuple:
        images, token_maps = at_once(self, request)  # type: ignore[arg-type]
        if request.arrays["top_k"] != 1:  # type: ignore[attr-defined]
            token_maps[0, -1] ^= 1
        return images, token_maps

    monkeypatch.setattr(Generator, "_generate_at_once", change_last_token)
    report = verify(Bundle.open(fake_bundle))
    assert names(report.checks)[-1] == ("streaming", False)
    assert "1 of 28 tokens" in report.checks[4].detail


def test_stages_that_the_graphs_do_not_have_fail(damaged: Path) -> None:
    """As many tokens in all, of other stages: a failed check, no traceback."""
    manifest = read_manifest(damaged)
    manifest["model"]["stage_sizes"] = [[2, 2], [2, 5]]
    write_manifest(damaged, manifest)
    report = verify(Bundle.open(damaged))
    assert not report.passed
    assert report.checks[-1].name == "streaming"
    assert "differ in shape" in report.checks[-1].detail
