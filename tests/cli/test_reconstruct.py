from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from tiny_model import NUM_CLASSES, L, V, tiny_models

from nextscale.calib_data.token_maps import TokenMaps
from nextscale.cli.main import main
from nextscale.demo.weights import save_weights
from nextscale.simulation.rounding import Rounding

FAST = ("--iterations", 2, "--batch", 2)
LABELS = np.arange(4) % NUM_CLASSES
MAPS = np.random.default_rng(0).integers(0, V, (4, L))


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with var and vae of the tiny model, and token maps."""
    folder = tmp_path_factory.mktemp("checkpoints")
    var, vqvae = tiny_models()
    save_weights(var, folder / "var.safetensors")
    save_weights(vqvae, folder / "vae.safetensors")
    np.savez(folder / "token_maps.npz", class_labels=LABELS, token_maps=MAPS)
    TokenMaps(LABELS, MAPS, {}).save(folder / "maps")
    (folder / "token_maps.npz.toml").write_text('[weights]\nrounding = "reconstructed"\n[layers]\n"fc3" = "float"\n')
    return folder


def run(folder: Path, out: Path, *arguments: object, recipe: str = "brecq-w4a6") -> int:
    """The command with the tiny model's options; later arguments override them."""
    options = (
        *("--var", folder / "var.safetensors", "--vae", folder / "vae.safetensors", "--patch-nums", "1,2,3,4"),
        *("--recipe", recipe, "--out", out, *FAST),
    )
    return main(["reconstruct", *map(str, (*options, *arguments))])


