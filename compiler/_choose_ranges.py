"""From what was observed to what the stage graph gets: equalization, and the static ranges of its layers."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch

from nextscale.calib_data.observe_histograms import choose_range, exposed_inputs, observe_histograms
from nextscale.calib_data.observe_ranges import ObservedRanges, StageObservation
from nextscale.calib_data.observed_stage import ObservedStage
from nextscale.compiler._float_model import FloatModel
from nextscale.compiler.family import Family
from nextscale.compiler.options import BuildOptions, Progress
from nextscale.graph_passes.integer_model import IntegerModel
from nextscale.graph_passes.layer_facts import StageFacts
from nextscale.graph_passes.observe_inputs import Input, Part, observe_inputs
from nextscale.graph_passes.qparams import Range
from nextscale.models.equalization import Equalization

# Enough images for the shape of a distribution, of which each gives hundreds of tokens; the rest widen the range.
HISTOGRAM_IMAGES = 16


def equalize(family: Family, facts: StageFacts, observed: ObservedRanges, options: BuildOptions) -> Equalization:
    """The equalization that the rounding was learned with, or the recipe's by the magnitudes of channels."""
    if options.rounding is not None:
        return Equalization({name: torch.from_numpy(found) for name, found in options.rounding.factors.items()})
    alpha = options.recipe.equalization.alpha
    if alpha == 0:
        return Equalization()
    magnitudes = {
        layer: torch.from_numpy(observed.by_channel[Input(linears[0])].magnitude())
        for layer, linears in facts.equalizable().items()
    }
    return family.choose_equalization(facts, magnitudes, alpha)


def equalized_ranges(facts: StageFacts, observed: ObservedRanges, equalization: Equalization) -> dict[Input, Range]:
    """The ranges [S] of the equalized model's inputs and their parts, from what was observed before."""
    found = dict(observed.whole)
    reads = {layer.name: layer.input for layer in facts.layers}
    for key, channels in observed.by_channel.items():
        factors = equalization.factors.get(reads[key.node])
        if factors is not None:
            found[key] = channels.equalized(factors.numpy())
        elif key.part is not None:
            found[key] = channels.equalized(np.ones(1, np.float32))
    # Layers that share an input were observed by channel once.
    for name, linears in facts.equalizable().items():
        if name in equalization.factors:
            found |= {Input(linear): found[Input(linears[0])] for linear in linears if Input(linear) in found}
    return found


def choose_static_ranges(
    model: FloatModel,
    integer: IntegerModel,
    ranges: Mapping[Input, Range],
    equalization: Equalization,
    observation: StageObservation,
    options: BuildOptions,
    progress: Progress,
) -> dict[Input, Range]:
    """The static ranges [S] of layers and of the parts of pairs, by the recipe's rule.

    A rule that looks at distributions gets histograms of the equalized model's inputs.
    """
    keys = [Input(name) for name in integer.static]
    keys += [part for name in integer.pairs for part in Input(name).parts()]
    static = {key: ranges[key] for key in keys}
    rule, bits = options.recipe.activations.range, options.recipe.activations.bits
    if not static or rule == "max":
        return static
    # Layers that share an input have its ranges, too: it is looked at once for all of them.
    reads = {layer.name: layer.input for layer in integer.facts.layers}
    firsts: dict[tuple[str, Part | None], Input] = {}
    for key in static:
        firsts.setdefault((reads[key.node], key.part), key)
    distinct = {key: static[key] for key in firsts.values()}
    stage, weights = model.equalized_stage(equalization)
    images, step = min(HISTOGRAM_IMAGES, len(observation.subjects)), "observing distributions"
    progress(step, 0, images)
    observed = model.family.as_run(observe_inputs(stage, exposed_inputs(distinct)))
    counts = observe_histograms(
        ObservedStage.open(model.bundle, observed, options.session, weights),
        distinct,
        observation.subjects[:images],
        observation.token_maps[:images],
        lambda done: progress(step, done, images),
    )
    chosen = {place: choose_range(static[key], counts[key], bits, rule) for place, key in firsts.items()}
    return {key: chosen[reads[key.node], key.part] for key in static}
