"""The guard's reading and comparing; what it measures is no test."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

from nextscale.measure.statistics import Interval
from nextscale.runtime._errors import NextscaleError

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def guard(program: Callable[[str], ModuleType]) -> ModuleType:
    return program("guard")


def ratio(mean: float, half_width: float = 0.0) -> Interval:
    """An interval of mean * (1 +- half_width), roughly."""
    return Interval(mean, mean / (1 + half_width), mean * (1 + half_width))


@pytest.mark.parametrize(
    ("found", "regressed"),
    [
        (ratio(2.0), False),
        (ratio(3.0), False),
        (ratio(1.91), False),  # within the band of 5%
        (ratio(1.89), True),
        (ratio(1.89, 0.02), False),  # within the band and its own uncertainty
        (ratio(1.85, 0.02), True),
        (ratio(1.0, 0.3), True),
    ],
    ids=str,
)
def test_a_ratio_below_the_band_and_the_noise_regressed(guard: ModuleType, found: Interval, regressed: bool) -> None:
    (verdict,) = guard.judge({"a": ratio(2.0), "b": ratio(9.0)}, {"a": found}, 0.05)
    assert verdict.regressed == regressed
    assert guard.table([verdict])[-1].endswith("| regressed |" if regressed else "| ok |")


def test_uncertain_committed_ratios_allow_more(guard: ModuleType) -> None:
    limits = [guard.judge({"a": ratio(2.0, width)}, {"a": ratio(2.0, 0.01)}, 0.05)[0].limit for width in (0, 0.01, 0.1)]
    assert limits == sorted(limits, reverse=True)
    assert limits[0] == pytest.approx(2.0 * 0.95 / 1.01)


@pytest.mark.parametrize("name", ["w8a8_front.json", "table_c_var-d16_xeon.json"])
def test_committed_results_are_read(guard: ModuleType, name: str) -> None:
    baseline = guard.read_baseline(BENCHMARKS / "results" / name)
    assert baseline.ratios["default"].low < baseline.ratios["default"].mean < baseline.ratios["default"].high
    assert "fp32" not in baseline.ratios
    assert baseline.of_demo == name.startswith("w8a8")
    assert (baseline.batch, baseline.threads) == (1, 2)


@pytest.mark.parametrize("content", ["", "[]", "{}", json.dumps({"settings": {}, "machine": {"isa": []}})], ids=str)
def test_other_files_are_refused(guard: ModuleType, tmp_path: Path, content: str) -> None:
    path = tmp_path / "results.json"
    path.write_text(content)
    with pytest.raises(NextscaleError, match=r"results\.json: "):
        guard.read_baseline(path)


def test_a_missing_file_is_refused(guard: ModuleType, tmp_path: Path) -> None:
    with pytest.raises(NextscaleError, match="No such file"):
        guard.read_baseline(tmp_path / "none.json")
