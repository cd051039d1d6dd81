"""Keys and values that do not fit beside a model in full precision: which sizes have such, and what becomes of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from nextscale.export.bundle_writer import BundleInfo
from nextscale.graph_passes.layer_facts import GUIDED_ROWS
from nextscale.graph_passes.recipe import Recipe
from nextscale.runtime._errors import NextscaleError
from nextscale.runtime._manifest import ModelInfo
from nextscale.runtime._sizes import SizeInfo

# Of one picture in float32. Larger ones are carried in 8 bits, and a build does not run such pictures in full
# precision: of Infinity-2B those of 0.60M and 1M, which take 6.7 and 11.0 GB beside 9 GB of weights.
MOST_CACHED = 4_000_000_000


def float_cache_bytes(model: ModelInfo) -> int:
    """Keys and values of one picture in float32, of both rows with guidance (docs/bundle.md, "Sizes")."""
    return 2 * GUIDED_ROWS * model.depth * model.num_tokens * model.embed_dim * 4


def sizes_in_full_precision(name: str, model: ModelInfo, sizes: Sequence[SizeInfo]) -> list[int]:
    """Indices of the sizes that are run in full precision, those of most stages first: all but those whose keys and
    values are too large for that.

    Args:
        name: of the bundle, for the refusal.
        model: at any size.
        sizes: none where the bundle has one, the model's, whose index is 0.
    Raises:
        NextscaleError: there is none.
    """
    models = [model.of_size(size) for size in sizes] or [model]
    within = [index for index, of_size in enumerate(models) if float_cache_bytes(of_size) <= MOST_CACHED]
    if not within:
        needed, smallest = min((float_cache_bytes(of_size), i) for i, of_size in enumerate(models))
        height, width = model.image_size
        pictures = sizes[smallest].area if sizes else f"{width} x {height}"
        raise NextscaleError(
            f"{name}: pictures of {pictures} have {needed / 1e9:.1f} GB of keys and values in full "
            "precision, too many to be calibrated with; build a smaller area, too, such as 0.25M"
        )
    return sorted(within, key=lambda index: -models[index].num_stages)


def with_decided_cache(recipe: Recipe, info: BundleInfo) -> Recipe:
    """The recipe with "float" or "integer" in place of attention.cache = "auto"."""
    if recipe.attention.cache != "auto":
        return recipe
    models = [info.model.of_size(size) for size in info.sizes] or [info.model]
    is_large = max(map(float_cache_bytes, models)) > MOST_CACHED
    in_codes = is_large and recipe.precision != "fp32" and recipe.attention.products == "float"
    return replace(recipe, attention=replace(recipe.attention, cache="integer" if in_codes else "float"))
