from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
from fake_contenders import fake_contender as fake

from nextscale.runtime import Bundle, NextscaleError


@pytest.fixture
def integrations(program: Callable[[str], ModuleType]) -> ModuleType:
    return program("integrations")


def ready(release: str) -> str:
    return f'{{"ready": true, "load_seconds": 1, "versions": {{"onnxruntime": "{release}"}}}}'


def test_programs_are_compared_with_the_first(integrations: ModuleType) -> None:
    contenders = [fake("defaults", seconds=[2]), fake("four", seconds=[4])]
    speeds = integrations.measure_speeds(contenders, 2, {"four": 4})
    assert {name: speed.images_per_second.mean for name, speed in speeds.items()} == {"defaults": 0.5, "four": 1}
    assert speeds["defaults"].ratio.mean == 1
    assert speeds["four"].ratio.mean == pytest.approx(2)


def test_another_release_is_refused(integrations: ModuleType) -> None:
    contenders = [fake(name, first=ready(release)) for name, release in (("a", "1"), ("b", "2"))]
    with pytest.raises(NextscaleError, match=r"b runs on onnxruntime 2, a on 1: build .* again"):
        integrations.measure_speeds(contenders, 2)


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


def test_options_differ_from_the_defaults(integrations: ModuleType, fake_bundle: Path) -> None:
    """Each has a command of its own, but for the one that generates more images with the defaults."""
    bundle = Bundle.open(fake_bundle)
    commands = {contender.name: contender.command for contender in integrations.with_options(bundle, 2)}
    assert next(iter(commands)) == "defaults"
    assert commands[integrations.FOUR_IMAGES] == commands["defaults"]
    assert len(set(commands.values())) == len(commands) - 1
    assert "1 thread" not in {contender.name for contender in integrations.with_options(bundle, 1)}
