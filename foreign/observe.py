"""What operators read while the model runs on the samples: ranges, histograms, and a few of the inputs themselves."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from nextscale.calib_data.observe_histograms import BINS, choose_range
from nextscale.foreign.running import Running, write_graph
from nextscale.foreign.samples import Samples
from nextscale.graph_passes.observe_inputs import Input, Observer, observe_inputs
from nextscale.graph_passes.qparams import Range, RangeRule
from nextscale.runtime._session import SessionOptions

# Inputs that are brought back whole at once: all of a large model's would not fit into memory.
AT_ONCE = 16


def observe_ranges(
    model: ir.Model,
    keys: Sequence[Input],
    samples: Samples,
    work: Path,
    options: SessionOptions,
    channels: Mapping[Input, Sequence[int]] | None = None,
) -> dict[Input, Range]:
    """The smallest and largest value of each input over all samples, [1] or [C]; not finite where one is not.

    Args:
        model: normalized.
        keys: of nodes of its main graph.
        samples: what it is run on.
        work: an existing folder.
        options: threads and memory.
        channels: all axes but the channels', of the keys whose channels have a range each.
    """
    channels = channels or {}
    observers = {key: (_range_of(key, channels.get(key)), Observer(key, "finite")) for key in dict.fromkeys(keys)}
    if not observers:
        return {}
    both = [observer for pair in observers.values() for observer in pair]
    running = Running.of(write_graph(observe_inputs(model, both), work / "ranges.onnx"), options)
    ends: dict[Input, list[NDArray[np.float32]]] = {key: [] for key in observers}
    for feed in samples:
        found = running.run(feed, [observer.output for observer in both])
        for key, (of_range, of_finite) in observers.items():
            # NaN is neither smallest nor largest.
            ends[key].append(found[of_range.output].reshape(2, -1) + found[of_finite.output])
    return {key: _merged(np.stack(of_one)) for key, of_one in ends.items()}


def _range_of(key: Input, axes: Sequence[int] | None) -> Observer:
    return Observer(key, "range") if axes is None else Observer(key, "channels", tuple(axes))


def _merged(ends: NDArray[np.float32]) -> Range:
    """Of [N, 2, C]."""
    return Range(ends[:, 0].min(axis=0), ends[:, 1].max(axis=0))


def choose_ranges(
    model: ir.Model,
    ranges: Mapping[Input, Range],
    bits: int,
    rule: RangeRule,
    samples: Samples,
    work: Path,
    options: SessionOptions,
) -> dict[Input, Range]:
    """The ranges of static quantization, by the rule, of the observed ones."""
    if rule == "max":
        return dict(ranges)
    counts = {key: np.zeros((1, BINS), np.int64) for key in ranges}
    for key, values in observed_values(model, list(ranges), samples, work, options):
        low, high = ranges[key].minimum[0], ranges[key].maximum[0]
        step = max(float(high - low) / BINS, float(np.finfo(np.float32).tiny))
        bins = ((values.ravel() - low) / np.float32(step)).clip(0, BINS - 1).astype(np.int64)
        counts[key][0] += np.bincount(bins, minlength=BINS)
    return {key: choose_range(ranges[key], counts[key], bits, rule) for key in ranges}


def observed_values(
    model: ir.Model, keys: Sequence[Input], samples: Samples, work: Path, options: SessionOptions
) -> Iterator[tuple[Input, NDArray[np.float32]]]:
    """As `numbered_values`, without the numbers."""
    for key, _, values in numbered_values(model, keys, samples, work, options):
        yield key, values


def numbered_values(
    model: ir.Model, keys: Sequence[Input], samples: Samples, work: Path, options: SessionOptions
) -> Iterator[tuple[Input, int, NDArray[np.float32]]]:
    """The inputs themselves, some keys at a time, of these one sample after the other; each with its sample's number.

    Args:
        model: normalized.
        keys: of nodes of its main graph.
        samples, work, options: as of `observe_ranges`.
    """
    for first in range(0, len(keys), AT_ONCE):
        observers = {key: Observer(key, "values") for key in keys[first : first + AT_ONCE]}
        running = Running.of(write_graph(observe_inputs(model, observers.values()), work / "values.onnx"), options)
        for sample, feed in enumerate(samples):
            found = running.run(feed, [observer.output for observer in observers.values()])
            for key, observer in observers.items():
                yield key, sample, found.pop(observer.output)
        del running
