"""Who rounds a recipe's weights, and whether a learned rounding is the right one."""

from __future__ import annotations

import numpy as np

from nextscale.compiler.options import BuildOptions
from nextscale.graph_passes.integer_model import IntegerModel
from nextscale.graph_passes.linear_layers import WeightRounder, nearest, reduced_range
from nextscale.graph_passes.qparams import PAIR_LIMIT, WEIGHT_QMAX, QuantizedWeight, WeightQParams
from nextscale.graph_passes.recipe import Recipe
from nextscale.runtime._errors import NextscaleError


def require_reducible(recipe: Recipe) -> None:
    """Raise NextscaleError if the recipe's weights were learned for codes that --reduce-range would take from them."""
    largest = 2 * min(2**recipe.weights.bits - 1, WEIGHT_QMAX) * (2**recipe.activations.bits - 1)
    if recipe.learned and largest > PAIR_LIMIT:
        raise NextscaleError(
            f"recipe {recipe.name}: its rounding was learned for {recipe.weights.bits} bits, which --reduce-range"
            " would undo; choose a recipe that rounds to nearest"
        )


def require_rounding(integer: IntegerModel, options: BuildOptions) -> None:
    """Find out before a long computation whether the rounding is the one that the recipe needs.

    Raises:
        NextscaleError: it is missing, of no use, or of another recipe or model.
    """
    recipe, rounding = options.recipe, options.rounding
    if not recipe.learned:
        if rounding is not None:
            raise NextscaleError(f"recipe {recipe.name}: rounds weights to nearest, so it takes no --rounding")
        return
    if rounding is None:
        raise NextscaleError(
            f"recipe {recipe.name}: its weights are reconstructed; run `nextscale reconstruct` with it first, and give "
            "the file with --rounding"
        )
    shapes = {layer.name: layer.shape for layer in integer.facts.layers}
    equalized = integer.facts.equalizable() if recipe.equalization.alpha > 0 else {}
    rounding.require(
        recipe,
        {layer.name: layer.shape for layer in integer.learned()},
        {name: shapes[linears[0]][1:] for name, linears in equalized.items()},
    )


def weight_rounder(options: BuildOptions) -> WeightRounder:
    """Rounds a layer's weight as the recipe says, or as was learned."""
    weights, rounding = options.recipe.weights, options.rounding
    to_nearest = nearest(weights.bits, weights.range)
    if rounding is None:
        reduced = reduced_range(weights.bits, weights.range, options.recipe.activations.bits)
        return reduced if options.reduce_range else to_nearest

    def round_weight(name: str, weight: np.ndarray) -> QuantizedWeight:
        if name not in rounding.layers:
            return to_nearest(name, weight)
        rows = np.ascontiguousarray(weight.T)
        qparams = WeightQParams.choose(rows, 0, weights.bits, weights.range)
        return QuantizedWeight(np.ascontiguousarray(rounding.codes(name, rows).T), qparams.scale, qparams.qmin)

    return round_weight
