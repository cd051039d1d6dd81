from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import ModuleType

from nextscale.runtime import Bundle, SessionOptions


def test_bundles_are_timed_by_name(program: Callable[[str], ModuleType], fake_bundle: Path) -> None:
    bundle = Bundle.open(fake_bundle)
    speeds = program("w8a8_front").measure_speeds({"fp32": bundle, "other": bundle}, SessionOptions(threads=1), 2, 3)
    assert list(speeds) == ["fp32", "other"]
    assert all((len(speed.samples), speed.batch) == (2, 3) for speed in speeds.values())
    assert speeds["fp32"].ratio_to(speeds["fp32"]).mean == 1


def test_own_recipes_are_found_by_name(program: Callable[[str], ModuleType]) -> None:
    find_recipe = program("recipe_bundles").find_recipe
    names = ("pair-max", "row-w4a6", "default")  # of both folders here, and one that comes with nextscale
    assert [find_recipe(name).name for name in names] == list(names)
