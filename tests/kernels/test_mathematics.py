"""exp, reciprocal, GELU and SiLU of the kernels: errors against float64, and the same bits of plain C++ and AVX2."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from operator_oracle import gelu_tanh

Array = NDArray[Any]
SOURCES = Path(__file__).parents[2] / "kernels" / "src"
LANES, COUNT = 16, 1 << 16


def silu(x: Array) -> Array:
    result: Array = x / (1 + np.exp(np.minimum(-x, 700)))
    return result


Run = Callable[[str, Array], Array]


@pytest.fixture(scope="module")
def programs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Run]:
    """By instruction set, a function of a name and float32 numbers, run by a program of its own."""
    compiler, known = shutil.which("c++"), Path("/proc/cpuinfo")
    if compiler is None:
        pytest.skip("no C++ compiler")
    sets: dict[str, list[str]] = {"portable": []}
    if known.exists() and {"avx2", "fma"} <= set(known.read_text().split()):
        sets["avx2"] = ["-mavx2", "-mfma"]
    folder = tmp_path_factory.mktemp("mathematics")
    source = Path(__file__).with_name("mathematics.cc")
    for name, flags in sets.items():
        options = ["-O2", "-std=c++17", "-ffp-contract=off", "-fno-math-errno", f"-I{SOURCES}", *flags]
        subprocess.run([compiler, *options, str(source), "-o", str(folder / name)], check=True, capture_output=True)

    def runner(program: Path) -> Run:
        def run(name: str, x: Array) -> Array:
            given = x.astype(np.float32).tobytes()
            done = subprocess.run([program, name], input=given, capture_output=True, check=True)
            return np.frombuffer(done.stdout, np.float32)

        return run

    return {name: runner(folder / name) for name in sets}


@pytest.fixture
def compiled(programs: dict[str, Run]) -> Run:
    """Plain C++: all others give the same bits."""
    return programs["portable"]


def numbers(low: float, high: float) -> Array:
    assert COUNT % LANES == 0
    return np.random.default_rng(0).uniform(low, high, COUNT).astype(np.float32)


def units(found: Array, exact: Array) -> Array:
    """Errors in units in the last place of the exact result."""
    error: Array = np.abs(found - exact) / np.spacing(np.abs(exact).astype(np.float32)).astype(np.float64)
    return error


@pytest.mark.parametrize(
    ("name", "exact", "low", "high", "allowed"),
    [
        ("exp", np.exp, -1, 1, 1),
        ("exp", np.exp, -20, 20, 1.5),
        ("exp", np.exp, -87, 88, 5),
        ("reciprocal", np.reciprocal, 1, 2, 1),
        ("reciprocal", np.reciprocal, 1, 1e9, 1),
        ("gelu_tanh", gelu_tanh, -1, 10, 4),
        ("silu", silu, -1, 10, 3),
        ("silu", silu, -20, 0, 5),
    ],
)
def test_errors_in_units_in_the_last_place(
    compiled: Run,
    name: str,
    exact: Callable[[Array], Array],
    low: float,
    high: float,
    allowed: float,
) -> None:
    x = numbers(low, high)
    assert units(compiled(name, x), exact(x.astype(np.float64))).max() <= allowed


@pytest.mark.parametrize(("name", "exact"), [("gelu_tanh", gelu_tanh), ("silu", silu)])
def test_activations_are_exact_to_a_share_of_the_number(
    compiled: Run, name: str, exact: Callable[[Array], Array]
) -> None:
    """Also where they vanish: the exponent -2u then has a rounding of its own size."""
    x = np.concatenate([numbers(-10, 10), numbers(-1000, 1000), numbers(-1e-3, 1e-3)])
    error = np.abs(compiled(name, x) - exact(x.astype(np.float64)))
    assert np.all(error <= 3 * np.finfo(np.float32).eps * np.abs(x))


def test_what_lies_beyond_the_ranges(compiled: Run) -> None:
    x = np.array([-np.inf, -1e30, -88, 0.0, 1e30, np.inf] + [0] * 10, np.float32)
    assert compiled("exp", x[:4].repeat(4))[0] == compiled("exp", np.full(LANES, -87, np.float32))[0]
    for name in ("gelu_tanh", "silu"):
        y = compiled(name, x)
        np.testing.assert_array_equal(y[3:5], x[3:5])
        assert np.all(np.abs(y[1:3]) <= 1e-17 * np.abs(x[1:3]))


@pytest.mark.parametrize("name", ["exp", "reciprocal", "gelu_tanh", "silu"])
def test_the_same_bits(programs: dict[str, Run], name: str) -> None:
    x = numbers(1e-3, 80) if name == "reciprocal" else numbers(-90, 80)
    for run in programs.values():
        np.testing.assert_array_equal(run(name, x).view(np.uint32), programs["portable"](name, x).view(np.uint32))
