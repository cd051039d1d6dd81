"""Calibration in torch: ranges and channel magnitudes that a teacher-forced run of the full-precision model shows."""

from __future__ import annotations

from collections.abc import Callable, Iterator
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
from nextscale.models.var.equalization import choose_equalization
from nextscale.models.var.layers import facts_of
from nextscale.models.var.multi_scale_quantizer import MultiScaleQuantizer
from nextscale.models.var.transformer import VAR
from nextscale.runtime._request import DEFAULT_CFG_SCALE
from nextscale.simulation.simulated_attention import OPERANDS, operand_name
from nextscale.simulation.simulated_var import SimulatedVAR, part_name, required_ranges

# The model itself, as a recipe.
FULL_PRECISION = Recipe("full precision", precision="fp32")


def teacher_forced_inputs(quantizer: MultiScaleQuantizer, token_maps: Tensor) -> Tensor:
    """The transformer's inputs for given token maps: int64 [B, L] -> float32 [B, L - patch_nums[0]**2, Cvae]."""
    sizes = [pn * pn for pn in quantizer.patch_nums]
    return quantizer.accumulate(token_maps.split(sizes, dim=1))[1]


def batches(
    labels: NDArray[np.int64], token_maps: NDArray[np.int64], batch_size: int, device: torch.device
) -> Iterator[tuple[Tensor, Tensor]]:
    """Labels [B] and token maps [B, L] on the device, in order."""
    for first in range(0, len(labels), batch_size):
        part = slice(first, first + batch_size)
        yield torch.from_numpy(labels[part]).to(device), torch.from_numpy(token_maps[part]).to(device)


@torch.no_grad()
def observe(
    var: VAR,
    quantizer: MultiScaleQuantizer,
    labels: NDArray[np.int64],
    token_maps: NDArray[np.int64],
    *,
    equalization: Equalization = NOT_EQUALIZED,
    rule: RangeRule = "max",
    bits: int = 8,
    cfg_scale: float = DEFAULT_CFG_SCALE,
    batch_size: int = 4,
) -> dict[str, Range]:
    """Ranges of every linear layer's input, its parts, and q, k and v of each block, over token maps.

    Args:
        var, quantizer: full precision, on one device.
        labels, token_maps: int64 [N] and [N, L].
        equalization: of the model whose inputs are meant.
        rule: how much of what is seen a range holds (docs/quantization.md); q, k and v always have all.
        bits: of the codes, for `mse`.
        cfg_scale: guidance, which the head's input depends on.
        batch_size: images at a time.
    Returns:
        [S] for each layer, for the parts of each whose input has both rows of an image (`part_name`), and for
        attention's operands (`operand_name`).
    """
    simulated = SimulatedVAR(var, FULL_PRECISION, equalization=equalization)

    def run() -> None:
        for part_labels, maps in batches(labels, token_maps, batch_size, simulated.device):
            simulated(part_labels, teacher_forced_inputs(quantizer, maps), cfg_scale)

    extremes = _Extremes(var.config.num_stages)
    facts = simulated.integer.facts
    simulated.watch = partial(_watch_parts, facts, extremes)
    run()
    found = extremes.ranges()
    if rule == "max":
        return found
    operands = {operand_name(name, operand) for name in facts.attentions for operand in OPERANDS}
    histograms = _Histograms({n: r for n, r in found.items() if n not in operands}, simulated.device)
    simulated.watch = partial(_watch_parts, facts, histograms)
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
def equalize(
    var: VAR,
    quantizer: MultiScaleQuantizer,
    labels: NDArray[np.int64],
    token_maps: NDArray[np.int64],
    alpha: float,
    *,
    cfg_scale: float = DEFAULT_CFG_SCALE,
    batch_size: int = 4,
) -> Equalization:
    """Equalization by the channels' magnitudes over token maps; none with alpha 0. Arguments as in `observe`."""
    if not alpha:
        return NOT_EQUALIZED
    simulated = SimulatedVAR(var, FULL_PRECISION)
    largest: dict[str, Tensor] = {}

    def watch(name: str, x: Tensor, level: Tensor) -> None:
        magnitude = x.abs().amax((0, 1))
        largest[name] = torch.maximum(largest[name], magnitude) if name in largest else magnitude

    simulated.watch = watch
    for part_labels, maps in batches(labels, token_maps, batch_size, simulated.device):
        simulated(part_labels, teacher_forced_inputs(quantizer, maps), cfg_scale)
    magnitudes = {layer: largest[linears[0]] for layer, linears in simulated.integer.facts.equalizable().items()}
    return choose_equalization(var, magnitudes, alpha)


def calibrated(
    var: VAR,
    quantizer: MultiScaleQuantizer,
    recipe: Recipe,
    labels: NDArray[np.int64],
    token_maps: NDArray[np.int64],
    *,
    equalization: Equalization | None = None,
    shift_and_sum: ShiftAndSum | None = None,
    cfg_scale: float = DEFAULT_CFG_SCALE,
    batch_size: int = 4,
) -> SimulatedVAR:
    """The simulation of a recipe with the equalization and ranges that token maps show, weights rounded to nearest.

    Args:
        var, quantizer, labels, token_maps, cfg_scale, batch_size: as in `observe`; no range is observed that the recipe
            does not need.
        recipe: what to simulate.
        equalization: known already; None finds it.
        shift_and_sum: of recipes that have it.
    Raises:
        NextscaleError: shift_and_sum is missing, or does not fit.
    """
    if equalization is None:
        alpha = recipe.equalization.alpha
        equalization = equalize(var, quantizer, labels, token_maps, alpha, cfg_scale=cfg_scale, batch_size=batch_size)
    ranges = {}
    if required_ranges(IntegerModel.decide(recipe, facts_of(var))):
        ranges = observe(
            var,
            quantizer,
            labels,
            token_maps,
            equalization=equalization,
            rule=recipe.activations.range,
            bits=recipe.activations.bits,
            cfg_scale=cfg_scale,
            batch_size=batch_size,
        )
    return SimulatedVAR(var, recipe, ranges=ranges, equalization=equalization, shift_and_sum=shift_and_sum)


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
