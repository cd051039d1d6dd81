"""The programs that draw and measure, as the model card's commands run them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner
from PIL import Image

from nextscale.demo import evaluate_tokenizer, sheets
from nextscale.demo.photographs import SIDE

LOGS = Path(__file__).parents[2] / "demo" / "nextscale-demo" / "logs"


def run(*arguments: object) -> tuple[int, int]:
    """The size of the picture that `sheets` draws."""
    sheets.main.main([str(a) for a in arguments], standalone_mode=False)
    with Image.open(str(arguments[-1])) as picture:
        return picture.size


def test_samples(tmp_path: Path) -> None:
    size = run("samples", "--classes", "3,jellyfish", "--count", 1, "--out", tmp_path / "samples.png")
    assert size == (SIDE, 2 * (SIDE + sheets.CAPTION) + sheets.GAP)


def test_reconstructions_beside_their_originals(data: Path, tmp_path: Path) -> None:
    out = tmp_path / "reconstructions.png"
    size = run("reconstructions", "--data", data, "--count", 2, "--originals", "--out", out)
    assert size == (16 * (SIDE + sheets.GAP) - sheets.GAP, SIDE)


def test_curves_of_the_committed_logs(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    assert min(run("curves", "--logs", LOGS, "--out", tmp_path / "curves.png")) > 0


def test_curves_of_one_run(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    for name in ("tokenizer.jsonl", "transformer.jsonl"):
        (tmp_path / name).write_bytes((LOGS / name).read_bytes())
    assert min(run("curves", "--logs", tmp_path, "--out", tmp_path / "curves.png")) > 0


def test_the_tokenizer_reconstructs_gradients(data: Path) -> None:
    result = CliRunner().invoke(evaluate_tokenizer.main, ["--data", str(data)], catch_exceptions=False)
    found = json.loads(result.stdout)
    assert found["images"] == 4
    # Far easier than photographs, at 24.65 dB on average.
    assert found["psnr"] > 25
    assert found["psnr_of_mean_mse"] <= found["psnr"]
