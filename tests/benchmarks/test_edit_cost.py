"""benchmarks/edit_cost.py: what it times, and the table."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from nextscale.runtime import Generator


@pytest.fixture(scope="module")
def edit_cost(program: Callable[[str], ModuleType]) -> ModuleType:
    return program("edit_cost")


def test_each_part_runs(edit_cost: ModuleType, fake_encoder_bundle: Path) -> None:
    turns = edit_cost.turns(Generator(fake_encoder_bundle))
    assert list(turns) == ["generate", "edit", "encode", "mask and seam"]
    for turn in turns.values():
        assert turn(0) > 0


def test_the_picture_is_smooth(edit_cost: ModuleType) -> None:
    picture = edit_cost.smooth_picture((64, 48))
    assert (picture.shape, picture.dtype) == ((64, 48, 3), np.uint8)
    assert picture.std(axis=(0, 1)).min() > 50
    for axis in (0, 1):
        assert np.abs(np.diff(picture.astype(int), axis=axis)).max() < 20


def test_ratios_are_of_the_same_round(edit_cost: ModuleType) -> None:
    seconds = {"generate": [1.0, 4.0], "edit": [1.5, 6.0], "encode": [0.25, 1.0], "mask and seam": [0.002, 0.002]}
    assert edit_cost.table({"stock": seconds})[-1] == (
        "| stock | 2.500 | 3.750 | 1.500 [1.500, 1.500] | 0.250 [0.250, 0.250] | 625 | 2.0 |"
    )
