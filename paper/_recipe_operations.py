"""Bit operations of a recipe on a model, as the paper counts them (App. D); Fig. F's axis."""

from __future__ import annotations

from dataclasses import replace

from nextscale.graph_passes.layer_facts import StageFacts
from nextscale.graph_passes.recipe import Recipe
from nextscale.models.bit_operations import ATTENTION, BitWidths, model_cost, multiply_adds
from nextscale.paper.recipe_bundles import FULL_PRECISION
from nextscale.runtime._manifest import ModelInfo

FLOAT = 16 * 16  # a multiply-add of floats, as the paper counts it


def recipe_operations(model: ModelInfo, facts: StageFacts, recipe: Recipe, extra_share: float | None = None) -> float:
    """BOPs of an image's row under a recipe, as `nextscale theta` counts them; a product in floats at 16 x 16 bits.

    Args:
        model, facts: the model.
        recipe: its bits, layers in float, and attention.
        extra_share: operations of shift-and-sum, relative to the model's at the recipe's bits, as a manifest has them.
    Raises:
        ValueError: the recipe has shift-and-sum, but no extra_share is given.
    """
    counts = {part: int(count.sum()) for part, count in multiply_adds(model, facts).items()}
    if recipe.precision == FULL_PRECISION:
        return float(FLOAT * sum(counts.values()))
    bits = BitWidths(recipe.weights.bits, recipe.activations.bits)
    integer = bits.weights * bits.activations
    cost = dict.fromkeys(counts, integer)
    cost[ATTENTION] = bits.activations**2 if recipe.attention.products == "integer" else FLOAT
    total = float(sum(cost[part] * count for part, count in counts.items()))
    total += (FLOAT - integer) * _multiply_adds_in_float(model, facts, recipe)
    if recipe.attention.shift_and_sum != "off":
        if extra_share is None:
            raise ValueError(f"{recipe.name}: shift-and-sum, but its operations are not given")
        total += extra_share * model_cost(model, facts, bits).operations
    return total


def _multiply_adds_in_float(model: ModelInfo, facts: StageFacts, recipe: Recipe) -> int:
    layers = tuple(layer for layer in facts.layers if recipe.layer_choice(layer.name) == "float")
    counts = multiply_adds(model, replace(facts, layers=layers))
    return sum(int(count.sum()) for part, count in counts.items() if part != ATTENTION)
