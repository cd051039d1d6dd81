from __future__ import annotations

import os
from pathlib import Path

import pytest
from fake_contenders import fake_contender as fake

from nextscale.measure.contest import MINIMUM_ROUNDS, Contest
from nextscale.measure.speed import Speed
from nextscale.runtime._errors import NextscaleError


def gone(pid: str) -> bool:
    try:
        os.kill(int(pid), 0)
    except ProcessLookupError:
        return True
    return False


def test_rounds_share_a_seed_and_ratios_are_paired(tmp_path: Path) -> None:
    log = tmp_path / "log"
    # The machine slows down: each round takes longer for both, in the same ratio.
    slow = fake("slow", log=str(log), seconds=[9, 2, 4, 8])
    fast = fake("fast", log=str(log), seconds=[8, 1, 2, 4], load_seconds=3)
    with Contest([slow, fast]) as contest:
        speeds = contest.speeds(2, repetitions=3, seed=5, reference="slow")
    assert contest.failures == {}
    lines = log.read_text().splitlines()
    assert [sorted(lines[first : first + 2]) for first in range(0, 8, 2)] == [
        [f"fast 2 {seed}", f"slow 2 {seed}"] for seed in (5, 5, 6, 7)
    ]
    assert [speed.samples for speed in speeds] == [(2, 4, 8), (1, 2, 4)]
    assert [speed.images_per_second.mean for speed in speeds] == pytest.approx([2 * 3 / 14, 2 * 3 / 7])
    assert [speed.image_seconds.mean for speed in speeds] == pytest.approx([14 / 6, 7 / 6])
    ratio = speeds[1].ratio
    assert ratio is not None
    assert (ratio.low, ratio.mean, ratio.high) == pytest.approx((2, 2, 2))
    assert (speeds[1].load_seconds, speeds[1].first_seconds, speeds[1].peak_memory_bytes) == (3, 8, 4000)
    assert speeds[1].versions["fake"] == "1"
    assert all(gone(speed.versions["pid"]) for speed in speeds)


def test_processes_go_on_from_batch_to_batch() -> None:
    with Contest([fake("one", seconds=[7, 1, 1, 5, 1])]) as contest:
        speeds = [speed for batch in (1, 8) for speed in contest.speeds(batch, repetitions=2, warmup=1)]
    assert [(speed.batch, speed.first_seconds, speed.peak_memory_bytes) for speed in speeds] == [
        (1, 7, 3000),
        (8, 5, 6000),
    ]
    assert speeds[0].ratio is None


def test_each_may_have_a_batch_of_its_own() -> None:
    """Images per second count, not batches."""
    with Contest([fake("single", seconds=[1]), fake("four", seconds=[2])]) as contest:
        single, four = contest.speeds({"single": 1, "four": 4}, repetitions=2, reference="single")
    assert (single.images_per_second.mean, four.images_per_second.mean) == (1, 2)
    assert four.ratio is not None
    assert four.ratio.mean == pytest.approx(2)


def test_parts_of_an_image_are_told_where_they_are_known() -> None:
    reply = '{"seconds": 8, "peak_memory_bytes": 1, "stage_seconds": [1, 3], "decoder_seconds": 4}'
    with Contest([fake("parts", reply=reply), fake("whole")]) as contest:
        parts, whole = contest.speeds(2, repetitions=2)
    assert [stage.mean for stage in parts.stage_seconds] == [0.5, 1.5]
    assert parts.decoder_seconds is not None
    assert parts.decoder_seconds.mean == 2
    assert (whole.stage_seconds, whole.decoder_seconds) == ((), None)


def test_two_of_one_name_are_two() -> None:
    with Contest([fake("twin", seconds=[1]), fake("twin", seconds=[2])]) as contest:
        speeds = contest.speeds(repetitions=2, reference="twin")
    assert [(speed.name, speed.ratio.mean if speed.ratio else None) for speed in speeds] == [
        ("twin", 1),
        ("twin", 0.5),
    ]


def test_optional_contenders_may_fail() -> None:
    lines: list[str] = []
    early, late = fake("early", first='{"error": "no engine"}'), fake("late", die=1, replies=2, stderr="no memory")
    with Contest([fake("sound")], optional=[early, late, fake("fine")], log=lines.append) as contest:
        assert [worker.contender.name for worker in contest.workers] == ["sound", "late", "fine"]
        speeds = contest.speeds(repetitions=3, reference="sound")
        again = contest.speeds(2, repetitions=2)
    assert [speed.name for speed in speeds] == [speed.name for speed in again] == ["sound", "fine"]
    assert all(len(speed.samples) == 3 for speed in speeds)
    assert contest.failures == {"early": "early: no engine", "late": "late: no memory"}
    assert "leaving out late: no memory" in lines
    assert "batch 1: round 3 of 3" in lines


def test_ratios_are_none_without_the_reference() -> None:
    with Contest([fake("sound")], optional=[fake("gone", die=1)]) as contest:
        speeds = contest.speeds(repetitions=2, reference="gone")
    assert [(speed.name, speed.ratio) for speed in speeds] == [("sound", None)]


@pytest.mark.parametrize("settings", [{"die": 1, "replies": 1}, {"first": '{"error": "no memory"}'}], ids=str)
def test_others_must_not_fail(settings: dict[str, object]) -> None:
    def all_speeds() -> list[Speed]:
        with Contest([fake("sound"), fake("late", stderr="no memory", **settings)]) as contest:
            return contest.speeds(repetitions=2)

    with pytest.raises(NextscaleError, match="late: no memory"):
        all_speeds()


def test_a_batch_of_nothing_is_refused() -> None:
    with Contest([fake("one")]) as contest, pytest.raises(NextscaleError, match=r"batch sizes \[0\]: expected"):
        contest.speeds(0)


def test_rounds_go_on_until_ratios_are_known() -> None:
    # Ratios of 2 and 2.2 by turns: the half width falls below 3% after some rounds; the machine's drift is no matter.
    slow, fast = [2.0, 4, 8, 16] * 10, [1.0, 4 / 2.2, 4, 16 / 2.2] * 10
    contenders = [fake("slow", seconds=slow), fake("fast", seconds=fast)]
    for half_width, wanted in ((0.03, (12, 16)), (1.0, (MINIMUM_ROUNDS, MINIMUM_ROUNDS)), (1e-3, (30, 30))):
        with Contest(contenders) as contest:
            speeds = contest.speeds(repetitions=30, warmup=0, reference="slow", half_width=half_width)
        assert wanted[0] <= len(speeds[1].samples) <= wanted[1]
        assert speeds[1].ratio is not None
        assert (speeds[1].ratio.log_half_width <= half_width) is (half_width > 1e-3)


def test_without_a_reference_no_round_is_the_last_before_its_time() -> None:
    with Contest([fake("one")]) as contest:
        assert len(contest.speeds(repetitions=12, half_width=1.0)[0].samples) == 12
