from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from nextscale.calib_data._work_folder import SETTINGS, open_work
from nextscale.runtime._errors import NextscaleError, OutputError

BEGUN: dict[str, Any] = {"seed": 3, "recipe": {"bits": 4, "layers": {"fc2": "float"}}, "stages": (1, 2)}


def test_the_same_settings_go_on(tmp_path: Path) -> None:
    work = tmp_path / "new" / "work"
    assert not open_work(work, BEGUN)
    assert [path.name for path in work.iterdir()] == [SETTINGS]
    (work / "finished").touch()
    assert open_work(work, BEGUN)
    assert open_work(work, {**BEGUN, "stages": [1, 2]})


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({**BEGUN, "seed": 4}, "seed 3 instead of 4;"),
        ({**BEGUN, "recipe": {"bits": 4, "layers": {"fc2": "image"}}}, "recipe.layers.fc2 float instead of image;"),
        ({**BEGUN, "recipe": {"bits": 4, "layers": {}}}, "recipe.layers.fc2 float instead of unset;"),
        ({**BEGUN, "top_k": 900}, "top_k unset instead of 900;"),
        ({"a": 1}, "a unset instead of 1, seed 3 instead of unset, recipe.bits 4 instead of unset and 2 more;"),
    ],
)
def test_others_are_refused_by_name(tmp_path: Path, settings: dict[str, Any], message: str) -> None:
    open_work(tmp_path, BEGUN)
    before = (tmp_path / SETTINGS).read_bytes()
    with pytest.raises(NextscaleError) as refused:
        open_work(tmp_path, settings)
    assert str(refused.value) == (
        f"{tmp_path}: was begun with {message} give the same again to go on, or remove it to begin again"
    )
    assert (tmp_path / SETTINGS).read_bytes() == before


DAMAGED = {
    "empty": "",
    "list": "[]",
    "3": "3",
    "deep": "[" * 100_000,
    "as deep as JSON may be": '{"a":' * 980 + "1" + "}" * 980,
    "0xff": "\xff",
}


@pytest.mark.parametrize("content", DAMAGED.values(), ids=DAMAGED)
def test_damaged_settings_are_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / SETTINGS).write_text(content, "latin-1")
    with pytest.raises(NextscaleError) as refused:
        open_work(tmp_path, BEGUN)
    assert str(refused.value) == f"{tmp_path / SETTINGS}: damaged; remove {tmp_path} or choose another --out"


def test_a_folder_of_something_else_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "precious").write_text("content")
    with pytest.raises(NextscaleError, match=r"settings\.json: missing; remove .* or choose another --out"):
        open_work(tmp_path, BEGUN)
    assert [path.name for path in tmp_path.iterdir()] == ["precious"]


def test_a_folder_that_cannot_be_made_is_one_line() -> None:
    with pytest.raises(OutputError, match=r"/proc/none/work: cannot be made .*; choose another --out"):
        open_work(Path("/proc/none/work"), BEGUN)
