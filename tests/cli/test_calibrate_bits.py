"""`nextscale calibrate` of a bundle of text, and a build that takes what it made."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from infinity_bundle import tiny_infinity_source, write_infinity_bundle
from refusal import assert_refused
from tiny_model import no_progress, tiny_options

from nextscale.cli.main import main
from nextscale.compiler import _caches
from nextscale.compiler.build import build_bundle
from nextscale.compiler.infinity_family import InfinityFamily

IMAGES = 5
FAST = ("--images", str(IMAGES), "--threads", "1")
PROMPTS = ("a red apple", "fog", "two dogs in a field")  # of the tiny source


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """In full precision, with a text encoder."""
    out = tmp_path_factory.mktemp("calibrate") / "fp32"
    build_bundle(tiny_infinity_source(), out, tiny_options("fp32", encoder=False), no_progress)
    return out


def run(*arguments: object) -> int:
    return main(["calibrate", *FAST, *map(str, arguments)])


@pytest.mark.parametrize("matching", ["none", "stagewise"])
def test_a_build_takes_images_of_prompts(
    bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], matching: str
) -> None:
    prompts, out = tmp_path / "prompts.txt", tmp_path / "maps"
    prompts.write_text("\n".join(PROMPTS))
    assert run(bundle, "--prompts", prompts, "--matching", matching, "--seed", 7, "--out", out) == 0
    captured = capsys.readouterr()
    assert captured.err == ""
    assert f"{IMAGES} images of tiny as bits, matching {matching}" in captured.out
    assert ("wanted bits flipped" in captured.out) == (matching == "stagewise")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["maps", "prompts.txt"]

    family = InfinityFamily(tiny_infinity_source())
    maps, expected = family.load_sampled(out), family.calibration_subjects(IMAGES, seed=7)
    np.testing.assert_array_equal(maps.subjects.sizes, expected.sizes)
    assert maps.subjects.texts is not None
    assert expected.texts is not None
    for ours, theirs in zip(maps.subjects.texts, expected.texts, strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-5)  # ONNX Runtime's and torch's text encoder
    options = tiny_options("default", token_maps=maps, encoder=False, text_encoder=False)
    recipe = build_bundle(tiny_infinity_source(), tmp_path / "int8", options, no_progress).manifest.recipe
    assert recipe["calibration"]["images"] == IMAGES
    assert recipe["calibration"]["token_maps"]["settings"] == {
        "images": IMAGES, "seed": 7, "batch_size": 1, "matching": matching,
    }  # fmt: skip


def test_without_prompts_they_are_those_of_builds(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("nextscale.models.infinity.prompts.PROMPTS", ("fog",))  # those that come along are too long
    assert run(bundle, "--out", tmp_path / "maps") == 0
    texts = InfinityFamily(tiny_infinity_source(prompts=("fog",))).load_sampled(tmp_path / "maps").subjects.texts
    assert texts is not None
    assert [len(text) for text in texts] == [len("fog") + 1] * IMAGES


USAGE = {
    "guidance": (["--cfg-scale", "3"], "a bundle of text does not go with --cfg-scale"),
    "filters": (["--top-k", "3", "--top-p", "0.5"], "a bundle of text does not go with --top-k, --top-p"),
    "a score": (["--score"], "a bundle of text does not go with --score"),
    "no file": (["--prompts", "none.txt"], "none.txt: no such file; expected prompts, one a line"),
}


@pytest.mark.parametrize(("usage", "message"), USAGE.values(), ids=USAGE.keys())
def test_bad_usage_is_one_line(
    bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], usage: list[str], message: str
) -> None:
    assert_refused(capsys, run(bundle, *usage, "--out", tmp_path / "maps"), message)
    assert not list(tmp_path.iterdir())


def test_prompts_of_a_bundle_of_classes_are_refused(
    fp32_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code = run(fp32_bundle, "--prompts", "p.txt", "--out", tmp_path / "maps")
    assert_refused(capsys, code, "a bundle of classes does not go with --prompts")


def test_a_bundle_without_text_encoder_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bundle = write_infinity_bundle(tmp_path / "fp32", text_encoder=False)
    code = run(bundle, "--out", tmp_path / "maps")
    assert_refused(capsys, code, "has no text encoder to read prompts; build it in full precision with --text")


def test_sizes_too_large_for_full_precision_are_refused(
    bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_caches, "MOST_CACHED", 100)
    assert_refused(capsys, run(bundle, "--out", tmp_path / "maps"), "too many to be calibrated with")
