from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
from infinity_bundle import write_infinity_bundle

from nextscale.measure.profile_events import GenerationProfile, OperatorTime
from nextscale.measure.random_request import Subject
from nextscale.runtime import Bundle

SHAPES = {
    # u and d of 3 tokens; one product of 2 rows of 3; 3x3; four kernels of 2x2 of an upsampling one.
    ("PairLinear", ((1, 3, 8), (1, 3, 8), (1,), (1,), (1,), (1,), (8, 5), (5,))): (2 * 2 * 3 * 8 * 5, 8 * 5),
    ("Linear", ((2, 3, 8), (2,), (2,), (8, 5), (5,))): (2 * 2 * 3 * 8 * 5, 8 * 5),
    # Of no token, as the class's layers from the second stage on: no weight is read.
    ("Linear", ((2, 0, 8), (2,), (2,), (8, 5), (5,))): (0, 0),
    ("Convolution", ((1, 4, 6, 8), (), (5, 8, 3, 3), (5,), (5,))): (2 * 4 * 6 * 8 * 5 * 9, 8 * 5 * 9),
    ("Convolution", ((1, 4, 6, 8), (), *[(5, 8, 2, 2), (5,), (5,)] * 4)): (2 * 4 * 6 * 8 * 5 * 16, 8 * 5 * 16),
    # What is added to the result is none of the weights; a product of patches has them in columns.
    ("Convolution", ((1, 4, 6, 8), (), (5, 8, 3, 3), (5,), (5,), (1, 4, 6, 5))): (2 * 4 * 6 * 8 * 5 * 9, 8 * 5 * 9),
    ("Convolution", ((1, 4, 6, 8), (), (72, 5), (5,), (5,))): (2 * 4 * 6 * 8 * 5 * 9, 8 * 5 * 9),
    ("Attention", ((2, 3, 8), (2, 3, 8), (2, 3, 8))): (0, 0),
}


@pytest.mark.parametrize(("operator", "expected"), SHAPES.items())
def test_operations_are_counted_from_shapes(
    program: Callable[[str], ModuleType], operator: tuple[str, tuple[tuple[int, ...], ...]], expected: tuple[int, int]
) -> None:
    op_type, shapes = operator
    assert program("roofline").operations(OperatorTime("x", op_type, 1.0, 0, False, shapes)) == expected


def test_times_are_medians_of_the_sums(program: Callable[[str], ModuleType]) -> None:
    def profile(*seconds: float) -> GenerationProfile:
        operators = [OperatorTime(str(i), "Add", took, 0, False) for i, took in enumerate(seconds)]
        return GenerationProfile(sum(seconds), (sum(seconds),), tuple(operators))

    found = program("roofline").medians([profile(1.0, 2.0), profile(5.0, 5.0), profile(0.0, 1.0)])
    assert found == {("Add", 0): 3.0}


def test_limits_of_this_processor(program: Callable[[str], ModuleType]) -> None:
    if shutil.which("c++") is None:
        pytest.skip("no c++")
    found = program("roofline").limits(1)
    assert found["threads"] == 1
    assert found["memory"] > 1e8
    assert all(rate > 1e9 for name, rate in found.items() if name not in ("threads", "memory"))


def test_the_size_and_the_text_are_told_where_there_is_a_choice(
    program: Callable[[str], ModuleType], fake_bundle: Path, tmp_path: Path
) -> None:
    shown = program("roofline")._shown
    assert shown(Bundle.open(fake_bundle), Subject()) == ""
    infinity = Bundle.open(write_infinity_bundle(tmp_path / "it"))
    assert shown(infinity, Subject(1, 5)) == ", 32x32 pixels, texts of 5 tokens"
