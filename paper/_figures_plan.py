"""What the paper's figures have left to do, told before anything begins."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from nextscale.evaluate.generated_statistics import Sampling, finished_images
from nextscale.paper._estimated_time import observing_seconds, picture_seconds
from nextscale.paper._figure import Workshop
from nextscale.paper._observed_attention import kept_images, kept_token_maps
from nextscale.paper._plan import OBSERVED, PICTURES, Pace, PlannedStep
from nextscale.paper.figure_attention_error import observing_of
from nextscale.paper.figure_frequencies import sampling_recipe
from nextscale.paper.figures import FIGURES, recipes_of
from nextscale.paper.recipe_bundles import FULL_PRECISION, RecipeBundle, UnbuiltBundle
from nextscale.runtime._manifest import ModelInfo
from nextscale.runtime._next_scale_loop import Generator

SAMPLES = "samples"
# A picture whose logits are kept takes as long as so many.
SAMPLING_IMAGES = 1.3

Rows = dict[str, RecipeBundle | UnbuiltBundle]


def plan_figures(workshop: Workshop, names: Sequence[str], model: ModelInfo) -> tuple[list[PlannedStep], list[str]]:
    """What is left to do; batches of two pictures are drawn with the bundles that have something left.

    Args:
        workshop: whose folder need not exist.
        names: of figures.
        model: the workshop's.
    Returns:
        A step for each recipe, which has its bundle and its pictures for IS and FID, and one for each figure that takes
        anything else; and lines on figures and recipes that are left out.
    """
    needing_photographs = [name for name in names if FIGURES[name].edits and workshop.photographs is None]
    reasons = dict.fromkeys(needing_photographs, "it edits photographs, and no --photographs are given")
    rows, left_out = Rows(), list[str]()
    for name in recipes_of([name for name in names if name not in reasons]):
        recipe = workshop.recipe(name)
        why = workshop.bundles.missing(recipe)
        if why is None:
            rows[name] = replace(workshop.bundles.planned(recipe), name=name)
        elif why not in left_out:
            left_out.append(why)
    for name in names:
        recipes = FIGURES[name].recipes
        if recipes and name not in reasons and not any(recipe in rows for recipe in recipes):
            reasons[name] = f"no bundle of {', '.join(recipes)}"
    left_out += [f"figure {name}: {reason}" for name, reason in reasons.items()]
    names = [name for name in names if name not in reasons]
    network = workshop.judges.network

    def batch(item: RecipeBundle) -> float:
        return picture_seconds(Generator(item.bundle, workshop.session), network, batch_size=2)

    pace = Pace(rows[FULL_PRECISION], batch)
    judged = {recipe for name in names if FIGURES[name].judged for recipe in (FULL_PRECISION, *FIGURES[name].recipes)}
    steps = [
        pace.step(item, {PICTURES: _pictures(workshop, item) if name in judged else 0}) for name, item in rows.items()
    ]
    counted = set[str]()  # of what several figures show, which the first of them makes
    for name in names:
        step = _figure(workshop, name, rows, pace, counted, model)
        steps += [] if step is None else [step]
    return steps, left_out


def _pictures(workshop: Workshop, item: RecipeBundle | UnbuiltBundle) -> int:
    """That are left for IS and FID."""
    network, done = workshop.judges.network, 0
    if network is not None and isinstance(item, RecipeBundle):
        generator = Generator(item.bundle, workshop.session)
        done = finished_images(generator, network, Sampling(workshop.settings.seed), workshop.statistics)
    return workshop.settings.images - done


def _figure(
    workshop: Workshop, name: str, rows: Rows, pace: Pace, counted: set[str], model: ModelInfo
) -> PlannedStep | None:
    """Of a figure, beside its recipes and what figures before it make; None of one that takes nothing else."""
    kind, settings, original = FIGURES[name], workshop.settings, rows[FULL_PRECISION]
    left, pictures = dict[str, int](), 0.0
    if kind.anew is not None:
        made = kind.anew(settings, sum(recipe in rows for recipe in kind.recipes))
        left[made.what], pictures = made.count, made.count * made.pictures
    shared = {*kind.observes} & {*rows} | ({SAMPLES} if kind.samples else set())
    shared -= counted
    counted |= shared
    if SAMPLES in shared and not workshop.bundles.has_maps(sampling_recipe(settings)):
        left[SAMPLES], pictures = settings.samples, settings.samples * SAMPLING_IMAGES
    observed = sum(_observed(workshop, original, rows[recipe]) for recipe in shared - {SAMPLES})
    if observed:
        left[OBSERVED], pictures = observed, pictures + _token_maps(workshop, original)
    if not left:
        return PlannedStep(f"figure {name}") if shared else None
    picture, basis = pace.of_original()
    seconds = pictures * picture + observed * observing_seconds(model)
    return PlannedStep(f"figure {name}", left, seconds, basis)


def _observed(workshop: Workshop, original: RecipeBundle | UnbuiltBundle, item: RecipeBundle | UnbuiltBundle) -> int:
    """Images on which a recipe's attention is yet to be observed."""
    observing, kept = observing_of(workshop.settings), 0
    if isinstance(original, RecipeBundle) and isinstance(item, RecipeBundle):
        kept = kept_images(original.bundle, item.bundle, observing, workshop.work)
    return observing.images - kept


def _token_maps(workshop: Workshop, original: RecipeBundle | UnbuiltBundle) -> int:
    """That full precision is yet to sample for that."""
    observing = observing_of(workshop.settings)
    kept = kept_token_maps(original.bundle, observing, workshop.work) if isinstance(original, RecipeBundle) else 0
    return max(observing.images - kept, 0)
