"""Quantize against NumPy, on each instruction set."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from operator_session import Operator


@pytest.mark.parametrize("bits", [2, 8])
@pytest.mark.parametrize("shape", [(1, 1, 1), (2, 5, 37), (3, 100, 64)])
def test_static_ranges_clip_and_round_ties_to_even(
    ops_library: Path, isa: str, shape: tuple[int, int, int], bits: int
) -> None:
    rng = np.random.default_rng(1)
    x = (rng.integers(-600, 600, shape) / 4).astype(np.float32)  # of a scale of 0.5, every other one a tie
    scale, zero_point = np.array(0.5, np.float32), np.array(1, np.uint8)
    operator = Operator(
        ops_library,
        "Quantize",
        {"x": x, "scale": scale, "zero_point": zero_point},
        ["codes"],
        isa=isa,
        ranges="static",
        bits=bits,
    )
    (codes,) = operator()
    expected = np.clip(np.rint(x / scale) + zero_point, 0, 2**bits - 1).astype(np.uint8)
    np.testing.assert_array_equal(codes, expected)
