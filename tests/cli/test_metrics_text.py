"""`nextscale metrics` of bundles of text, with a feature network of no weights."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from infinity_bundle import write_shifted_bundles
from numpy.typing import NDArray
from pixel_network import PixelNetwork
from refusal import assert_refused
from tiny_model import ONE_THREAD

from nextscale.cli.main import main
from nextscale.evaluate.image_statistics import Features
from nextscale.runtime import Generator

PROMPTS = ["a fox", "two long dogs"]
SMALL = ("--area", "0.000977M", "--ratio", "1:1")  # 32 x 32 pixels, the second of three sizes


class KeepingNetwork(PixelNetwork):
    """Keeps the pictures that it is shown."""

    shown: list[NDArray[np.uint8]]

    def __call__(self, images: NDArray[np.uint8]) -> Features:
        self.shown.extend(images)
        return super().__call__(images)


@pytest.fixture
def shown(monkeypatch: pytest.MonkeyPatch) -> list[NDArray[np.uint8]]:
    """The pictures that the network is shown."""
    monkeypatch.setattr(KeepingNetwork, "shown", [], raising=False)
    monkeypatch.setattr("nextscale.cli.judging_options.FeatureNetwork", KeepingNetwork)
    return KeepingNetwork.shown


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """fp32; shifted, whose log-odds are larger by 1; features, the same as fp32 without a text encoder; prompts."""
    folder = tmp_path_factory.mktemp("metrics")
    write_shifted_bundles(folder, 1.0)
    (folder / "prompts.txt").write_text("\n".join(PROMPTS))
    return folder


@pytest.fixture(autouse=True)
def here(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)


def run(work: Path, *arguments: str, images: int = 6) -> int:
    return main(["metrics", *arguments, "--work", str(work), "--images", str(images), "--batch", "4", "--threads", "1"])


def test_pictures_of_prompts_are_compared(
    tmp_path: Path, shown: list[NDArray[np.uint8]], capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "figures.json"
    options = ("--full-precision", "fp32", "--noise-floor", "--prompts", "prompts.txt", *SMALL, "--json", str(path))
    assert run(tmp_path / "work", "shifted", *options) == 0
    captured = capsys.readouterr()
    assert captured.err == ""
    found = json.loads(path.read_text())
    assert [row["role"] for row in found["rows"]] == ["full precision", "noise floor", "bundle"]
    assert (found["prompts"], found["image_size"], found["cfg_scale"], found["reference"]) == (
        PROMPTS, [32, 32], 3.0, "none",
    )  # fmt: skip
    assert "top_k" not in found
    assert all(row["FID-E"] is None for row in found["rows"])
    assert all(row["FID-E to full precision"]["mean"] > 0 for row in found["rows"][1:])
    # Statistics are kept: nothing is drawn again.
    drawn = len(shown)
    assert run(tmp_path / "work", "shifted", *options) == 0
    assert len(shown) == drawn == 18


def test_pictures_are_those_of_generate(tmp_path: Path, shown: list[NDArray[np.uint8]]) -> None:
    """Image i of the seed, of one of the prompts, each of them as often; more images begin with the same."""
    usage = ("fp32", "--prompts", "prompts.txt", "--seed", "4", "--cfg-scale", "2", *SMALL)
    assert run(tmp_path, *usage, images=5) == 0
    assert run(tmp_path, *usage, images=6) == 0
    generator, counts = Generator("fp32", ONE_THREAD), [0, 0]
    assert len(shown) == 6
    for image, picture in enumerate(shown):
        request = {"seed": 4, "first_image": image, "cfg_scale": 2.0, "area": SMALL[1], "ratio": "1:1"}
        candidates = [generator.generate(prompts=[prompt], **request).images[0] for prompt in PROMPTS]  # type: ignore[arg-type]
        equal = [bool((picture == candidate).all()) for candidate in candidates]
        assert sum(equal) == 1
        counts[equal.index(True)] += 1
    assert counts == [3, 3]


USAGE = {
    "no prompts": (["fp32"], "these bundles make pictures of text: give --prompts, one a line"),
    "filters": (["fp32", "--top-p", "0.5"], "a bundle of text does not go with --top-p"),
    "no text encoder": (["features", "--prompts", "prompts.txt"], "features has no text encoder to read them"),
    "a size": (["fp32", "--prompts", "prompts.txt", "--ratio", "16:9"], "area 0.0117M with ratio 16:9 is not built"),
    "no file": (["fp32", "--prompts", "none"], "none: no such file; expected prompts, one a line"),
}


@pytest.mark.parametrize(("usage", "message"), USAGE.values(), ids=USAGE.keys())
def test_bad_usage_is_one_line(
    tmp_path: Path,
    shown: list[NDArray[np.uint8]],
    capsys: pytest.CaptureFixture[str],
    usage: list[str],
    message: str,
) -> None:
    assert_refused(capsys, run(tmp_path, *usage), message)
    assert not shown


def test_bundles_of_text_and_of_classes_are_refused(
    fp32_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code = run(tmp_path, str(fp32_bundle), "fp32", "--reference", "none")
    assert_refused(capsys, code, "makes pictures of text, expected a bundle of classes: compare bundles of text with")
    code = run(tmp_path, str(fp32_bundle), "--prompts", "prompts.txt", "--reference", "none")
    assert_refused(capsys, code, "a bundle of classes does not go with --prompts")
