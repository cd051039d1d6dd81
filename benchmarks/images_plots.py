"""Draw what simulated_images.py measured: quality by budget (Fig. 5(c-d)) and by bit operations (Fig. F)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, BinaryIO

import numpy as np
from images_report import BITS, BUDGETS, METHODS, Row, Rows, recipe_name, seeds_of
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter, ScalarFormatter
from recipe_bundles import find_recipe

from nextscale.graph_passes.layer_facts import StageFacts
from nextscale.graph_passes.recipe import Recipe
from nextscale.models.bit_operations import BitWidths, multiply_adds
from nextscale.runtime._manifest import ModelInfo

FULL_PRECISION = BitWidths(16, 16)  # as the paper counts it
FLOAT_LAYERS = {"ffn.fc2", "word_embed"}
STYLES = {
    "rtn": ("nearest", "tab:gray", "s"),
    "brecq": (METHODS["brecq"], "tab:blue", "o"),
    "litevar": (METHODS["litevar"], "tab:green", "^"),
    "ours": (METHODS["ours"], "tab:red", "o"),
    "ours-litevar": (METHODS["ours-litevar"], "tab:purple", "^"),
    "nearest": ("default, rounded to nearest", "tab:orange", "D"),
    "default": ("default", "black", "D"),
}
# Methods whose points are named, and where, points to the right and up; the others lie under or beside them.
LABELLED = {"rtn": (4, 4), "ours": (-3, -11), "nearest": (5, 2), "default": (-4, -11), "ours-litevar": (5, 2)}


def operations(model: ModelInfo, facts: StageFacts, recipe: Recipe, extra: Mapping[str, Any] | None = None) -> float:
    """BOPs of an image's row under a recipe, as `nextscale theta` counts them; a product in floats at 16 x 16 bits.

    Args:
        model, facts: the model.
        recipe: its bits, layers in float, and attention.
        extra: operations of shift-and-sum at 4/6 bits: those of Eq. 13 (aggregate) go with the activations' bits
            squared, the others are of 16 bits.
    """
    full = FULL_PRECISION.weights * FULL_PRECISION.activations
    if recipe.precision == "fp32":
        return float(full * sum(int(count.sum()) for count in multiply_adds(model, facts).values()))
    if not FLOAT_LAYERS.issuperset(recipe.layers) or {*recipe.layers.values()} - {"float"}:
        raise ValueError(f"{recipe.name}: layers {dict(recipe.layers)}; expected only {sorted(FLOAT_LAYERS)} in float")
    a = recipe.activations.bits
    cost = dict.fromkeys(multiply_adds(model, facts), recipe.weights.bits * a)
    cost["attention"] = a * a if recipe.attention.products == "integer" else full
    if "word_embed" in recipe.layers:
        cost["word_embed"] = full
    total = float(sum(cost[part] * int(count.sum()) for part, count in multiply_adds(model, facts).items()))
    if "ffn.fc2" in recipe.layers:
        layers = [layer for layer in facts.layers if layer.name.endswith("ffn.fc2")]
        fc2 = sum(layer.shape[0] * layer.shape[1] * sum(layer.tokens) for layer in layers)
        total += (full - recipe.weights.bits * a) * fc2
    if recipe.attention.shift_and_sum != "off":
        if extra is None:
            raise ValueError(f"{recipe.name}: shift-and-sum, but its operations are not given")
        total += extra["scores"] + extra["duplicate"] + extra["aggregate"] * a * a / 36
    return total


def plot_budget(file: BinaryIO, rows: Rows) -> None:
    """Write a PNG: KL and FID-E by budget, the mean over seeds and each seed."""
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    positions = np.arange(len(BUDGETS))
    for axes, (key, label) in zip(figure.subplots(1, 2), _labels().items(), strict=True):
        values = [[rows[recipe, seed][key] for seed in seeds_of(rows, recipe)] for recipe in BUDGETS]
        _spread(axes, positions, values, "tab:red", "BRECQ (0%) and Ours")
        resample = [rows["resample-w4a6", seed][key] for seed in seeds_of(rows, "resample-w4a6")]
        _spread(axes, [0.18], [resample], "tab:blue", "0% with resampled token maps")
        axes.set_xticks(positions, [f"{budget:g}%" for budget in BUDGETS.values()])
        axes.set(xlabel="extra bit operations", ylabel=label)
        axes.grid(alpha=0.3)
    axes.legend(fontsize="small")
    figure.suptitle("Ours at W4A6 by budget: mean and standard deviation of three seeds, and each seed")
    figure.savefig(file, format="png", dpi=120)


def _spread(axes: Axes, x: Any, values: Sequence[Sequence[float]], colour: str, label: str) -> None:
    means, spread = [np.mean(seeds) for seeds in values], [np.std(seeds, ddof=1) for seeds in values]
    axes.errorbar(x, means, spread, marker="o", capsize=4, color=colour, label=label)
    for position, seeds in zip(x, values, strict=True):
        axes.plot([position] * len(seeds), seeds, ".", color=colour, alpha=0.4)


def plot_operations(
    file: BinaryIO, rows: Rows, model: ModelInfo, facts: StageFacts, shift_and_sum: Mapping[str, Row]
) -> None:
    """Write a PNG: FID-E and KL by bit operations, a line for each method over settings of bits."""
    figure = Figure(figsize=(13, 4.8), layout="constrained")
    panels = figure.subplots(1, 2)
    for axes, (key, label) in zip(panels, _labels().items(), strict=True):
        for method, (name, colour, marker) in STYLES.items():
            points = []
            for bits in BITS:
                row = rows.get((recipe_name(method, bits), 0))
                if row is not None:
                    extra = shift_and_sum["0.01"]["operations"]
                    points.append((operations(model, facts, find_recipe(row["recipe"]), extra) / 1e9, row[key], bits))
            points.sort()
            axes.plot(*zip(*(point[:2] for point in points), strict=True), marker=marker, color=colour, label=name)
            if method in LABELLED:
                for x, y, bits in points:
                    place = {"xytext": LABELLED[method], "textcoords": "offset points", "fontsize": "xx-small"}
                    axes.annotate(bits[1::2], (x, y), **place)  # W4A6 as 46
        if key == "fid_e":
            axes.axhline(rows["fp32", 0][key], color="black", linestyle=":", label="full precision")
        axes.set(xscale="log", yscale="log", xlabel="bit operations an image's row, G", ylabel=label)
        axes.set_xticks([200, 300, 500, 1000], minor=False)
        axes.xaxis.set_major_formatter(ScalarFormatter())
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.grid(alpha=0.3, which="both")
    panels[1].set_yticks([60, 80, 100, 150, 200], minor=False)
    panels[1].yaxis.set_major_formatter(ScalarFormatter())
    panels[1].yaxis.set_minor_formatter(NullFormatter())
    handles, names = panels[1].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside right center", fontsize="small")
    figure.suptitle(
        "Quality by bit operations (46: 4-bit weights, 6-bit activations); products in floats at 16 x 16 bits"
    )
    figure.savefig(file, format="png", dpi=120)


def _labels() -> dict[str, str]:
    return {"kl": "KL, nats per token", "fid_e": "FID-E"}
