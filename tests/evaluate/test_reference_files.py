"""Statistics of real pictures that are none, and those of other tools."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nextscale.evaluate.image_metrics import frechet_distance
from nextscale.evaluate.image_statistics import Gaussian
from nextscale.evaluate.reference_statistics import read_reference
from nextscale.runtime._errors import NextscaleError
from nextscale.runtime._npz import array_shape

D = 4
GOOD = {"mu": np.zeros(D), "sigma": np.eye(D)}
WRONG: dict[str, dict[str, Any]] = {
    "no numbers": {**GOOD, "mu": np.full(D, np.nan)},
    "a negative covariance": {**GOOD, "sigma": -np.eye(D)},
    "one that is not symmetric": {**GOOD, "sigma": np.eye(D) + np.triu(np.ones((D, D)), 1)},
    "text": {**GOOD, "mu": np.array(["a"] * D)},
    "complex numbers": {**GOOD, "mu": np.zeros(D, complex)},
    "a number": {**GOOD, "mu": np.array(1.0)},
    "a column": {**GOOD, "mu": np.zeros((D, 1))},
    "another size": {**GOOD, "sigma": np.eye(D + 1)},
    "half of the compact form": {"correlations": np.zeros(10, np.int16)},
    "a triangle that is none": {
        "correlations": np.zeros(11, np.int16), "deviations": np.ones(4), "mean": np.zeros(4),
        "network": np.array("n"), "image_size": np.array(8), "images": np.array(9),
    },
    "scatter alone": {"scatter": np.array(1.0)},
    "nothing": {"a": np.zeros(3)},
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
def test_what_is_no_reference_is_one_line(name: str, tmp_path: Path) -> None:
    np.savez(tmp_path / "reference.npz", **WRONG[name])
    with pytest.raises(NextscaleError, match=r"reference\.npz"):
        read_reference(tmp_path / "reference.npz")


def test_pictures_beside_the_moments_are_not_read(tmp_path: Path) -> None:
    """ADM's file has ten thousand: here a header alone says so, and behind it is nothing."""
    path = tmp_path / "reference.npz"
    np.savez(path, **GOOD)
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        header, {"descr": "|u1", "fortran_order": False, "shape": (10000, 256, 256, 3)}
    )
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("arr_0.npy", header.getvalue())
    found = read_reference(path)
    assert found.image_size == 256
    assert array_shape(path, "arr_0") == (10000, 256, 256, 3)
    assert array_shape(path, "arr_1") is None
    np.testing.assert_array_equal(found.gaussian.covariance, np.eye(D))


def test_a_distance_that_is_no_number_is_told() -> None:
    ones = Gaussian(np.zeros(2), np.eye(2))
    with pytest.raises(NextscaleError, match="no numbers"):
        frechet_distance(ones, Gaussian(np.full(2, np.nan), np.eye(2)))
