"""`nextscale build --learn`: one command for what single ones do."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tiny_model import tiny_models

from nextscale.cli.main import main
from nextscale.demo.weights import save_weights

SEED, IMAGES, ITERATIONS, BATCH = 7, 4, 2, 2
MATCHINGS = {"default-w4a4": "none", "ours-w4a6": "published"}
LEARNING = ("--iterations", ITERATIONS, "--batch", BATCH, "--seed", SEED)


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("checkpoints")
    for name, model in zip(("var", "vae"), tiny_models(), strict=True):
        save_weights(model, folder / f"{name}.safetensors")
    return folder


def model(checkpoints: Path) -> tuple[object, ...]:
    paths = ("--var", checkpoints / "var.safetensors", "--vae", checkpoints / "vae.safetensors")
    return (*paths, "--patch-nums", "1,2,3,4")


def run(*arguments: object) -> int:
    return main([str(argument) for argument in arguments])


def build_and_learn(checkpoints: Path, out: Path, recipe: str = "default-w4a4", *further: object) -> int:
    options = ("--learn", *LEARNING, "--calibration-images", IMAGES, "--threads", 1)
    return run("build", *model(checkpoints), "--recipe", recipe, *options, "--out", out, *further)


@pytest.mark.parametrize("recipe", MATCHINGS)
def test_one_command_gives_what_the_single_ones_give(
    checkpoints: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], recipe: str
) -> None:
    """Graphs and weights, byte for byte; theta is what the bundle says."""
    full, maps, rounding = tmp_path / "fp32", tmp_path / "maps", tmp_path / "rounding.safetensors"
    assert build_and_learn(checkpoints, tmp_path / "one", recipe) == 0
    told = capsys.readouterr().out.splitlines()
    assert told[0].startswith("KL of 1 held-out images ")
    assert told[1].startswith(f"{tmp_path / 'one'}: one, {recipe}, ")
    theta: tuple[object, ...] = ()
    if recipe == "ours-w4a6":
        chosen = json.loads((tmp_path / "one" / "manifest.json").read_text())["recipe"]["shift_and_sum"]
        theta = ("--theta", chosen["theta"], "--places", ",".join(map(str, chosen["rows"])))
    assert run("build", *model(checkpoints), "--precision", "fp32", "--out", full, "--threads", 1) == 0
    sampling = ("--images", IMAGES, "--seed", SEED, "--batch", 2, "--threads", 1)
    assert run("calibrate", full, "--matching", MATCHINGS[recipe], *sampling, "--out", maps) == 0
    steps = ("--recipe", recipe, "--calibration", maps)
    assert run("reconstruct", *model(checkpoints), *steps, *theta, *LEARNING, "--out", rounding) == 0
    built = ("--rounding", rounding, "--seed", SEED, "--threads", 1)
    assert run("build", *model(checkpoints), *steps, *built, "--out", tmp_path / "single") == 0
    one, single = (files(tmp_path / name) for name in ("one", "single"))
    assert {"decoder.onnx", "generate.onnx", "stage.onnx", "weights.data"} <= set(one)
    assert one.keys() == single.keys()
    for name in one:
        assert one[name] == single[name], name
    assert not (tmp_path / "one.learning").exists()


def files(bundle: Path) -> dict[str, bytes]:
    """A bundle's graphs and weights."""
    return {path.name: path.read_bytes() for path in bundle.iterdir() if path.suffix in (".onnx", ".data")}


def test_an_interrupt_tells_how_to_go_on(
    checkpoints: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """And that other settings than before are none to go on with."""
    out, work = tmp_path / "out", tmp_path / "out.learning"

    def interrupt(*arguments: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("nextscale.simulation.reconstruct._Reconstruction._learn", interrupt)
        assert build_and_learn(checkpoints, out) == 130
    assert [line for line in capfd.readouterr().err.splitlines() if line] == [
        f"what is finished is in {work}; the same command goes on from there",
        "error: interrupted; nothing half-written was left",
    ]
    assert list(tmp_path.iterdir()) == [work]
    assert build_and_learn(checkpoints, out, "default-w4a4", "--seed", 8) == 2
    captured = capfd.readouterr()
    assert captured.out == ""
    assert captured.err == (
        f"error: {work}: was begun with calibration.seed 7 instead of 8; give the same again to go on, or remove it to "
        "begin again\n"
    )
    assert build_and_learn(checkpoints, out) == 0
    assert list(tmp_path.iterdir()) == [out]


def test_no_gpu_is_one_line(
    checkpoints: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert build_and_learn(checkpoints, tmp_path / "out", "default-w4a4", "--device", "cuda") == 2
    expected = "error: --device cuda: this torch finds no GPU; leave it out to compute on the CPU\n"
    assert capsys.readouterr().err == expected
    assert not list(tmp_path.iterdir())
