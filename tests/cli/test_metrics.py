from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pixel_network import PixelNetwork
from refusal import assert_refused
from tiny_model import V, build_tiny, tiny_source

from nextscale.cli.main import main
from nextscale.evaluate.image_statistics import Features
from nextscale.runtime._next_scale_loop import Generator


class CountingNetwork(PixelNetwork):
    """Counts the images of all its instances, and can be interrupted after some."""

    total = 0
    interrupt_after = sys.maxsize

    def __call__(self, images: np.ndarray) -> Features:
        cls = type(self)
        if cls.total >= cls.interrupt_after:
            raise KeyboardInterrupt
        cls.total += len(images)
        return super().__call__(images)


@pytest.fixture(autouse=True)
def network(monkeypatch: pytest.MonkeyPatch) -> type[CountingNetwork]:
    """Takes the place of the feature network."""
    monkeypatch.setattr("nextscale.cli.judging_options.FeatureNetwork", CountingNetwork)
    monkeypatch.setattr(CountingNetwork, "total", 0)
    monkeypatch.setattr(CountingNetwork, "interrupt_after", sys.maxsize)
    return CountingNetwork


def run(work: Path, *arguments: object, images: int = 6) -> int:
    fixed = ("--work", work, "--images", images, "--batch", 2, "--threads", 1)
    chosen = () if "--reference" in arguments else ("--reference", "none")
    return main(["metrics", *map(str, (*arguments, *fixed, *chosen))])


def figures(work: Path, *arguments: object, images: int = 6) -> dict[str, Any]:
    path = work.parent / "figures.json"
    assert run(work, *arguments, "--json", path, images=images) == 0
    found: dict[str, Any] = json.loads(path.read_text())
    return found


