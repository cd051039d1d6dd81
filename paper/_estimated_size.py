"""About how many bytes a bundle takes, to be told before it is built."""

from __future__ import annotations

from nextscale.graph_passes.layer_facts import StageFacts
from nextscale.graph_passes.recipe import Recipe

FLOAT_BITS, CODE_BITS, PACKED_BITS = 32, 8, 4  # of a weight; codes of fewer bits take 8 each, unless they are packed


def bundle_bytes(recipe: Recipe, facts: StageFacts, parameters: int) -> int:
    """Of a recipe's bundle.

    Args:
        recipe: its `layers` name layers of the model.
        facts: of the model's stage graph.
        parameters: of all that is in the bundle; those of no linear layer count as the decoder's.
    """
    if recipe.precision == "fp32":
        return parameters * FLOAT_BITS // 8
    codes = PACKED_BITS if recipe.weights.packed else CODE_BITS
    bits, others = 0, parameters
    for layer in facts.layers:
        weights = layer.shape[0] * layer.shape[1]
        bits += weights * (FLOAT_BITS if recipe.layer_choice(layer.name) == "float" else codes)
        others -= weights
    return (bits + others * (FLOAT_BITS if recipe.decoder.precision == "float" else CODE_BITS)) // 8
