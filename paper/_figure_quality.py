"""IS and FID of bundles for the figures that show them: Fig. 5(c-d) and F."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from nextscale.evaluate.generated_statistics import Sampling
from nextscale.evaluate.image_comparison import Job, compare_images
from nextscale.evaluate.image_metrics import ImageMetrics
from nextscale.paper._figure import Workshop, rounded
from nextscale.paper.recipe_bundles import FULL_PRECISION, RecipeBundle
from nextscale.runtime._outputs import make_folder


@dataclass(frozen=True)
class Qualities:
    """What pictures of bundles are like, as sets.

    Attributes:
        names: of IS and of FID, as the feature network has them; FID's is that to full precision's pictures where
            there are no real ones.
        metrics: by recipe, full precision first.
        bundles: by recipe.
        to_real: whether FID is to real pictures.
    """

    names: tuple[str, str]
    metrics: Mapping[str, ImageMetrics]
    bundles: Mapping[str, RecipeBundle]
    to_real: bool

    def score(self, name: str) -> float:
        """IS of a recipe."""
        return self.metrics[name].inception_score.value

    def distance(self, name: str) -> float:
        """FID of a recipe; 0 of full precision where there are no real pictures."""
        found = self.metrics[name]
        value = found.fid if self.to_real else found.fid_to_full_precision
        return 0.0 if value is None else value

    def score_error(self, name: str) -> float:
        """Standard error of a recipe's IS over its pictures; NaN where they are few."""
        return self.metrics[name].inception_score.stderr

    def numbers(self) -> dict[str, dict[str, Any]]:
        """All figures, by recipe."""
        score, fid = self.names
        plain = fid.partition(" ")[0]
        return {
            name: {
                "images": found.images,
                score: rounded(found.inception_score.value),
                f"{score} standard error": rounded(found.inception_score.stderr),
                plain: rounded(found.fid),
                f"{plain} to full precision": rounded(found.fid_to_full_precision),
            }
            for name, found in self.metrics.items()
        }


def qualities_of(workshop: Workshop, names: Iterable[str]) -> Qualities:
    """Draw with full precision and with the recipes' bundles that are there, or go on with what an earlier call drew.

    Args:
        workshop: with a feature network.
        names: of recipes.
    """
    settings, judges = workshop.settings, workshop.judges
    network = judges.network
    assert network is not None
    items = workshop.found([FULL_PRECISION, *names])
    by_path = {item.bundle.path: name for name, item in items.items()}
    for item in items.values():
        workshop.generator(item)

    def on_images(job: Job, seed: int, done: int) -> None:
        workshop.tell(f"{by_path[job.bundle.path]}: drawing", done, settings.images)

    make_folder(workshop.statistics)
    rows = compare_images(
        [item.bundle for item in items.values()],
        network,
        workshop.statistics,
        full_precision=workshop.original.bundle,
        reference=judges.reference,
        images=settings.images,
        seeds=(settings.seed,),
        sampling=Sampling(),
        batch_size=settings.batch_size,
        options=workshop.session,
        on_images=on_images,
    )
    fid, score = network.metrics
    to_real = judges.reference is not None
    return Qualities(
        (score, fid if to_real else f"{fid} to full precision"),
        {by_path[row.bundle]: row.metrics[0] for row in rows},
        items,
        to_real,
    )
