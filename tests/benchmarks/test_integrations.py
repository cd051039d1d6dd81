from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
from fake_contenders import fake_contender as fake

from nextscale.runtime.errors import NextscaleError


@pytest.fixture
def integrations(program: Callable[[str], ModuleType]) -> ModuleType:
    return program("integrations")


def ready(release: str) -> str:
    return f'{{"ready": true, "load_seconds": 1, "versions": {{"onnxruntime": "{release}"}}}}'


def test_programs_are_compared_with_the_first(integrations: ModuleType) -> None:
    turns = {
        "defaults": integrations.Turn(fake("defaults", seconds=[2])),
        "four": integrations.Turn(fake("four", seconds=[4]), batch=4),
    }
    speeds = integrations.measure_speeds(turns, 2)
    assert {name: speed.images_per_second.mean for name, speed in speeds.items()} == {"defaults": 0.5, "four": 1}
    assert speeds["defaults"].ratio.mean == 1
    assert speeds["four"].ratio.mean == pytest.approx(2)


def test_another_release_is_refused(integrations: ModuleType) -> None:
    turns = {name: integrations.Turn(fake(name, first=ready(release))) for name, release in (("a", "1"), ("b", "2"))}
    with pytest.raises(NextscaleError, match=r"b runs on onnxruntime 2, a on 1: build .* again"):
        integrations.measure_speeds(turns, 2)


WRITE = "import pathlib, sys; pathlib.Path(sys.argv[1]).touch()"


def test_starts_are_of_whole_processes(integrations: ModuleType, tmp_path: Path) -> None:
    found = integrations.measure_starts({name: [sys.executable, "-c", WRITE] for name in ("a", "b")}, 2)
    assert all(len(start.samples) == 2 and min(start.samples) > 0 for start in found.values())


@pytest.mark.parametrize(
    ("code", "message"), [("", "a: it wrote no picture"), ("import sys; sys.exit('no\\nbundle')", "a: no bundle")]
)
def test_a_program_without_a_picture_is_refused(integrations: ModuleType, code: str, message: str) -> None:
    with pytest.raises(NextscaleError, match=message):
        integrations.measure_starts({"a": [sys.executable, "-c", code]}, 2)
