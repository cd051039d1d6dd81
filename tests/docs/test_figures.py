"""Figures that pages and commands name are those of the result files."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from nextscale.evaluate.teacher_forced import KL_IN_WORDS

ROOT = Path(__file__).parents[2]
RECIPES = ("default", "static-w8a8", "default-w4a6", "ours-w8a8", "rtn-w8a8")


def result(name: str) -> Any:
    return json.loads((ROOT / "benchmarks" / "results" / f"{name}.json").read_text(encoding="utf-8"))


AGREEMENTS = {**result("recipes"), **result("table_1")}
PICTURES = {(row["recipe"], row["seed"]): row for row in result("images")}


def numbers(text: str) -> list[float]:
    return [float(number) for number in re.findall(r"\d+(?:\.\d+)?", text)]


def test_the_words_about_kl() -> None:
    _, near, float32, rise, middle, steep, far = numbers(KL_IN_WORDS)
    fid = PICTURES["fp32", 0]["fid_e"]
    assert float32 == round(fid)
    assert near == round(AGREEMENTS["default"]["kl"], 3)
    assert (rise, middle) == (
        round(PICTURES["default-w4a6", 0]["fid_e"] - fid),
        round(AGREEMENTS["default-w4a6"]["kl"], 2),
    )
    assert (steep, far) == (round(PICTURES["rtn-w8a8", 0]["fid_e"] - fid), round(AGREEMENTS["rtn-w8a8"]["kl"], 1))
    # "cannot tell": no farther from full precision's pictures than full precision's of other seeds.
    seeds = [PICTURES["fp32", seed]["fid_e_to_full_precision"] for seed in (1, 2)]
    assert PICTURES["default", 0]["fid_e_to_full_precision"] < min(seeds)


@pytest.mark.parametrize("recipe", RECIPES)
def test_the_table_of_quality(recipe: str) -> None:
    page = (ROOT / "docs" / "results.md").read_text(encoding="utf-8").partition("## Quality")[2]
    (row,) = [line for line in page.splitlines() if re.match(rf"\|[^|]*`{recipe}`", line)]
    cells = [cell.strip() for cell in row.strip("|").split("|")][2:]
    agreement, pictures = AGREEMENTS[recipe], PICTURES[recipe, 0]
    assert cells == [
        f"{agreement['kl']:.4f}",
        f"{agreement['top1']:.1%}",
        f"{pictures['fid_e']:.1f}",
        f"{pictures['fid_e_to_full_precision']:.2f}",
    ]
