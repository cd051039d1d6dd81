"""The loop of every timing: each contender has a turn in every round, in an order that changes from round to round.

In turns because a machine's speed drifts: a slow minute then slows all alike, and ratios are taken within a round. In a
new order because one that runs after a hungry one may find caches and clocks worse than others do. After a pause
because idle threads of some runtimes spin on for tens of milliseconds after their turn.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Hashable, Mapping, Sequence
from typing import TypeVar

import numpy as np

from nextscale.runtime._errors import NextscaleError

Log = Callable[[str], object]
Key = TypeVar("Key", bound=Hashable)
Sample = TypeVar("Sample")

PAUSE = 0.1  # seconds before each turn
LEAST_ROUNDS = 2  # for a confidence interval
ORDER = "interleaved, shuffled each round"


def interleave(
    turns: Mapping[Key, Callable[[int], Sample]],
    *,
    repetitions: int,
    warmup: int = 1,
    enough: Callable[[Mapping[Key, Sequence[Sample]]], bool] = lambda samples: False,
    minutes: float | None = None,
    optional: Collection[Key] = (),
    on_failure: Callable[[Key, NextscaleError], object] = lambda key, error: None,
    log: Log = lambda line: None,
) -> dict[Key, list[Sample]]:
    """Take every turn once a round.

    Args:
        turns: what is timed, and returns what it took; called with the number of the round, from 0. Rounds of warm-up
            have the number of the first round.
        repetitions: rounds that count.
        warmup: rounds before them.
        enough: asked after each round that counts; when it says so of the samples so far, it was the last.
        minutes: no round begins later than so long after the first that counts, but for the second one.
        optional: of turns; one that raises a NextscaleError is left out from then on.
        on_failure: told of it.
        log: called with a line of progress.
    Returns:
        what each turn returned in the rounds that count, in the order of `turns`.
    Raises:
        NextscaleError: a setting is out of range, or a turn that is not optional failed.
    """
    require_rounds(repetitions, warmup)
    samples: dict[Key, list[Sample]] = {key: [] for key in turns}
    for done in range(-warmup, repetitions):
        if done <= 0:
            begin = time.monotonic()
        if minutes is not None and done >= LEAST_ROUNDS and time.monotonic() - begin > 60 * minutes:
            break
        log(f"round {done + 1} of {repetitions}" if done >= 0 else "warming up")
        for key in shuffled(list(samples), done + warmup):
            time.sleep(PAUSE)
            try:
                sample = turns[key](max(done, 0))
            except NextscaleError as error:
                if key not in optional:
                    raise
                del samples[key]
                on_failure(key, error)
                continue
            if done >= 0:
                samples[key].append(sample)
        if done >= 0 and enough(samples):
            break
    return samples


def timed(work: Callable[[int], object]) -> Callable[[int], float]:
    """A turn that returns the seconds that `work` takes; `work` is called with the number of the round."""

    def turn(done: int) -> float:
        begin = time.perf_counter()
        work(done)
        return time.perf_counter() - begin

    return turn


def shuffled(keys: Sequence[Key], number: int) -> list[Key]:
    """The order of a round: the same for the same number."""
    return [keys[place] for place in np.random.default_rng(number).permutation(len(keys))]


def require_rounds(repetitions: int, warmup: int) -> None:
    """Raises NextscaleError where so many rounds cannot be measured."""
    if repetitions < LEAST_ROUNDS:
        raise NextscaleError(f"repetitions {repetitions}: expected at least {LEAST_ROUNDS}, for a confidence interval")
    if warmup < 0:
        raise NextscaleError(f"warmup {warmup}: expected at least 0")
