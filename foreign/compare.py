"""Two forms of one model on the same samples: how far their outputs are apart, and how long they take."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nextscale.foreign.own_errors import Error
from nextscale.foreign.running import Running
from nextscale.foreign.samples import Arrays, Samples
from nextscale.measure.interleaved import interleave
from nextscale.runtime._session import SessionOptions

Outputs = Mapping[str, NDArray[Any]]


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


def outputs_of(path: Path, samples: Samples, options: SessionOptions) -> list[Outputs]:
    """What a model gives for each sample."""
    running = Running.of(path, options)
    return [running.run(feed) for feed in samples]


def differences(expected: Sequence[Outputs], found: Sequence[Outputs]) -> dict[str, Difference]:
    """Of each output of numbers that has the same shapes in both."""
    compared = {}
    for name, first in expected[0].items():
        pairs = [(exact[name], other[name]) for exact, other in zip(expected, found, strict=True)]
        if first.dtype.kind not in "fiub" or any(exact.shape != other.shape for exact, other in pairs):
            continue
        exact, other = (
            np.concatenate([np.asarray(item, np.float64).ravel() for item in of_one])
            for of_one in zip(*pairs, strict=True)
        )
        # What is not finite in both is equal: a mask's minus infinity, say.
        same = (exact == other) | (np.isnan(exact) & np.isnan(other))
        off = np.where(same, 0.0, np.abs(np.where(same, 0.0, other) - np.where(same, 0.0, exact)))
        if exact.size:
            error = Error.of(np.where(np.isfinite(exact), exact, 0.0), np.where(same & ~np.isfinite(exact), 0.0, other))
            compared[name] = Difference(float(off.mean()), float(off.max()), error)
    return compared


def run_in_turns(
    paths: Mapping[str, Path], feed: Arrays, rounds: int, options: SessionOptions
) -> dict[str, list[float]]:
    """Seconds of a run of each, interleaved; nothing of no rounds."""
    if not rounds:
        return {}

    def turn(running: Running, done: int) -> float:
        begun = perf_counter()
        running.run(feed)
        return perf_counter() - begun

    turns = {name: partial(turn, Running.of(path, options)) for name, path in paths.items()}
    return interleave(turns, repetitions=rounds)
