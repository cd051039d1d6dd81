"""About how long steps take, to be told before they begin: on two cores from a model's operations, or tried."""

from __future__ import annotations

import math
import time
from dataclasses import asdict

from nextscale.evaluate.generated_statistics import Sampling
from nextscale.evaluate.image_statistics import ImageNetwork
from nextscale.evaluate.teacher_forced import evaluation_labels
from nextscale.graph_passes.layer_facts import GUIDED_ROWS, StageFacts
from nextscale.graph_passes.recipe import Recipe
from nextscale.models.bit_operations import keys, multiply_adds, queries
from nextscale.runtime._manifest import ModelInfo
from nextscale.runtime._next_scale_loop import Generator

# Of float32, a second.
MULTIPLY_ADDS = 8e10
# Of building a bundle besides its calibration: checks and comparisons, and what takes as long for a model of any size.
BUILDING_IMAGES, FLOAT_SECONDS, INTEGER_SECONDS = 40, 10, 20
# Attention weights that are compared with their codes in float64, a second.
OBSERVED = 4.7e6
# An image whose scores are counted takes as long as so many that are drawn.
SCORING_IMAGES = 2
# Editing makes three pictures of a photograph, and reads its tokens.
EDITING_IMAGES = 4.0


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


def picture_seconds(
    generator: Generator, network: ImageNetwork | None, batch_size: int, sampling: Sampling | None = None
) -> float:
    """Of a picture, drawn and seen by the feature network if there is one: of one batch, behind one that warms up."""
    labels = evaluation_labels(generator.bundle.model.num_classes, batch_size, 0)
    began = 0.0
    for _ in range(2):
        began = time.perf_counter()
        pictures = generator.generate(labels, **asdict(sampling or Sampling())).images
        if network is not None:
            network(pictures)
    return (time.perf_counter() - began) / batch_size


def in_words(seconds: float) -> str:
    """90 s, 12 min, 3.4 h."""
    if seconds < 100:
        return f"{math.ceil(seconds)} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"
