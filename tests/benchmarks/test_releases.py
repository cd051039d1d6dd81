"""benchmarks/releases.py: which releases it takes, what its worker gives, and what is said of passing and failing."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import click
import numpy as np
import pytest
from fake_bundle import L
from fake_fused_bundle import write_fake_fused_bundle
from packaging.requirements import Requirement

from nextscale.runtime import Generator
from nextscale.runtime._session import MINIMUM_ONNXRUNTIME, release_numbers

ROOT = Path(__file__).parents[2]
GIVEN = "given the stored tokens before it, "


@pytest.fixture
def releases(program: Callable[[str], ModuleType]) -> ModuleType:
    return program("releases")


def test_its_releases_are_one_of_each_minor_that_is_allowed(releases: ModuleType) -> None:
    lines = (ROOT / "pyproject.toml").read_text(encoding="utf-8").splitlines()
    [line] = [line for line in lines if line.startswith("dependencies")]
    [allowed] = [Requirement(text) for text in line.split('"')[1::2] if text.startswith("onnxruntime")]
    assert all(allowed.specifier.contains(release) for release in releases.RELEASES)
    assert not allowed.specifier.contains("1.29.0")
    minors = [release_numbers(release) for release in releases.RELEASES]
    last = minors[-1][1]
    assert minors == [(1, minor) for minor in range(MINIMUM_ONNXRUNTIME[1], last + 1) if minor != 29]


def test_its_worker_samples_and_feeds(
    releases: ModuleType, program: Callable[[str], ModuleType], fake_bundle: Path, tmp_path: Path
) -> None:
    maps, out = tmp_path / "maps.npz", tmp_path / "out.npz"
    releases._sample(fake_bundle, maps, 3, 1)
    program("release_worker").feed(str(fake_bundle), str(maps), str(out), "1", "stock")
    with np.load(maps) as given, np.load(out) as gave:
        expected = Generator(fake_bundle).generate(given["labels"], seed=1).token_maps
        assert np.array_equal(given["tokens"], expected)
        assert np.array_equal(gave["token_maps"], expected)
        assert gave["logits"].shape[:2] == (3, L)


def test_a_release_is_compared_with_the_one_before(releases: ModuleType, tmp_path: Path) -> None:
    one, other = tmp_path / "one.npz", tmp_path / "other.npz"
    logits = np.zeros((2, 4, 2), np.float32)
    np.savez(one, token_maps=np.zeros((2, 4), int), logits=logits)
    logits[1, :, 0] = np.log(3)  # (3/4, 1/4) instead of halves
    np.savez(other, token_maps=np.array([[0, 0, 0, 0], [0, 0, 1, 1]]), logits=logits)
    found = releases._result(
        True, f"others; {GIVEN}99% (expected 95%): rounding", {"stage: QLinearConv": 2}, other, one, one
    )
    assert (found.same_tokens, found.same_images) == (0.75, 1)
    assert found.kl == found.kl_before == pytest.approx(0.5 * (0.5 * np.log(2 / 3) + 0.5 * np.log(2)))
    first = releases._result(False, "others", {}, other, None, one)
    assert (first.same_tokens, first.kl_before) == (None, None)
    results = {"1.1": {"int8": first}, "1.2": {"int8": found}, "1.3": {"int8": releases.Failure("no kernel")}}
    rows = [line for line in releases.report(results, 2, ["- of this machine"]) if line.startswith("| 1.")]
    kl = f"{found.kl:.4f}"
    assert rows == [
        f"| 1.1 | FAILED: others | | | | {kl} | none |",
        f"| 1.2 | 99% (expected 95%) | 75.0% | 1 of 2 | {found.kl:.2g} | {kl} | 2 stage: QLinearConv |",
        "| 1.3 | FAILED: no kernel | | | | | |",
    ]


def test_a_release_that_cannot_be_installed_fails_and_the_next_goes_on(
    releases: ModuleType, fake_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def environment(release: str, wheels: list[Path], folder: Path) -> str:
        if release == "1.0":
            raise click.ClickException("no such release")
        return "python"

    def feed(python: str, bundle: Path, maps: Path, out: Path, threads: int, ops: str = "stock") -> None:
        np.savez(out, token_maps=np.zeros((1, L), int), logits=np.zeros((1, L, 2), np.float32))

    monkeypatch.setattr(releases, "environment", environment)
    monkeypatch.setattr(releases, "build_wheels", lambda work: [])
    monkeypatch.setattr(releases, "verify", lambda python, bundle, ops, threads: (True, "all"))
    monkeypatch.setattr(releases, "run", lambda command: '{"stage": {}, "decoder": {"QLinearConv": 3}}')
    monkeypatch.setattr(releases, "_feed", feed)
    found = releases.compare([fake_bundle], ["1.0", "1.1"], tmp_path, 1, 1)
    assert found["1.0"] == {fake_bundle.name: releases.Failure("no such release")}
    assert found["1.1"][fake_bundle.name].kernels == {"decoder: QLinearConv": 3}
    assert found["1.1"][fake_bundle.name].kl == 0


def test_fused_graphs_are_a_bundle_s_second_variant(releases: ModuleType, fake_bundle: Path, tmp_path: Path) -> None:
    both = write_fake_fused_bundle(tmp_path / "both")
    assert releases.variants([fake_bundle, both]) == [
        (fake_bundle, "stock", fake_bundle.name),
        (both, "stock", "both"),
        (both, "fused", "both, fused"),
    ]
    assert releases.fused_nodes(both)["decoder"] == {"AddCodes": 1}
