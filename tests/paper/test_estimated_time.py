"""What a user is told before long work, against numbers that were counted by hand."""

from __future__ import annotations

from dataclasses import replace

import pytest
from model_infos import VAR_D16, facts_of

from nextscale.graph_passes.recipe import load_recipe
from nextscale.paper._estimated_time import (
    MULTIPLY_ADDS,
    OBSERVED,
    build_seconds,
    image_seconds,
    in_words,
    observing_seconds,
)


def test_an_image_takes_its_two_rows() -> None:
    """VAR-d16 has 150.19 G multiply-adds a row, 24 * 140.8 + 36 * 9.39 = 3717 G bit operations at 4/6."""
    assert image_seconds(VAR_D16, facts_of(VAR_D16)) == pytest.approx(2 * 150.19e9 / MULTIPLY_ADDS, rel=1e-4)


def test_observing_takes_all_attention_weights() -> None:
    """9.39 G multiply-adds are 2 * 1024 * 16 a query and key."""
    pairs = 9.39e9 / (2 * 1024 * 16)
    assert observing_seconds(VAR_D16) == pytest.approx(2 * 16 * 16 * pairs / OBSERVED, rel=1e-3)


def test_a_build_takes_longer_with_more_images() -> None:
    recipe = load_recipe("default")
    few = replace(recipe, calibration=replace(recipe.calibration, images=2))
    assert build_seconds(recipe, 0.25) - build_seconds(few, 0.25) == pytest.approx(
        0.5 * (recipe.calibration.images - 2)
    )
    assert build_seconds(load_recipe("fp32"), 0.25) < build_seconds(few, 0.25)


@pytest.mark.parametrize(("seconds", "text"), [(0.2, "1 s"), (99, "99 s"), (150, "2 min"), (7200, "2.0 h")])
def test_times_in_words(seconds: float, text: str) -> None:
    assert in_words(seconds) == text
