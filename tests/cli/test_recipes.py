from __future__ import annotations

from pathlib import Path

import pytest

from nextscale.cli.main import main
from nextscale.graph_passes.recipe import load_recipe, recipe_names


def test_all_recipes_are_listed_with_what_they_are(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["recipes"]) == 0
    captured = capsys.readouterr()
    assert captured.err == ""
    names = [line.split()[0] for line in captured.out.splitlines()[1:] if not line.startswith("  ")]
    assert names == recipe_names()
    assert {"default", "fp32", "rtn-w4a6"} <= set(names)
    words = captured.out.split()
    for name in names:
        assert set(load_recipe(name).description.split()) <= set(words), name


@pytest.mark.parametrize("name", ["default", "ours-w4a6"])
def test_a_recipe_is_printed_to_start_from(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """As a file of one's own it is the same recipe."""
    assert main(["recipes", name]) == 0
    path = tmp_path / f"{name}.toml"
    path.write_text(capsys.readouterr().out)
    assert load_recipe(str(path)) == load_recipe(name)


@pytest.mark.parametrize("name", ["w3", "", "../recipes/default"])
def test_an_unknown_recipe_is_one_line(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["recipes", name]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith(f'error: no recipe is named "{name}"; expected one of ')
    assert captured.err.count("\n") == 1


@pytest.mark.parametrize("name", ["mine.toml", "none.toml"])
def test_a_file_is_one_line_too(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its content is there already."""
    monkeypatch.chdir(tmp_path)
    Path("mine.toml").write_text("")
    assert main(["recipes", name]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1
    assert f'no recipe is named "{name}"' in captured.err
