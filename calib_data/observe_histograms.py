"""Histograms of layers' inputs, and the static ranges chosen from them (docs/quantization.md, "Activations")."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from nextscale.calib_data.observed_stage import ObservedStage, OnImages, nobody
from nextscale.calib_data.subjects import Subjects, TokenRows
from nextscale.graph_passes.observe_inputs import Input, Observer
from nextscale.graph_passes.qparams import ActivationQParams, Range, RangeRule

BINS = 2048
PERCENTILES = (0.0001, 0.9999)
MSE_FACTORS = tuple(percent / 100 for percent in range(100, 29, -2))


def observe_histograms(
    stage: ObservedStage,
    ranges: Mapping[Input, Range],
    subjects: Subjects,
    token_maps: TokenRows,
    on_images: OnImages = nobody,
    cfg_scale: float | None = None,
) -> dict[Input, NDArray[np.int64]]:
    """How often each input falls into each of BINS equal parts of its range: int64 [S, BINS] each.

    Stages behind the last that any image has are taken for like that one, as their ranges are.

    Args:
        stage: its graph gives the whole inputs (`exposed_inputs`).
        ranges: the range [S] of each input, or part of one; what lies outside counts at its ends.
        subjects: what the N images are of.
        token_maps: int64 [L] of each, fed to the model one image at a time.
        on_images: called with the number of images finished.
        cfg_scale: guidance; None is the bundle's default.
    """
    num_stages = max(model.num_stages for model in stage.bundle.manifest.models)
    counts, last = {key: np.zeros((num_stages, BINS), np.int64) for key in ranges}, 0
    outputs = sorted({observer.output for observer in exposed_inputs(ranges)})
    for _, result in stage.run(subjects, token_maps, outputs=outputs, on_images=on_images, cfg_scale=cfg_scale):
        for key, found in ranges.items():
            values = _part(result.outputs[_whole(key).output], key.part).ravel()
            low, high = found.minimum[result.stage], found.maximum[result.stage]
            step = max(float(high - low) / BINS, np.finfo(np.float32).tiny)
            with np.errstate(over="ignore"):  # infinity is clipped like all that is too large
                bins = ((values - low) / np.float32(step)).clip(0, BINS - 1).astype(np.int64)
            counts[key][result.stage] += np.bincount(bins, minlength=BINS)
        last = max(last, result.stage)
        del result  # as large as all these inputs
    like = np.minimum(np.arange(num_stages), last)
    return {key: found[like] for key, found in counts.items()}


def exposed_inputs(keys: Iterable[Input]) -> list[Observer]:
    """Observers that give the whole inputs, of which the keys are parts."""
    return list(dict.fromkeys(map(_whole, keys)))


def _whole(key: Input) -> Observer:
    return Observer(replace(key, part=None), "values")


def _part(x: NDArray[np.float32], part: str | None) -> NDArray[np.float32]:
    """Of [2B, l, C], the rows with the class first."""
    if part is None:
        return x
    cond, uncond = np.split(x, 2)
    return uncond if part == "uncond" else cond - uncond


def choose_range(found: Range, counts: NDArray[np.int64], bits: int, rule: RangeRule) -> Range:
    """The range for static quantization, stage by stage.

    Args:
        found: smallest and largest value, [S].
        counts: int64 [S, BINS] over that range.
        bits: of the activations.
        rule: how to choose.
    """
    if rule == "max":
        return found
    chosen = [
        _percentile(low, high, histogram) if rule == "percentile" else _least_squares(low, high, histogram, bits)
        for low, high, histogram in zip(found.minimum, found.maximum, counts, strict=True)
    ]
    low, high = np.array(chosen, np.float32).T
    return Range(low, high)


def _percentile(low: np.float32, high: np.float32, histogram: NDArray[np.int64]) -> tuple[float, float]:
    edges = np.linspace(low, high, BINS + 1)
    shares = np.concatenate([[0], np.cumsum(histogram)]) / max(histogram.sum(), 1)
    return float(np.interp(PERCENTILES[0], shares, edges)), float(np.interp(PERCENTILES[1], shares, edges))


def _least_squares(
    low: np.float32, high: np.float32, histogram: NDArray[np.int64], bits: int
) -> tuple[np.float32, np.float32]:
    """Each end shrunk on its own, in turn, to the factor of the least squared error of the bins' centres."""
    edges = np.linspace(low, high, BINS + 1)
    centres, weights = ((edges[1:] + edges[:-1]) / 2).astype(np.float32), histogram.astype(np.float64)
    factors = np.array(MSE_FACTORS, np.float32)

    def best(*ends: NDArray[np.float32] | np.float32) -> tuple[np.float32, np.float32]:
        """Of lowest and highest ends, one for each factor or one for all; each range is a row of codes."""
        lows, highs = np.broadcast_arrays(*ends)
        qparams = ActivationQParams.from_range(Range(lows[None, :, None], highs[None, :, None]), bits)
        squared = np.square(qparams.dequantize(qparams.quantize(centres)) - centres, dtype=np.float64)
        least = np.argmin([weights @ row for row in squared])
        return lows[least], highs[least]

    low, high = np.float32(low), np.float32(high)
    left, right = best(low * factors, high * factors)
    left, right = best(left, high * factors)
    return best(low * factors, right)
