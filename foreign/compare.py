"""Two forms of one model on the same samples: how far their outputs are apart, and how long they take."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from time import perf_counter
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nextscale.foreign.own_errors import Error, comparable
from nextscale.foreign.running import Running
from nextscale.foreign.samples import Arrays, Samples
from nextscale.measure.interleaved import interleave
from nextscale.runtime._errors import NextscaleError

# Relative difference of one sample alone and in a batch that is no more than rounding.
SAME = 1e-3


@dataclass(frozen=True)
class Difference:
    """Of an output to the float model's, over all samples.

    Attributes:
        mean, largest: of the absolute difference.
        error: the relative one.
    """

    mean: float
    largest: float
    error: Error


@dataclass(frozen=True)
class Compared:
    """A model's outputs with the float model's.

    Attributes:
        differences: of the outputs of numbers, by name.
        left: names of outputs that are no tensors of numbers, or whose shapes differ.
    """

    differences: Mapping[str, Difference]
    left: tuple[str, ...]


class _Sums:
    """What is added up of an output."""

    def __init__(self) -> None:
        self.count, self.off, self.largest, self.signal, self.noise = 0, 0.0, 0.0, 0.0, 0.0

    def add(self, exact: NDArray[Any], found: NDArray[Any]) -> None:
        exact, found = comparable(exact, found)
        off = np.abs(found - exact)
        self.count += off.size
        self.off += float(off.sum())
        self.largest = max(self.largest, float(off.max(initial=0)))
        self.signal += float(np.square(exact).sum())
        self.noise += float(np.square(off).sum())

    def difference(self) -> Difference:
        return Difference(self.off / max(self.count, 1), self.largest, Error.of_squares(self.signal, self.noise))


def compare(exact: Running, others: Sequence[Running], samples: Samples) -> list[Compared]:
    """Run models on the samples, one after the other, and compare each with the first.

    Args:
        exact: the float model.
        others: of the same outputs.
        samples: what they are run on.
    Raises:
        NextscaleError: a model cannot be run on them.
    """
    sums = [{name: _Sums() for name in exact.outputs} for _ in others]
    for feed in samples:
        expected = exact.run(feed)
        for running, of_one in zip(others, sums, strict=True):
            found = running.run(feed)
            for name in [*of_one]:
                wanted, given = expected.get(name), found.get(name)
                if wanted is None or given is None or wanted.dtype.kind not in "fiub" or wanted.shape != given.shape:
                    del of_one[name]
                else:
                    of_one[name].add(wanted, given)
    return [
        Compared(
            {name: found.difference() for name, found in of_one.items()},
            tuple(name for name in exact.outputs if name not in of_one),
        )
        for of_one in sums
    ]


def mixes_samples(exact: Running, integer: Running, samples: Samples) -> bool:
    """Whether a sample's outputs depend on which other is in its batch, though in float they do not.

    Asked with a second sample of numbers a hundred times as large. Models that take no batches do not mix any.
    """
    if len(samples) < 2:
        return False
    first, second = samples.feeds[:2]
    with np.errstate(over="ignore"):
        loud = {
            name: array * array.dtype.type(100) if array.dtype.kind == "f" else array for name, array in second.items()
        }
    try:
        batch = {name: np.concatenate([array, loud[name]]) for name, array in first.items()}
        of_float, of_integer = (_changed(running, first, batch) for running in (exact, integer))
    except (NextscaleError, ValueError):
        return False
    return of_float is not None and of_integer is not None and of_float < SAME < of_integer


def _changed(running: Running, alone: Arrays, batch: Arrays) -> float | None:
    """The relative difference that a batch makes to its first sample; None where outputs have no axis for it."""
    found, pairs = running.run(batch), list[tuple[NDArray[Any], NDArray[Any]]]()
    for name, exact in running.run(alone).items():
        if exact.dtype.kind == "f" and exact.ndim and found[name].shape == (2 * len(exact), *exact.shape[1:]):
            pairs.append(comparable(exact, found[name][: len(exact)]))
    return max((Error.of(exact, other).relative for exact, other in pairs), default=None)


def run_in_turns(runnings: Mapping[str, Running], feed: Arrays, rounds: int) -> dict[str, list[float]]:
    """Seconds of a run of each, interleaved."""

    def turn(running: Running, done: int) -> float:
        begun = perf_counter()
        running.run(feed)
        return perf_counter() - begun

    return interleave({name: partial(turn, running) for name, running in runnings.items()}, repetitions=rounds)
