"""How near to full precision each recipe is on the demo model: figures that come with nextscale.

`benchmarks/demo_recipe_agreement.py` makes the file from results of the demo model's bundles.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache
from importlib.resources import files

FILE = "recipe_agreement.json"


@dataclass(frozen=True)
class DemoAgreement:
    """Teacher-forced agreement of the demo model's bundle with full precision.

    Attributes:
        kl: of the guided distributions, nats per token.
        kl_stderr: over images.
        top1: share of tokens whose likeliest entry is the same.
    """

    kl: float
    kl_stderr: float
    top1: float


@cache
def _document() -> dict[str, object]:
    document: dict[str, object] = json.loads((files("nextscale.paper") / FILE).read_text(encoding="utf-8"))
    return document


def demo_agreement(recipe: str) -> DemoAgreement | None:
    """The figures of a recipe that comes with nextscale; full precision agrees with itself. None: not measured."""
    if recipe == "fp32":
        return DemoAgreement(0.0, 0.0, 1.0)
    recipes = _document()["recipes"]
    assert isinstance(recipes, dict)
    return DemoAgreement(**recipes[recipe]) if recipe in recipes else None


def agreement_provenance() -> str:
    """How the figures were measured, in a line."""
    return str(_document()["measured"])
