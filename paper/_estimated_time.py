"""About how long steps take on two cores, from a model's operations, to be told before they begin."""

from __future__ import annotations

from nextscale.graph_passes.layer_facts import GUIDED_ROWS, StageFacts
from nextscale.graph_passes.recipe import Recipe
from nextscale.models.bit_operations import keys, multiply_adds, queries
from nextscale.runtime._manifest import ModelInfo

# Of float32, a second.
MULTIPLY_ADDS = 8e10
# Of building a bundle besides its calibration: checks and comparisons, and what takes as long for a model of any size.
BUILDING_IMAGES, FLOAT_SECONDS, INTEGER_SECONDS = 40, 10, 20
# Attention weights that are compared with their codes in float64, a second.
OBSERVED = 4.7e6
# An image whose scores are counted takes as long as so many that are drawn.
SCORING_IMAGES = 2


def image_seconds(model: ModelInfo, facts: StageFacts) -> float:
    """Of an image's two rows in full precision, without its decoder."""
    return GUIDED_ROWS * sum(int(count.sum()) for count in multiply_adds(model, facts).values()) / MULTIPLY_ADDS


def observing_seconds(model: ModelInfo) -> float:
    """Of the attention of an image's two rows, compared with its codes."""
    weights = GUIDED_ROWS * model.num_heads * model.depth * int((queries(model) * keys(model)).sum())
    return weights / OBSERVED


def build_seconds(recipe: Recipe, image: float) -> float:
    """Of a recipe's bundle.

    Args:
        recipe: of any calibration; its rounding is not learned meanwhile.
        image: `image_seconds`.
    """
    if recipe.precision == "fp32":
        return FLOAT_SECONDS + image * BUILDING_IMAGES
    return INTEGER_SECONDS + image * (BUILDING_IMAGES + 2 * recipe.calibration.images)
