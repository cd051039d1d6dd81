"""The recorded roundings: what is said of files that are as recorded, of another run, others, or missing."""

from __future__ import annotations

import hashlib
import importlib
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import click
import numpy as np
import pytest
from click.testing import CliRunner
from safetensors.numpy import save_file

from nextscale.graph_passes.recipe import load_recipe, recipe_names

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
TENSORS = {"bits.head": np.arange(6, dtype=np.uint8), "equalization.head": np.ones(2, np.float32)}


@pytest.fixture(scope="module")
def program() -> Iterator[ModuleType]:
    """The program, which finds its neighbours as it does when it is started."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(BENCHMARKS))
        yield importlib.import_module("learned_roundings")


@pytest.fixture
def folder(program: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """With one.safetensors and its record."""
    path = tmp_path / "one.safetensors"
    save_file(TENSORS, path, {"seconds": "1"})
    entry = program.Recorded("0" * 40, hashlib.sha256(path.read_bytes()).hexdigest(), program.tensors_sha256(path))
    monkeypatch.setattr(program, "ROUNDINGS", tmp_path)
    monkeypatch.setattr(program, "recorded", lambda: {"one": entry})
    return tmp_path


def test_every_recipe_that_learns_is_recorded(program: ModuleType) -> None:
    # Ranges by token are for models of users' own, whose rounding is learned with them.
    names = [name for name in recipe_names() if not name.startswith("token-")]
    learned = {name for name in names if load_recipe(name).weights.rounding == "reconstructed"}
    found = program.recorded()
    assert found.keys() == learned
    for name, entry in found.items():
        assert (
            (entry.theta is not None)
            == (entry.places is not None)
            == (load_recipe(name).attention.shift_and_sum != "off")
        )


def test_the_hash_of_tensors(program: ModuleType, tmp_path: Path) -> None:
    """Written out: sorted names, dtypes, shapes, bytes; metadata do not count."""
    expected = hashlib.sha256(b"bits.head uint8 (6,)" + bytes(range(6)) + b"equalization.head float32 (2,)")
    expected.update(b"\x00\x00\x80\x3f" * 2)
    for seconds in ("1", "2"):
        save_file(TENSORS, tmp_path / "file.safetensors", {"seconds": seconds})
        assert program.tensors_sha256(tmp_path / "file.safetensors") == expected.hexdigest()


def test_states(program: ModuleType, folder: Path) -> None:
    path = folder / "one.safetensors"

    def told() -> tuple[int, str]:
        result = CliRunner().invoke(program.main, [], catch_exceptions=False)
        return result.exit_code, result.stdout

    assert told() == (0, "one: as recorded\n")
    save_file(TENSORS, path, {"seconds": "2"})
    assert told() == (0, "one: as recorded, of another run\n")
    save_file(TENSORS | {"bits.head": np.zeros(6, np.uint8)}, path)
    assert told() == (1, "one: other bits\n")
    path.unlink()
    assert told() == (1, "one: missing\n")


def test_a_clone_without_the_history(program: ModuleType, folder: Path) -> None:
    (folder / "one.safetensors").unlink()
    result = CliRunner().invoke(program.main, ["--restore"], catch_exceptions=False)
    assert result.exit_code == 1
    assert "git fetch --unshallow" in result.stderr
    assert "`python benchmarks/reconstruct_demo.py --recipes one` learns it" in result.stderr
    assert not list(folder.iterdir())


def test_a_missing_file_names_the_commands(program: ModuleType, tmp_path: Path) -> None:
    learn = r"`python benchmarks/reconstruct_demo.py --recipes {}` learns it"
    restore = "`python benchmarks/learned_roundings.py --restore` brings it from git's history, "
    for name, way in (("default-w4a6", restore + learn), ("mine", learn)):
        path = tmp_path / f"{name}.safetensors"
        with pytest.raises(click.ClickException) as error:
            program.require_rounding(path)
        assert error.value.message == f"{path}: no such file; {way.format(name)}"
        path.touch()
        assert program.require_rounding(path) == path