def test_figures_of_each_bundle(
    fp32_bundle: Path, int8_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = (int8_bundle, "--full-precision", fp32_bundle, "--noise-floor", "--seed", 4, "--cfg-scale", 2)
    found = figures(tmp_path / "work", *arguments)
    captured = capsys.readouterr()
    assert captured.err == ""
    assert "(noise floor)" in captured.out
    original, floor, int8 = found["rows"]
    assert [row["role"] for row in found["rows"]] == ["full precision", "noise floor", "bundle"]
    assert [row["seeds"] for row in found["rows"]] == [[4], [5], [4]]
    assert (int8["bundle"], int8["images"], found["cfg_scale"], found["network"]) == (
        str(int8_bundle),
        6,
        2.0,
        "pixels",
    )
    assert original["FID-E"] is original["FID-E to full precision"] is None
    distances = [row["FID-E to full precision"]["mean"] for row in (int8, floor)]
    assert 0 < distances[0] < distances[1]  # the same seed is nearer than another
    assert all(1 < row["IS-E"]["mean"] < 4 for row in found["rows"])
    assert {"torch", "onnxruntime"} <= found["versions"].keys()


def test_figures_are_those_of_the_bundles_pictures(fp32_bundle: Path, tmp_path: Path) -> None:
    """The reference is the statistics of the same pictures: the distance is 0; those of another seed are not."""
    work = tmp_path / "work"
    figures(work, fp32_bundle)
    (reference,) = work.iterdir()
    row = figures(tmp_path / "other", fp32_bundle, "--reference", reference)["rows"][0]
    assert row["FID-E"]["mean"] == pytest.approx(0, abs=1e-12)
    row = figures(tmp_path / "other", fp32_bundle, "--reference", reference, "--seed", 1)["rows"][0]
    assert row["FID-E"]["mean"] > 1e-6


def test_full_precision_among_the_bundles_is_measured_once(fp32_bundle: Path, tmp_path: Path) -> None:
    found = figures(tmp_path / "work", fp32_bundle, "--full-precision", f"{fp32_bundle}/.")
    assert [row["role"] for row in found["rows"]] == ["full precision"]


def test_several_seeds_give_intervals(fp32_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    seeds = ("--seed", 0, "--seed", 7, "--seed", 1)
    row = figures(tmp_path / "work", fp32_bundle, *seeds)["rows"][0]
    score = row["IS-E"]
    assert row["seeds"] == [0, 7, 1]
    assert len(set(score["by_seed"])) == 3
    assert score["mean"] == pytest.approx(np.mean(score["by_seed"]))
    assert score["low"] < score["mean"] < score["high"]
    assert "6 x 3" in capsys.readouterr().out
    assert len(list((tmp_path / "work").iterdir())) == 3


# Going on


def test_a_second_run_makes_no_pictures_and_more_images_only_the_rest(
    fp32_bundle: Path, tmp_path: Path, network: type[CountingNetwork]
) -> None:
    work = tmp_path / "work"
    first = figures(work, fp32_bundle, images=5)
    assert network.total == 5
    assert figures(work, fp32_bundle, images=5)["rows"] == first["rows"]
    assert network.total == 5
    continued = figures(work, fp32_bundle, images=9)["rows"][0]
    assert network.total == 9
    fresh = figures(tmp_path / "fresh", fp32_bundle, images=9)["rows"][0]
    assert continued["IS-E"]["mean"] == pytest.approx(fresh["IS-E"]["mean"], rel=1e-5)


def test_other_settings_start_anew(fp32_bundle: Path, tmp_path: Path, network: type[CountingNetwork]) -> None:
    work = tmp_path / "work"
    for number, arguments in enumerate([(), ("--cfg-scale", 1), ("--top-k", 5), ("--top-p", 0.5), ("--seed", 2)]):
        assert run(work, fp32_bundle, *arguments) == 0
        assert network.total == 6 * (number + 1)
    assert run(work, fp32_bundle, "--top-k", V) == 0  # the default, since the model has fewer entries than 900
    assert network.total == 30


def test_an_interrupted_run_goes_on(
    fp32_bundle: Path,
    tmp_path: Path,
    network: type[CountingNetwork],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    work = tmp_path / "work"
    monkeypatch.setattr(network, "interrupt_after", 4)
    assert run(work, fp32_bundle) == 130
    assert capsys.readouterr().err.strip() == "error: interrupted; nothing half-written was left"  # click adds a line
    assert [path.suffix for path in work.iterdir()] == [".npz"]
    monkeypatch.setattr(network, "interrupt_after", sys.maxsize)
    found = figures(work, fp32_bundle)
    assert network.total == 6
    assert found["rows"] == figures(tmp_path / "fresh", fp32_bundle)["rows"]


# Refusals


def test_fewer_images_than_are_kept_are_refused(
    fp32_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(tmp_path, fp32_bundle) == 0
    capsys.readouterr()
    assert_refused(capsys, run(tmp_path, fp32_bundle, images=4), "already holds 6 images; ask for at least as many")


def test_a_damaged_file_is_refused(fp32_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(tmp_path, fp32_bundle) == 0
    capsys.readouterr()
    (path,) = tmp_path.iterdir()
    path.write_bytes(path.read_bytes()[:100])
    assert_refused(capsys, run(tmp_path, fp32_bundle), f"{path}: damaged")


def test_bundles_of_different_models_are_refused(
    fp32_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = build_tiny(tmp_path / "other", "fp32", tiny_source(depth=1))
    assert_refused(capsys, run(tmp_path, fp32_bundle, other), f"{other}: not the model of {fp32_bundle}")


def test_the_demo_reference_of_another_network_is_refused(
    fp32_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    message = "these statistics are of pixels; give --reference FILE made the same way, or --reference none"
    assert_refused(capsys, run(tmp_path, fp32_bundle, "--reference", "demo"), message)


BAD_USAGE = {
    "images": (["--images", "1"], "1 is not in the range"),
    "seed": (["--seed", "-1"], "-1 is not in the range"),
    "seed twice": (["--seed", "1", "--seed", "1"], "--seed: the same seed twice"),
    "batch": (["--batch", "0"], "0 is not in the range"),
    "cfg": (["--cfg-scale", "-1"], "cfg_scale -1 is out of range"),
    "top-k": (["--top-k", "-1"], "top_k -1 is out of range"),
    "top-p": (["--top-p", "2"], "top_p 2 is out of range"),
    "noise floor": (["--noise-floor"], "--noise-floor needs --full-precision"),
    "reference": (["--reference", "none.npz"], "none.npz: cannot be read: No such file"),
    "json": (["--json", "/proc/figures.json"], "cannot write /proc/figures.json"),
    "work": (["--work", "/proc/work"], "cannot make /proc/work"),
    "bundle": (["--full-precision", "/none"], "/none: no such folder"),
    "weights": (["--inception-weights", "/none"], "'/none' does not exist"),
}


@pytest.mark.parametrize(("usage", "message"), BAD_USAGE.values(), ids=BAD_USAGE.keys())
def test_bad_usage_is_one_line(
    fp32_bundle: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    network: type[CountingNetwork],
    usage: list[str],
    message: str,
) -> None:
    defaults = ["--work", str(tmp_path), "--reference", "none", "--images", "4", "--threads", "1"]
    assert_refused(capsys, main(["metrics", str(fp32_bundle), *defaults, *usage]), message)
    assert network.total == 0


def test_pictures_are_those_of_generate(fp32_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The command asks for each image of the seed once, with labels spread over the classes."""
    asked: list[tuple[int, int]] = []
    generate = Generator.generate

    def watched(self: Generator, labels: Any, **settings: Any) -> Any:
        asked.extend((settings["first_image"] + i, int(label)) for i, label in enumerate(labels))
        return generate(self, labels, **settings)

    monkeypatch.setattr(Generator, "generate", watched)
    assert run(tmp_path, fp32_bundle, images=7) == 0
    assert [image for image, _ in asked] == list(range(7))
    counts = np.bincount([label for _, label in asked])
    assert counts.max() - counts.min() <= 1
