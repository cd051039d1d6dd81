from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import pytest

from nextscale.measure import interleaved
from nextscale.measure.interleaved import LEAST_ROUNDS, interleave, shuffled, timed
from nextscale.runtime._errors import NextscaleError


@pytest.fixture(autouse=True)
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The pauses asked for; none is made."""
    found: list[float] = []
    monkeypatch.setattr(interleaved.time, "sleep", found.append)
    return found


def recorder(asked: list[tuple[str, int]], name: str) -> Callable[[int], str]:
    def turn(done: int) -> str:
        asked.append((name, done))
        return f"{name}{done}"

    return turn


def test_each_has_a_turn_in_every_round_after_a_pause(pauses: list[float]) -> None:
    asked: list[tuple[str, int]] = []
    lines: list[str] = []
    found = interleave({name: recorder(asked, name) for name in "abc"}, repetitions=3, warmup=2, log=lines.append)
    assert found == {name: [f"{name}0", f"{name}1", f"{name}2"] for name in "abc"}
    assert list(found) == ["a", "b", "c"]
    rounds = [asked[first : first + 3] for first in range(0, len(asked), 3)]
    assert [{done for _, done in turns} for turns in rounds] == [{0}, {0}, {0}, {1}, {2}]
    assert all({name for name, _ in turns} == set("abc") for turns in rounds)
    assert lines == ["warming up", "warming up", "round 1 of 3", "round 2 of 3", "round 3 of 3"]
    assert pauses == [interleaved.PAUSE] * 15


def test_every_order_of_turns_is_about_as_frequent() -> None:
    """Each of the six orders of three 100 times in 600 rounds: five standard deviations are 46."""
    orders = Counter("".join(shuffled("abc", number)) for number in range(600))
    assert len(orders) == 6
    assert all(abs(count - 100) < 46 for count in orders.values())
    assert shuffled("abc", 7) == shuffled("abc", 7)


def failing(at: int) -> Callable[[int], int]:
    def turn(done: int) -> int:
        if done >= at:
            raise NextscaleError("it is gone")
        return done

    return turn


def test_an_optional_one_that_fails_is_left_out() -> None:
    failures: list[tuple[str, str]] = []
    found = interleave(
        {"sound": failing(99), "first": failing(0), "later": failing(2)},
        repetitions=4,
        optional=("first", "later"),
        on_failure=lambda name, error: failures.append((name, str(error))),
    )
    assert found == {"sound": [0, 1, 2, 3]}
    assert sorted(failures) == [("first", "it is gone"), ("later", "it is gone")]


def test_others_must_not_fail() -> None:
    with pytest.raises(NextscaleError, match="it is gone"):
        interleave({"sound": failing(99), "later": failing(1)}, repetitions=2, optional=("sound",))


def test_other_errors_stop_even_optional_ones() -> None:
    def broken(done: int) -> int:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        interleave({"broken": broken}, repetitions=2, optional=("broken",))


@pytest.mark.parametrize(
    ("repetitions", "warmup", "message"),
    [(1, 1, "repetitions 1: expected at least 2"), (2, -1, "warmup -1: expected at least 0")],
)
def test_bad_settings_are_refused(repetitions: int, warmup: int, message: str) -> None:
    with pytest.raises(NextscaleError, match=message):
        interleave({"a": failing(99)}, repetitions=repetitions, warmup=warmup)


def test_timed_work_is_told_its_round(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([10.0, 12.5])
    monkeypatch.setattr(interleaved.time, "perf_counter", lambda: next(clock))
    told: list[int] = []
    assert timed(told.append)(4) == 2.5
    assert told == [4]


def test_rounds_end_when_they_are_enough() -> None:
    asked: list[tuple[str, int]] = []
    turns = {name: recorder(asked, name) for name in "ab"}
    found = interleave(turns, repetitions=9, enough=lambda samples: min(map(len, samples.values())) == 3)
    assert found == {name: [f"{name}0", f"{name}1", f"{name}2"] for name in "ab"}
    assert len(asked) == 2 * (1 + 3)  # it is not asked after the warm-up


@pytest.mark.parametrize(("minutes", "rounds"), [(2.5, 3), (0.01, LEAST_ROUNDS), (100.0, 6)])
def test_no_round_begins_after_some_minutes(monkeypatch: pytest.MonkeyPatch, minutes: float, rounds: int) -> None:
    """A round takes a minute of this clock; that of the warm-up does not count, and two rounds are always timed."""
    clock = [0.0]

    def turn(done: int) -> float:
        clock[0] += 60
        return clock[0]

    monkeypatch.setattr("nextscale.measure.interleaved.PAUSE", 0)
    monkeypatch.setattr("nextscale.measure.interleaved.time.monotonic", lambda: clock[0])
    samples = interleave({"one": turn}, repetitions=6, warmup=3, minutes=minutes)
    assert samples["one"] == [60.0 * (4 + i) for i in range(rounds)]
