"""Calibration in torch: ranges and channel magnitudes that a teacher-forced run of the full-precision model shows."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from nextscale.calib_data.observe_histograms import BINS, choose_range
from nextscale.graph_passes.expand_attentive_tokens import ShiftAndSum
from nextscale.graph_passes.integer_model import IntegerModel
from nextscale.graph_passes.layer_facts import GUIDED_ROWS, StageFacts
from nextscale.graph_passes.observe_inputs import PARTS
from nextscale.graph_passes.qparams import Range, RangeRule
from nextscale.graph_passes.recipe import Recipe
from nextscale.models.equalization import NOT_EQUALIZED, Equalization
from nextscale.simulation.simulated_attention import OPERANDS, operand_name
from nextscale.simulation.simulated_model import SimulatedModel, part_name, required_ranges
from nextscale.simulation.teacher_forced_images import (
    FULL_PRECISION,
    TeacherForcedImages,
    batches,
    teacher_forced,
)


@torch.no_grad()
def observe(
    images: TeacherForcedImages,
    *,
    equalization: Equalization = NOT_EQUALIZED,
    rule: RangeRule = "max",
    bits: int = 8,
    batch_size: int = 4,
) -> dict[str, Range]:
    """Ranges of every linear layer's input, its parts, and q, k and v of each block, over token maps.

    Args:
        images: with their full-precision model.
        equalization: of the model whose inputs are meant.
        rule: how much of what is seen a range holds (docs/quantization.md); q, k and v always have all.
        bits: of the codes, for `mse`.
        batch_size: images at a time.
    Returns:
        [S] for each layer, for the parts of each whose input has both rows of an image (`part_name`), and for
        attention's operands (`operand_name`).
    """
    twin = images.twin(FULL_PRECISION, equalization=equalization)
    facts = twin.integer.facts

    def run() -> None:
        for pick in batches(images, batch_size):
            teacher_forced(images, twin, pick)

    extremes = _Extremes(twin.num_stages)
    twin.watch = partial(_watch_parts, facts, extremes)
    run()
    found = extremes.ranges()
    if rule == "max":
        return found
    operands = {
        operand_name(name, operand) for name in (*facts.attentions, *facts.cross_attentions) for operand in OPERANDS
    }
    histograms = _Histograms({n: r for n, r in found.items() if n not in operands}, twin.device)
    twin.watch = partial(_watch_parts, facts, histograms)
    run()
    return found | histograms.chosen(rule, bits)


def _watch_parts(
    facts: StageFacts, watch: Callable[[str, Tensor, Tensor], None], name: str, x: Tensor, level: Tensor
) -> None:
    """Show `watch` the input, and its parts if it is a layer's and has both rows of an image."""
    watch(name, x, level)
    if any(layer.name == name and layer.rows == GUIDED_ROWS for layer in facts.layers):
        cond, uncond = x.chunk(2)
        for part, rows in zip(PARTS, (uncond, cond - uncond), strict=True):
            watch(part_name(name, part), rows, level)


@torch.no_grad()
def equalize(images: TeacherForcedImages, alpha: float, *, batch_size: int = 4) -> Equalization:
    """Equalization by the channels' magnitudes over token maps; none with alpha 0. Arguments as in `observe`."""
    if not alpha:
        return NOT_EQUALIZED
    twin = images.twin(FULL_PRECISION)
    largest: dict[str, Tensor] = {}

    def watch(name: str, x: Tensor, level: Tensor) -> None:
        magnitude = x.abs().amax((0, 1))
        largest[name] = torch.maximum(largest[name], magnitude) if name in largest else magnitude

    twin.watch = watch
    for pick in batches(images, batch_size):
        teacher_forced(images, twin, pick)
    magnitudes = {layer: largest[linears[0]] for layer, linears in twin.integer.facts.equalizable().items()}
    return images.choose_equalization(magnitudes, alpha)


def calibrated(
    images: TeacherForcedImages,
    recipe: Recipe,
    *,
    equalization: Equalization | None = None,
    shift_and_sum: ShiftAndSum | None = None,
    batch_size: int = 4,
) -> SimulatedModel:
    """The simulation of a recipe with the equalization and ranges that token maps show, weights rounded to nearest.

    Args:
        images, batch_size: as in `observe`; no range is observed that the recipe does not need.
        recipe: what to simulate.
        equalization: known already; None finds it.
        shift_and_sum: of recipes that have it.
    Raises:
        NextscaleError: shift_and_sum is missing, or does not fit.
    """
    if equalization is None:
        equalization = equalize(images, recipe.equalization.alpha, batch_size=batch_size)
    ranges = {}
    if required_ranges(IntegerModel.decide(recipe, images.facts)):
        rule, bits = recipe.activations.range, recipe.activations.bits
        ranges = observe(images, equalization=equalization, rule=rule, bits=bits, batch_size=batch_size)
    return images.twin(recipe, ranges=ranges, equalization=equalization, shift_and_sum=shift_and_sum)


class _Extremes:
    """The smallest and largest value of each stage, by name: float32 [S]."""

    def __init__(self, num_stages: int) -> None:
        self.num_stages = num_stages
        self.found: dict[str, tuple[Tensor, Tensor]] = {}

    def __call__(self, name: str, x: Tensor, level: Tensor) -> None:
        low, high = x.aminmax(dim=-1)
        if name not in self.found:
            none = x.new_full((self.num_stages,), torch.inf)
            self.found[name] = none, -none
        minimum, maximum = self.found[name]
        self.found[name] = (
            minimum.scatter_reduce(0, level, low.amin(0), "amin"),
            maximum.scatter_reduce(0, level, high.amax(0), "amax"),
        )

    def ranges(self) -> dict[str, Range]:
        """[S] each; zero at a stage that was not seen (the first of word_embed)."""
        return {
            name: Range(*(torch.where(end.isfinite(), end, 0.0).cpu().numpy() for end in ends))
            for name, ends in self.found.items()
        }


class _Histograms:
    """Counts of equal bins over each stage's range, by name: int64 [S * BINS]."""

    def __init__(self, ranges: dict[str, Range], device: torch.device) -> None:
        self.ranges, self.device = ranges, device
        self.counts: dict[str, Tensor] = {}

    def __call__(self, name: str, x: Tensor, level: Tensor) -> None:
        if name not in self.ranges:
            return
        low, high = (torch.from_numpy(end).to(self.device)[level][:, None] for end in self._ends(name))
        bins = ((x - low) * (BINS / (high - low))).long().clamp_(0, BINS - 1) + level[:, None] * BINS
        counts = torch.bincount(bins.flatten(), minlength=len(self.ranges[name].minimum) * BINS)
        self.counts[name] = self.counts[name] + counts if name in self.counts else counts

    def _ends(self, name: str) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Both ends [S], apart even where all values are equal."""
        observed = self.ranges[name]
        return observed.minimum, np.maximum(observed.maximum, np.nextafter(observed.minimum, np.float32(np.inf)))

    def chosen(self, rule: RangeRule, bits: int) -> dict[str, Range]:
        """The ranges [S] that `rule` keeps."""
        counts = {name: found.view(-1, BINS).cpu().numpy() for name, found in self.counts.items()}
        return {name: choose_range(found, counts[name], bits, rule) for name, found in self.ranges.items()}
