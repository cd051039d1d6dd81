"""`nextscale build --reduce-range`, and what a build says of CPUs without VNNI."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from tiny_model import tiny_models

from nextscale.cli.main import main
from nextscale.runtime import Bundle

SHAPE = ("--patch-nums", "1,2,3,4", "--calibration-images", "2", "--threads", "1")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """The options that name a model."""
    folder = tmp_path_factory.mktemp("checkpoints")
    for name, module in zip(("var", "vae"), tiny_models(), strict=True):
        torch.save(module.state_dict(), folder / f"{name}.pth")
    return ["--var", str(folder / "var.pth"), "--vae", str(folder / "vae.pth")]


def build(model: list[str], out: Path, *further: str) -> int:
    return main(["build", *model, *SHAPE, "--out", str(out), *further])


def test_a_build_says_what_saturates_and_what_to_do(
    model: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert build(model, tmp_path / "full") == 0
    (line,) = capsys.readouterr().err.splitlines()
    found = re.fullmatch(
        r"on CPUs without VNNI (\d+) of (\d+) integer layers saturate \((\S+) the most: its result changes by "
        r"[\d.]+%\); for those build with --reduce-range",
        line,
    )
    assert found, line
    report = Bundle.open(tmp_path / "full").manifest.recipe["saturation"]
    errors = {name: item["error"] for name, item in report["can_saturate"].items()}
    assert found.groups() == (
        str(sum(bool(error) for error in errors.values())),
        str(report["products"]),
        max(errors, key=lambda name: errors[name] or 0),
    )


def test_a_reduced_range_is_in_the_manifest_and_nothing_is_said(
    model: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert build(model, tmp_path / "reduced", "--reduce-range") == 0
    assert capsys.readouterr().err == ""
    recipe = Bundle.open(tmp_path / "reduced").manifest.recipe
    assert (recipe["name"], recipe["reduce_range"], recipe["saturation"]["can_saturate"]) == ("default", True, {})
    assert main(["inspect", str(tmp_path / "reduced")]) == 0
    assert re.search("recipe: reduce_range *│ true", capsys.readouterr().out)


@pytest.mark.parametrize(
    ("recipe", "said"),
    [
        ("fp32", "recipe fp32: full precision does not go with --reduce-range"),
        (
            "brecq-w8a8",
            "recipe brecq-w8a8: its rounding was learned for 8 bits, which --reduce-range would undo; choose",
        ),
    ],
)
def test_recipes_that_have_no_reduced_range(
    model: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str], recipe: str, said: str
) -> None:
    """Before anything else is asked of the user, such as a rounding."""
    assert build(model, tmp_path / "bundle", "--recipe", recipe, "--reduce-range") == 2
    captured = capsys.readouterr()
    assert said in captured.err
    assert "Traceback" not in captured.err
    assert not list(tmp_path.iterdir())
