"""AddCodes against float64, on each instruction set; what it refuses."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from operator_session import Operator

Array = NDArray[Any]
ORDER = ("x", "codes", "scale", "more_codes", "more_scale", "offset")


def arrays(shape: tuple[int, int, int], *names: str) -> dict[str, Array | None]:
    rng = np.random.default_rng(sum(shape))
    channels = shape[2]
    made = {
        "x": rng.normal(0, 3, shape).astype(np.float32),
        "codes": rng.integers(0, 256, shape).astype(np.uint8),
        "scale": rng.uniform(0.01, 0.1, channels).astype(np.float32),
        "more_codes": rng.integers(0, 256, shape).astype(np.uint8),
        "more_scale": rng.uniform(0.01, 0.1, channels).astype(np.float32),
        "offset": rng.normal(size=channels).astype(np.float32),
    }
    return {name: made[name] if name in (*names, "codes", "scale") else None for name in ORDER}


@pytest.mark.parametrize("names", [(), ("x",), ("x", "offset"), ("more_codes", "more_scale", "offset"), ("offset",)])
@pytest.mark.parametrize("shape", [(1, 1, 1), (2, 5, 37), (2, 700, 64), (0, 3, 8), (1, 0, 8)])
def test_sums(ops_library: Path, isa: str, shape: tuple[int, int, int], names: tuple[str, ...]) -> None:
    given = arrays(shape, *names)
    exact = given["scale"].astype(np.float64) * given["codes"]
    size = np.abs(exact)
    terms = [given[name] for name in ("x", "offset") if given[name] is not None]
    if given["more_codes"] is not None:
        terms.append(given["more_scale"].astype(np.float64) * given["more_codes"])
    for term in terms:
        exact, size = exact + term, size + np.abs(term)
    (found,) = Operator(ops_library, "AddCodes", given, ["y"], isa=isa)()
    assert found.dtype == np.float32
    assert np.all(np.abs(found - exact) <= 3 * 2.0**-24 * size)  # at most three roundings
    for threads in (1, 2, 3):
        again = Operator(ops_library, "AddCodes", given, ["y"], isa="portable", threads=threads)()[0]
        np.testing.assert_array_equal(again, found)


def test_shapes_that_do_not_fit_are_refused(ops_library: Path) -> None:
    given = arrays((1, 3, 8), "x", "offset")
    run = Operator(ops_library, "AddCodes", given, ["y"])
    for name, array, message in (
        ("x", np.zeros((1, 4, 8), np.float32), r"x has the shape \[1, 4, 8\], expected \[1, 3, 8\]"),
        ("scale", np.ones(1, np.float32), r"scale has the shape \[1\], expected \[8\]"),
        ("offset", np.ones(9, np.float32), r"offset has the shape \[9\], expected \[8\]"),
    ):
        with pytest.raises(Exception, match=r"nextscale\.AddCodes: the input " + message):
            run(**{name: array})
    with pytest.raises(Exception, match="more_codes are for want of x"):
        Operator(ops_library, "AddCodes", arrays((1, 3, 8), "x", "more_codes", "more_scale"), ["y"])
    with pytest.raises(Exception, match="the input more_scale is missing"):
        Operator(ops_library, "AddCodes", arrays((1, 3, 8), "more_codes"), ["y"])()
