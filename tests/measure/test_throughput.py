from __future__ import annotations

import json
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from nextscale.measure.contender import Contender
from nextscale.measure.throughput import measure, measure_processes
from nextscale.runtime.errors import NextscaleError

FAKE = Path(__file__).parents[1] / "fake_worker.py"


def fake(name: str, **settings: Any) -> Contender:
    return Contender(name, (sys.executable, str(FAKE), json.dumps({"name": name, **settings})))


def test_turns_rotate_and_ratios_are_paired(tmp_path: Path) -> None:
    log = tmp_path / "log"
    # The machine slows down: each round takes longer for both, in the same ratio.
    slow = fake("slow", log=str(log), seconds=[9, 2, 4, 8])
    fast = fake("fast", log=str(log), seconds=[9, 1, 2, 4], load_seconds=3)
    speeds, failures = measure([slow, fast], reference="slow", batches=[2], repetitions=3, seed=5)
    assert failures == {}
    assert log.read_text().split("\n")[:-1] == [
        *("fast 2 5", "slow 2 5"),  # warming up
        *("slow 2 5", "fast 2 5"),
        *("fast 2 6", "slow 2 6"),
        *("slow 2 7", "fast 2 7"),
    ]
    assert [speed.samples for speed in speeds] == [(2, 4, 8), (1, 2, 4)]
    assert [speed.images_per_second.mean for speed in speeds] == pytest.approx([2 * 3 / 14, 2 * 3 / 7])
    assert speeds[1].ratio is not None
    assert (speeds[1].ratio.low, speeds[1].ratio.mean, speeds[1].ratio.high) == pytest.approx((2, 2, 2))
    assert (speeds[1].load_seconds, speeds[1].peak_memory_bytes, speeds[1].versions["fake"]) == (3, 4000, "1")


def test_batches_ascend_so_that_peaks_are_their_own() -> None:
    speeds, _ = measure([fake("one")], batches=[8, 1], repetitions=2, warmup=0)
    assert [(speed.batch, speed.peak_memory_bytes) for speed in speeds] == [(1, 2000), (8, 4000)]
    assert speeds[0].ratio is None


def test_optional_contenders_may_fail() -> None:
    lines: list[str] = []
    speeds, failures = measure(
        [fake("sound")],
        optional=[
            fake("early", first='{"error": "no engine"}'),
            fake("late", die=1, replies=2, stderr="no memory"),
            fake("fine"),
        ],
        repetitions=3,
        log=lines.append,
    )
    assert [speed.name for speed in speeds] == ["sound", "fine"]
    assert all(len(speed.samples) == 3 for speed in speeds)
    assert failures == {"early": "early: no engine", "late": "late: no memory"}
    assert "leaving out late: no memory" in lines


def test_others_must_not_fail() -> None:
    with pytest.raises(NextscaleError, match="late: no memory"):
        measure([fake("sound"), fake("late", die=1, replies=1, stderr="no memory")])


@pytest.mark.parametrize(
    ("settings", "message"),
    [({"batches": []}, "batch sizes"), ({"batches": [0]}, "batch sizes"), ({"repetitions": 1}, "repetitions 1")],
    ids=str,
)
def test_bad_settings_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(NextscaleError, match=message):
        measure([fake("one")], **settings)


def test_processes_share_the_cpus_and_add_up() -> None:
    shares: list[list[int]] = []

    def contender(cpus: Sequence[int]) -> Contender:
        shares.append(list(cpus))
        return fake("pinned", seconds=[9, 2.0 / len(cpus)], sleep=0.01)

    found = measure_processes(contender, [3, 5, 7], counts=[1, 2], batches=[1, 4], repetitions=4)
    assert shares == [[3, 5, 7], [3], [5], [3], [5], [3, 5, 7]]
    assert [(speed.processes, speed.threads, speed.batch) for speed in found] == [
        (1, 3, 1),
        (1, 3, 4),
        (2, 1, 1),
        (2, 1, 4),
    ]
    assert [speed.images_per_second.mean for speed in found] == pytest.approx([1.5, 6, 1, 4])
    assert all(math.isfinite(speed.images_per_second.low) for speed in found)


def test_more_processes_than_cores_are_refused() -> None:
    with pytest.raises(NextscaleError, match="processes 3: expected 1 to 2"):
        measure_processes(lambda cpus: fake("one"), [0, 1], [1, 3], [1], 2)


@pytest.mark.parametrize("replies", [0, 1, 2])
def test_a_process_that_fails_ends_the_others(replies: int) -> None:
    def contender(cpus: Sequence[int]) -> Contender:
        return fake("sound") if cpus[0] else fake("late", die=1, replies=replies, stderr="no memory")

    with pytest.raises(NextscaleError, match="late: no memory"):
        measure_processes(contender, [0, 1], [2], [1], 4)
