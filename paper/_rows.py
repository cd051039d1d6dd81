"""What the rows of Tables 2 and 3 have in common: full precision, its noise floor, and recipes by method."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

from nextscale.measure.statistics import Interval, mean_interval
from nextscale.paper._editing import Editing
from nextscale.paper._prompted_pictures import Drawing
from nextscale.paper.recipe_bundles import FULL_PRECISION, RecipeBundle
from nextscale.runtime._errors import NextscaleError
from nextscale.runtime._machine import saturation_warning
from nextscale.runtime._manifest import STOCK
from nextscale.runtime._next_scale_loop import Generator

NOISE_FLOOR = "noise floor"
METHODS = {"brecq": "BRECQ", "litevar": "LiteVAR", "ours": "Ours", "ours-litevar": "Ours+LiteVAR", "default": "default"}
Sampling = TypeVar("Sampling", Drawing, Editing)
Column = Mapping[str, NDArray[np.float64]]


@dataclass(frozen=True)
class Job(Generic[Sampling]):
    """A row to measure: its bundle, and how it samples."""

    name: str
    bundle: RecipeBundle
    sampling: Sampling

    def description(self) -> dict[str, Any]:
        """A row's name, method, bits, bundle and calibration_images, as `Row` of both tables has them."""
        recipe = self.bundle.bundle.manifest.recipe
        floats = recipe["name"] == FULL_PRECISION
        return {
            "name": self.name,
            "method": method_of(self.name),
            "bits": bits_of(recipe),
            "bundle": str(self.bundle.bundle.path),
            "calibration_images": None if floats else recipe.get("calibration", {}).get("images"),
        }

    def warning(self, generator: Generator) -> str | None:
        """See `saturation_line`."""
        return saturation_line(self.name, generator)

    def differences(self, figures: Column, reference: Column) -> dict[str, Interval | None]:
        """By column, paired: figures less full precision's; none for full precision itself."""
        if self.name == FULL_PRECISION:
            return {}
        return {column: interval_of(values - reference[column]) for column, values in figures.items()}


def reference_and_others(bundles: Sequence[RecipeBundle], sampling: Sampling) -> list[Job[Sampling]]:
    """Full precision, full precision with the next seed as the noise floor, then the other bundles.

    Raises:
        NextscaleError: full precision is not among them, or they are of several models.
    """
    originals = [item for item in bundles if item.name == FULL_PRECISION]
    if len(originals) != 1:
        raise NextscaleError(f"rows: {len(originals)} of full precision (fp32); expected 1, the reference")
    original = originals[0]
    for item in bundles:
        if item.bundle.manifest.models != original.bundle.manifest.models:
            raise NextscaleError(
                f"{item.bundle.path}: not the model of {original.bundle.path}; compare bundles of one model"
            )
    floor = replace(sampling, seed=sampling.seed + 1)
    found = [Job(FULL_PRECISION, original, sampling), Job(NOISE_FLOOR, original, floor)]
    return found + [Job(item.name, item, sampling) for item in bundles if item is not original]


def method_of(name: str) -> str:
    """What the tables call a row, bits aside."""
    if name == FULL_PRECISION:
        return "Full precision"
    if name == NOISE_FLOOR:
        return "Full precision, another seed"
    stem, _, bits = name.rpartition("-")
    return METHODS.get(stem if re.fullmatch(r"w\da\d", bits) else name, name)


def bits_of(recipe: Mapping[str, Any]) -> str:
    """Of weights and activations, of a recipe's plain values."""
    floats = recipe["name"] == FULL_PRECISION
    return "32/32" if floats else f"{recipe['weights']['bits']}/{recipe['activations']['bits']}"


def saturation_line(name: str, generator: Generator) -> str | None:
    """A line on a row, where this processor does not compute the integer products of its bundle exactly."""
    warning = saturation_warning(generator.bundle.manifest.recipe)
    return None if warning is None or generator.ops.variant != STOCK else f"{name}: {warning}"


def interval_of(values: NDArray[np.float64]) -> Interval | None:
    """Mean and 95% interval of what is there."""
    there = values[~np.isnan(values)]
    return mean_interval(there.tolist()) if len(there) else None
