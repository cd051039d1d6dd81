"""What is told before long work: numbers counted by hand."""

from __future__ import annotations

from dataclasses import replace

import pytest
from model_infos import VAR_D16, facts_of

from nextscale.graph_passes.recipe import load_recipe
from nextscale.paper._estimated_size import bundle_bytes
from nextscale.paper._estimated_time import BUILDING_IMAGES, FLOAT_SECONDS, INTEGER_SECONDS
from nextscale.paper._plan import Pace, PlannedStep
from nextscale.paper.recipe_bundles import RecipeBundle, UnbuiltBundle
from nextscale.runtime._bundle import Bundle

FULL, DEFAULT = load_recipe("fp32"), load_recipe("default")
FEW = replace(DEFAULT, calibration=replace(DEFAULT.calibration, images=2))


def never(item: RecipeBundle) -> float:
    raise AssertionError(item)


def test_bytes_of_linear_layers_are_those_of_their_codes() -> None:
    """Of VAR-d16's layers and 100 other parameters."""
    facts, wide = facts_of(VAR_D16), 1024 * 1024
    layers = sum(layer.shape[0] * layer.shape[1] for layer in facts.layers)
    total = layers + 100
    assert bundle_bytes(FULL, facts, total) == 4 * total
    assert bundle_bytes(load_recipe("brecq-w8a8"), facts, total) == total
    assert bundle_bytes(load_recipe("brecq-w4a6"), facts, total) == layers // 2 + 100
    # LiteVAR keeps the layer after GELU in floats: 4 of 1024 x 1024 in each block, 4 bytes each instead of half a one.
    kept = 16 * 4 * wide
    assert bundle_bytes(load_recipe("litevar-w4a6"), facts, total) == (layers - kept) // 2 + 4 * kept + 100


def test_what_is_not_built_takes_operations() -> None:
    full, default = UnbuiltBundle("fp32", FULL, 8, 0.5), UnbuiltBundle("default", FEW, 2, 0.5, learns=True)
    pace = Pace(full, never)
    assert pace.step(full, {"pictures": 6}) == PlannedStep(
        "fp32", {"pictures": 6}, 3 + FLOAT_SECONDS + 0.5 * BUILDING_IMAGES, "operations", True, False, 8
    )
    assert pace.step(full, {"pictures": 6, "compared": 0}, name="again") == PlannedStep(
        "again", {"pictures": 6}, 3.0, "operations"
    )
    building = INTEGER_SECONDS + 0.5 * (BUILDING_IMAGES + 4)
    assert pace.step(default, {"pictures": 6, "compared": 2}) == PlannedStep(
        "default", {"pictures": 6, "compared": 2}, 4 + building, "operations", True, True, 2
    )


def test_a_batch_is_drawn_once_and_only_where_something_is_left(fake_bundle: object) -> None:
    tried = list[str]()

    def batch(item: RecipeBundle) -> float:
        tried.append(item.name)
        return 2.0

    bundle = Bundle.open(fake_bundle)  # type: ignore[arg-type]
    full, there = RecipeBundle("fp32", bundle), RecipeBundle("there", bundle)
    pace = Pace(full, batch, images=4)
    assert pace.step(there, {"photographs": 0}) == PlannedStep("there")
    assert pace.step(there, {"photographs": 0}).is_finished
    assert not tried
    assert pace.step(there, {"photographs": 3}) == PlannedStep("there", {"photographs": 3}, 6, "its own batch")
    step = pace.step(UnbuiltBundle("default", FEW, 2, 9), {"photographs": 3})
    assert (step.basis, step.seconds) == (
        "full precision's batch",
        pytest.approx(6 + INTEGER_SECONDS + 0.5 * (BUILDING_IMAGES + 4)),
    )
    pace.step(full, {"photographs": 1})
    assert tried == ["there", "fp32"]
