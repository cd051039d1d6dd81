"""The worked example of docs/quantization.md, computed with NumPy from the definitions of that page."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import numpy as np
import pytest

PAGE = (Path(__file__).parents[2] / "docs" / "quantization.md").read_text(encoding="utf-8")
EXAMPLE = PAGE.partition("## One number through all of it\n")[2].partition("\n## ")[0]
EQUATIONS = re.findall(r"`([^`=]*\d[^`=]*) = (-?[\d.]+)`", EXAMPLE)

WEIGHTS = np.array([-0.508, 0.242, 0.1234])  # smallest, largest, and the one that is followed
INPUTS = np.array([-1.2, 3.9, 0.777, 0.705])  # smallest, largest, with the class, without
DIFFERENCES = np.array([-0.16, 0.095, INPUTS[2] - INPUTS[3]])
GUIDANCE = 4


def value(expression: str) -> float:
    """What an expression of numbers, + - x /, brackets and round comes to."""
    tree = ast.parse(expression.replace(" x ", " * "), mode="eval")
    names = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
    assert names <= {"round"}
    return float(eval(compile(tree, "", "eval"), {"__builtins__": {}, "round": np.round}))


def row(name: str) -> list[str]:
    """The cells of the one row of that name."""
    (line,) = [line for line in EXAMPLE.splitlines() if line.startswith(f"| {name} |")]
    return [cell.strip().removesuffix("`") for cell in line.strip("|").split("|")[1:]]


def affine(low: float, high: float, bits: int) -> tuple[float, float]:
    """Scale and zero point, Eq. 1 to 3."""
    scale = (high - low) / (2**bits - 1)
    return scale, float(np.clip(np.rint(-low / scale), 0, 2**bits - 1))


def codes(values: np.ndarray, scale: float, zero_point: float, bits: int) -> np.ndarray:
    return np.clip(np.rint(values / scale) + zero_point, 0, 2**bits - 1)


def test_there_are_equations() -> None:
    assert len(EQUATIONS) >= 25


@pytest.mark.parametrize(("expression", "result"), EQUATIONS)
def test_an_equation_holds_to_the_digits_shown(expression: str, result: str) -> None:
    step = 10.0 ** -len(result.partition(".")[2])
    assert abs(value(expression) - float(result)) <= 0.51 * step


def test_products_at_w8a8_and_w4a6() -> None:
    weight_scale = np.abs(WEIGHTS).max() / 127
    weight = np.clip(np.rint(WEIGHTS[2] / weight_scale), -127, 127)
    scale, zero_point = affine(INPUTS[0], INPUTS[1], 8)
    wide = (codes(INPUTS[2], scale, zero_point, 8) - zero_point) * weight
    low_scale, low_zero = affine(WEIGHTS[0], WEIGHTS[1], 4)
    low_weight = codes(WEIGHTS[2], low_scale, low_zero, 4) - low_zero
    narrow_scale, narrow_zero = affine(INPUTS[0], INPUTS[1], 6)
    narrow = (codes(INPUTS[2], narrow_scale, narrow_zero, 6) - narrow_zero) * low_weight
    integers, floats = row("integers"), row("float")
    assert integers[0].endswith(f"= {wide:.0f}")
    assert integers[1].endswith(f"= {narrow:.0f}")
    assert floats[0].endswith(f"= {wide * scale * weight_scale:.5f}")
    assert floats[1].endswith(f"= {narrow * narrow_scale * low_scale:.6f}")
    assert row("exact") == [f"{INPUTS[2] * WEIGHTS[2]:.7f}"] * 2


def test_the_guided_pair() -> None:
    weight_scale = np.abs(WEIGHTS).max() / 127
    weight = np.rint(WEIGHTS[2] / weight_scale) * weight_scale
    scale, zero_point = affine(INPUTS[0], INPUTS[1], 8)
    conditional, unconditional = (codes(INPUTS[2:], scale, zero_point, 8) - zero_point) * scale * weight
    fine, fine_zero = affine(DIFFERENCES[0], DIFFERENCES[1], 8)
    difference = (codes(DIFFERENCES[2], fine, fine_zero, 8) - fine_zero) * fine * weight
    exact = (INPUTS[2] + GUIDANCE * (INPUTS[2] - INPUTS[3])) * WEIGHTS[2]
    rows = conditional + GUIDANCE * (conditional - unconditional)
    pair = unconditional + difference + GUIDANCE * difference
    guided = row("guided")
    assert guided[0].endswith(f"= {rows:.4f}")
    assert guided[1].endswith(f"= {pair:.5f}")
    assert row("exact, guided")[1] == f"{exact:.6f}"
    assert f"from {rows - exact:.3f} to {pair - exact:.5f}," in EXAMPLE
