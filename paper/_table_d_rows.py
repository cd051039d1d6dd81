"""Table D's rows: the paper's recipes as they can be carried to a model that is only a graph, and ours.

The layer after GELU, which LiteVAR keeps in float, is found in the graph.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import onnx_ir as ir

from nextscale.graph_passes.linear_layers import linear_layers
from nextscale.graph_passes.recipe import Recipe, load_recipe
from nextscale.paper._rows import METHODS, method_of
from nextscale.paper.recipe_bundles import FULL_PRECISION
from nextscale.runtime._errors import NextscaleError

BITS = ("w6a6", "w4a4")
ROWS = (FULL_PRECISION, "default", "static-w8a8", *(f"{method}-{bits}" for bits in BITS for method in METHODS))
# Operators that a GELU is written with, and what may stand between it and the layer.
GELUS, BETWEEN = ("Gelu", "FastGelu", "BiasGelu", "Erf"), ("Mul", "Add", "Div", "Cast", "Reshape", "Identity")
DEEPEST = 6


@dataclass(frozen=True)
class PlannedRow:
    """A row that is to be made.

    Attributes:
        name: of the row.
        method: what the table calls it, bits aside.
        recipe: how it is quantized; None for full precision.
    """

    name: str
    method: str
    recipe: Recipe | None

    @property
    def bits(self) -> str:
        """Of weights and activations."""
        return "32/32" if self.recipe is None else f"{self.recipe.weights.bits}/{self.recipe.activations.bits}"


def plan_rows(
    names: Sequence[str], behind_gelu: Sequence[str], budget: float | None = None
) -> tuple[list[PlannedRow], list[str]]:
    """The rows of these names, full precision first, and a line on each that the model cannot have.

    Args:
        names: of ROWS, of other recipes, or recipes' files.
        behind_gelu: names of the model's layers that read a GELU (`layers_behind_gelu`).
        budget: of shift-and-sum, instead of the recipes'.
    Raises:
        NextscaleError: a row is unknown or there twice, or full precision is missing.
    """
    rows = [_plan_row(name, behind_gelu, budget) for name in names]
    found = [row.name for row in rows]
    if len(set(found)) < len(found):
        raise NextscaleError(f"rows: {', '.join(found)}: one is there twice")
    if FULL_PRECISION not in found:
        raise NextscaleError(f"rows: {', '.join(found)}: no full precision ({FULL_PRECISION}), the reference")
    rows.sort(key=lambda row: row.recipe is not None)
    idle = [row.name for row in rows if not behind_gelu and _keeps_behind_gelu(row.name)]
    left_out = [f"{name}: no linear layer of the model reads a GELU" for name in idle]
    return [row for row in rows if row.name not in idle], left_out


def _plan_row(name: str, behind_gelu: Sequence[str], budget: float | None) -> PlannedRow:
    if name == FULL_PRECISION:
        return PlannedRow(name, method_of(name), None)
    recipe = _within(load_recipe(name), budget)
    if not name.endswith(".toml"):  # those that come along name layers of other models
        recipe = replace(recipe, layers=dict.fromkeys(behind_gelu if _keeps_behind_gelu(name) else (), "float"))
    return PlannedRow(recipe.name, method_of(recipe.name), recipe)


def _keeps_behind_gelu(name: str) -> bool:
    """Whether a row is by LiteVAR's rule."""
    return "LiteVAR" in method_of(name)


def layers_behind_gelu(graph: ir.Graph) -> list[str]:
    """Names of the linear layers of a normalized graph that read a GELU."""
    return [layer.name for layer in linear_layers(graph) if _is_gelu(layer.activation)]


def _is_gelu(value: ir.Value, depth: int = DEEPEST) -> bool:
    node = value.producer()
    if node is None or node.op_type in GELUS:
        return node is not None
    if node.op_type not in BETWEEN or not depth:
        return False
    return any(_is_gelu(operand, depth - 1) for operand in node.inputs if operand is not None)


def _within(recipe: Recipe, budget: float | None) -> Recipe:
    if budget is None or recipe.attention.shift_and_sum == "off":
        return recipe
    return replace(recipe, attention=replace(recipe.attention, budget=budget))
