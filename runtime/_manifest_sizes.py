"""Reads the sizes that a bundle is built for, and what a size decides of the model."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

from nextscale.runtime._checked_json import JsonNode
from nextscale.runtime._manifest import ModelInfo
from nextscale.runtime._sizes import AREA, Size, SizeInfo

MAX_SIZES = 1000
MAX_RATIO = 1000
# The model at a size, and the numbers of the symbols that the size decides: none where the bundle has one size.
AtSize = tuple[ModelInfo, Mapping[str, int]]


def read_stage_sizes(node: JsonNode) -> tuple[Size, ...]:
    """[height, width] of each stage."""
    stage_sizes = tuple(read_size(item, 4096) for item in node.elements())
    tokens = [height * width for height, width in stage_sizes]
    if not tokens or tokens != sorted(tokens):
        node.refuse("[height, width] of each stage, by ascending number of tokens")
    return stage_sizes


def read_size(node: JsonNode, maximum: int = 2**31 - 1) -> Size:
    """[height, width]."""
    numbers = node.elements()
    if len(numbers) != 2:
        node.refuse("[height, width]")
    height, width = (number.integer(1, maximum) for number in numbers)
    return height, width


def read_sizes(node: JsonNode | None, model: ModelInfo) -> tuple[SizeInfo, ...]:
    """The sizes, each of its own, the first of which is the model's; none where there is no list."""
    if node is None:
        return ()
    if isinstance(node.value, list) and not 1 <= len(node.value) <= MAX_SIZES:
        node.refuse(f"1 to {MAX_SIZES} sizes", len(node.value))
    sizes: list[SizeInfo] = []
    for item in node.elements():
        size = _read_size_info(item)
        for keys, identity in _IDENTITIES.items():
            if identity(size) in map(identity, sizes):
                item[keys].refuse("another than those of the sizes before")
        if not sizes:
            for key in ("stage_sizes", "image_size", "latent_size"):
                if getattr(size, key) != getattr(model, key):
                    item[key].refuse(f"model.{key}, which is the first size's")
        sizes.append(size)
    return tuple(sizes)


# What tells sizes apart: for people, and for pictures and latents that come without a name.
_IDENTITIES: Mapping[str, Callable[[SizeInfo], object]] = {
    "ratio": lambda size: (size.megapixels, size.ratio),
    "image_size": lambda size: size.image_size,
    "latent_size": lambda size: size.latent_size,
}


def _read_size_info(node: JsonNode) -> SizeInfo:
    area, ratio = node["area"].text(), read_size(node["ratio"], MAX_RATIO)
    if not AREA.fullmatch(area):
        node["area"].refuse('megapixels such as "0.25M"')
    if math.gcd(*ratio) != 1:
        node["ratio"].refuse("[height, width] in lowest terms")
    return SizeInfo(
        area=area,
        ratio=ratio,
        image_size=read_size(node["image_size"]),
        latent_size=read_size(node["latent_size"]),
        stage_sizes=read_stage_sizes(node["stage_sizes"]),
    )


def at_sizes(model: ModelInfo, sizes: tuple[SizeInfo, ...]) -> tuple[AtSize, ...]:
    """The model at each size; at its own, without symbols, where there are no others."""
    models = [model.of_size(size) for size in sizes]
    return tuple((found, found.symbols) for found in models) or ((model, {}),)
