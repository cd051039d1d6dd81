"""Table B(b): pictures of the baseline and of shift-and-sum at three thetas, at 4/6 bits."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from nextscale.calib_data.attention_scores import ScoreStatistics, sampled_scores
from nextscale.calib_data.choose_theta import ThetaChoice, theta_at
from nextscale.evaluate._kept_figures import file_of, kept_file
from nextscale.graph_passes.layer_facts import StageFacts
from nextscale.graph_passes.recipe import Recipe
from nextscale.models.bit_operations import keys
from nextscale.paper._quality import OnImages
from nextscale.paper._quality_table import PaperRow, QualityTable
from nextscale.paper._transfer_scores import demo_statistics, read_scores, statistics_writer
from nextscale.paper.paper_recipes import paper_recipe
from nextscale.paper.paper_table import PaperTable
from nextscale.paper.paper_table import markdown as page
from nextscale.paper.recipe_bundles import FULL_PRECISION, RecipeBundles
from nextscale.paper.table_b import BITS, DEPTH, THETAS
from nextscale.runtime._bundle import Bundle
from nextscale.runtime._manifest import ModelInfo
from nextscale.runtime._session import SessionOptions
from nextscale.runtime.image_io import write_files

BASELINE, SHIFTED = "brecq-w4a6", "shift-and-sum-w4a6"
SCORE_IMAGES = 32  # as a build observes


def row_name(theta: float) -> str:
    """Of the row of a theta."""
    return f"theta-{theta:g}"


PAPER: Mapping[str, PaperRow] = {
    BASELINE: PaperRow(145.6, 11.16, 10.57),
    row_name(0.05): PaperRow(155.4, 10.15, 9.55),
    row_name(0.1): PaperRow(155.2, 10.25, 9.57),
    row_name(0.2): PaperRow(154.3, 10.33, 9.71),
}
METHODS = {BASELINE: "Baseline (BRECQ)"} | {row_name(theta): f"Shift-and-sum, theta {theta:g}" for theta in THETAS}
QUALITY = QualityTable("B(b)", "pictures by theta", (FULL_PRECISION, *METHODS), METHODS, {DEPTH: PAPER})


@dataclass(frozen=True)
class TableB:
    """Both parts.

    Attributes:
        costs: part (a).
        quality: part (b); None where it is not measured.
        left_out: lines on its rows then.
    """

    costs: PaperTable
    quality: PaperTable | None
    left_out: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        quality = None if self.quality is None else self.quality.to_json()
        return {"costs": self.costs.to_json(), "quality": quality, "left_out": [*self.left_out]}


def markdown(table: TableB) -> str:
    """Both pages."""
    pages = [page(table.costs), *([] if table.quality is None else [page(table.quality)])]
    pages += [f"- left out of B(b): {line}\n" for line in table.left_out]
    return "\n".join(pages)


def row_recipe(name: str, *, nearest: bool) -> Recipe:
    """The recipe of a row.

    Args:
        name: of METHODS.
        nearest: round its weights to nearest, where they cannot be learned.
    """
    recipe = paper_recipe(BASELINE if name == BASELINE else SHIFTED)
    return replace(recipe, weights=replace(recipe.weights, rounding="nearest")) if nearest else recipe


def with_roundings(bundles: RecipeBundles, name: str) -> RecipeBundles:
    """For a row: rounding that was learned with its theta lies in a folder of its name among all rounding, if any."""
    own = None if bundles.roundings is None else bundles.roundings / name
    return bundles if own is None or not own.is_dir() else replace(bundles, roundings=own)


def bundles_at(bundles: RecipeBundles, choice: ThetaChoice) -> RecipeBundles:
    """Those of a theta."""
    return replace(with_roundings(bundles, row_name(choice.theta)), theta=choice)


def choices(statistics: ScoreStatistics, model: ModelInfo, facts: StageFacts) -> list[ThetaChoice]:
    """Of each theta, with the costs of the published form, as builds count them."""
    return [theta_at(statistics, model, facts, BITS, theta) for theta in THETAS]


def kept_scores(
    original: Bundle, seed: int, work: Path, options: SessionOptions, on_images: OnImages, *, lent: bool
) -> ScoreStatistics:
    """The attention that tokens draw: what an earlier call left in `work`, or else observed, or lent.

    Args:
        original: the model in full precision.
        seed: of the images that it samples.
        work: an existing folder.
        options: threads and memory.
        on_images: told how many of the images are finished.
        lent: the demo model's instead, for random weights, which attend to everything alike.
    """
    if lent:
        return demo_statistics(original.model)
    path = scores_file(original, seed, work)
    if not path.exists():
        found = sampled_scores(
            original, SCORE_IMAGES, seed, options, lambda done: on_images("observing attention", done, SCORE_IMAGES)
        )
        write_files({path: statistics_writer(found, original.model)})
    with kept_file(path, "observe attention again"):
        found, tokens = read_scores(path)
        model = original.model
        samples = SCORE_IMAGES * 2 * model.num_heads * model.depth
        if not np.array_equal(tokens, keys(model)) or (found.images, found.samples) != (SCORE_IMAGES, samples):
            raise ValueError("of another model, or of other images")
    return found


def scores_file(original: Bundle, seed: int, work: Path) -> Path:
    """Where `kept_scores` keeps them."""
    return file_of(original, work, {"images": SCORE_IMAGES, "seed": seed}, "{bundle}-{digest}-scores.npz")


def rounding_note(bundles: RecipeBundles, *, nearest: bool) -> Sequence[str]:
    """A line on the rows' rounding, where it was not learned with their own theta."""
    if nearest:
        return ["weights are rounded to nearest"]
    folder = bundles.roundings
    if folder is None or not (folder / f"{SHIFTED}.safetensors").exists():
        return []
    shared = ", ".join(f"{theta:g}" for theta in THETAS if not (folder / row_name(theta)).is_dir())
    if not shared:
        return []
    return [
        f"the rounding of the rows of theta {shared} is that of {SHIFTED}, learned with the theta of its own budget"
    ]