def test_a_file_is_made(checkpoints: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "rounding.safetensors"
    assert run(checkpoints, out, "--token-maps", checkpoints / "token_maps.npz", "--images", 3) == 0
    captured = capsys.readouterr()
    assert captured.err == ""
    assert captured.out.startswith(f"{out}: brecq-w4a6, KL of 1 held-out images ")
    assert [path.name for path in tmp_path.iterdir()] == [out.name]
    rounding = Rounding.load(out)
    assert rounding.recipe["name"] == "brecq-w4a6"
    assert rounding.report["settings"]["iterations"] == 2
    assert rounding.report["images"] == 2


def test_a_folder_of_token_maps_and_shift_and_sum(checkpoints: Path, tmp_path: Path) -> None:
    out = tmp_path / "rounding.safetensors"
    arguments = ("--calibration", checkpoints / "maps", "--theta", 0.1, "--places", "1,2,3,4")
    assert run(checkpoints, out, *arguments, recipe="ours-w4a6") == 0
    assert Rounding.load(out).report["shift_and_sum"] == {"theta": 0.1, "places": [1, 2, 3, 4]}


def test_a_finished_unit_is_not_learned_again(
    checkpoints: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "rounding.safetensors"
    maps = ("--token-maps", checkpoints / "token_maps.npz")
    work = tmp_path / "rounding.safetensors.partial"
    work.mkdir()
    (work / "settings.json").write_text("{}")
    assert run(checkpoints, out, *maps) == 2
    assert f"{work}: was begun with recipe.name unset instead of brecq-w4a6, " in capsys.readouterr().err


@pytest.mark.parametrize("interrupted", ["while observing", "while learning"])
def test_an_interrupt_tells_how_to_go_on(
    checkpoints: Path,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    interrupted: str,
) -> None:
    """If there is anything to go on from."""
    out, maps = tmp_path / "rounding.safetensors", ("--token-maps", checkpoints / "token_maps.npz")
    work = tmp_path / "rounding.safetensors.partial"

    def interrupt(*arguments: object, **options: object) -> None:
        raise KeyboardInterrupt

    place = "calibrated" if interrupted == "while observing" else "_Reconstruction._learn"
    with monkeypatch.context() as patch:
        patch.setattr(f"nextscale.simulation.reconstruct.{place}", interrupt)
        assert run(checkpoints, out, *maps) == 130
    told = [line for line in capfd.readouterr().err.splitlines() if line]
    further = [f"what is finished is in {work}; the same command goes on from there"] if work.exists() else []
    assert told == [*further, "error: interrupted; nothing half-written was left"]
    assert work.exists() == (interrupted == "while learning")
    assert run(checkpoints, out, *maps) == 0
    assert [path.name for path in tmp_path.iterdir()] == [out.name]


BAD_USAGE = {
    "no maps": ((), "give either --calibration or --token-maps"),
    "both": (("--calibration", ".", "--token-maps", "none"), "give either --calibration or --token-maps"),
    "no such maps": (("--token-maps", "none.npz"), "none.npz: cannot be read"),
    "no such recipe": (("--token-maps", "x", "--recipe", "w3"), 'no recipe is named "w3"'),
    "nearest": (("--token-maps", "{maps}", "--recipe", "rtn-w4a6"), "recipe rtn-w4a6 rounds weights to nearest"),
    "theta": (("--token-maps", "{maps}", "--recipe", "ours-w4a6"), "has shift-and-sum: give --theta"),
    "no theta": (("--token-maps", "{maps}", "--theta", "0.1"), "has no shift-and-sum: leave out --theta"),
    "places": (
        ("--token-maps", "{maps}", "--recipe", "ours-w4a6", "--theta", "0.1", "--places", "1,2"),
        "places are [1, 2]; expected 4 numbers",
    ),
    "one image": (("--token-maps", "{maps}", "--images", "1"), "1 is not in the range"),
    "iterations": (("--iterations", "0"), "0 is not in the range"),
    "device": (("--token-maps", "{maps}", "--device", "tpu"), "'tpu' is not one of"),
    "out": (("--token-maps", "{maps}", "--out", "/proc/none/file.safetensors"), "no folder /proc/none"),
    "out of another kind": (("--token-maps", "{maps}", "--out", "r.txt"), "r.txt: rounding is written as safetensors"),
    "no such layer": (("--token-maps", "{maps}", "--recipe", "{maps}.toml"), 'layers."fc3" is not a linear layer of'),
    "preset and patch_nums": (
        ("--token-maps", "{maps}", "--preset", "var-d16"),
        "--preset does not go with --patch-nums",
    ),
    "demo and var": (("demo", "--token-maps", "{maps}"), "demo does not go with --var"),
}


@pytest.mark.parametrize(("usage", "message"), BAD_USAGE.values(), ids=BAD_USAGE.keys())
def test_bad_usage_is_one_line(
    checkpoints: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], usage: tuple[str, ...], message: str
) -> None:
    maps = str(checkpoints / "token_maps.npz")
    assert run(checkpoints, tmp_path / "out.safetensors", *(argument.format(maps=maps) for argument in usage)) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("error: ")
    assert captured.err.count("\n") == 1
    assert message in captured.err
    assert not any(tmp_path.iterdir())


def test_no_gpu_is_one_line(
    checkpoints: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    arguments = ("--token-maps", checkpoints / "token_maps.npz", "--device", "cuda")
    assert run(checkpoints, tmp_path / "out.safetensors", *arguments) == 2
    expected = "error: --device cuda: this torch finds no GPU; leave it out to compute on the CPU\n"
    assert capsys.readouterr().err == expected


def test_no_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--recipe", "brecq-w4a6", "--token-maps", "x", "--out", str(tmp_path / "out.safetensors")]
    assert main(["reconstruct", *arguments]) == 2
    assert "which model?" in capsys.readouterr().err


def test_an_existing_file_is_not_overwritten(
    checkpoints: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out.safetensors"
    out.write_text("mine")
    assert run(checkpoints, out, "--token-maps", checkpoints / "token_maps.npz") == 2
    assert "exists already" in capsys.readouterr().err
    assert out.read_text() == "mine"


BAD_MAPS = {
    "another length": ({"token_maps": MAPS[:, 1:]}, "token_maps: expected int64 [4, 30], found int64 [4, 29]"),
    "an entry too large": ({"token_maps": np.full_like(MAPS, V)}, "token_maps: expected 0 to 127, found 128 to 128"),
    "floats": ({"class_labels": LABELS.astype(float)}, "class_labels: expected int64 [4], found float64 [4]"),
}


@pytest.mark.parametrize(("changed", "message"), BAD_MAPS.values(), ids=BAD_MAPS.keys())
def test_token_maps_of_another_model(
    checkpoints: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    changed: dict[str, np.ndarray],
    message: str,
) -> None:
    path = tmp_path / "maps.npz"
    np.savez(path, **{"class_labels": LABELS, "token_maps": MAPS, **changed})  # type: ignore[arg-type]
    assert run(checkpoints, tmp_path / "out.safetensors", "--token-maps", path) == 2
    assert f"{path}: " in (error := capsys.readouterr().err)
    assert message in error
