"""Fig. A, B and E: pictures of the same classes and seed, drawn in full precision and with recipes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nextscale.evaluate.psnr import psnr
from nextscale.evaluate.teacher_forced import evaluation_labels
from nextscale.paper._figure import Figure, FigureLeftOut, Workshop, rounded
from nextscale.paper._picture_sheet import picture_sheet
from nextscale.paper._rows import method_of
from nextscale.paper.recipe_bundles import FULL_PRECISION
from nextscale.runtime._next_scale_loop import Generation, StageResult
from nextscale.runtime.image_io import png_writer

METHODS = ("brecq-w6a6", "litevar-w6a6", "ours-w6a6")
BITS = ("ours-w6a6", "ours-w4a8", "ours-w4a4")
FORCED_STAGES = 2


def figure_a(workshop: Workshop) -> Figure:
    """Methods at 6/6 bits.

    Raises:
        FigureLeftOut: none of the recipes has a bundle.
    """
    return _figure(workshop, METHODS, forced_stages=0)


def figure_b(workshop: Workshop) -> Figure:
    """The same, with full precision's tokens at the first two stages, so that the composition stays.

    Raises:
        FigureLeftOut: see `figure_a`.
    """
    return _figure(workshop, METHODS, forced_stages=FORCED_STAGES)


def figure_e(workshop: Workshop) -> Figure:
    """Ours at several bits.

    Raises:
        FigureLeftOut: see `figure_a`.
    """
    return _figure(workshop, BITS, forced_stages=0)


def _figure(workshop: Workshop, names: Sequence[str], forced_stages: int) -> Figure:
    settings = workshop.settings
    items = workshop.found([FULL_PRECISION, *names])
    if len(items) < 2:
        raise FigureLeftOut(f"no bundle of {', '.join(names)}")
    manifest = workshop.original.bundle.manifest
    labels = evaluation_labels(manifest.model.num_classes, settings.pictures, settings.seed)
    forced_tokens = manifest.model.stage_slices[forced_stages - 1].stop if forced_stages else 0
    drawn, forced = dict[str, Generation](), None
    for name, item in items.items():
        drawn[name] = workshop.generator(item).generate(
            labels,
            seed=settings.seed,
            forced_tokens=None if name == FULL_PRECISION else forced,
            batch_size=settings.batch_size,
            on_stage=_teller(workshop, name, len(labels)),
        )
        if forced is None and forced_stages:
            forced = np.where(
                np.arange(manifest.model.num_tokens) < forced_tokens, drawn[FULL_PRECISION].token_maps, -1
            )
    classes = _class_names(manifest.class_names, labels)
    titles = {name: _title(name, items[name].bundle.manifest.recipe) for name in items}
    parameters = {"recipes": list(items), "seed": settings.seed, "classes": labels.tolist(), "forced": forced_stages}
    sheet = picture_sheet([found.images for found in drawn.values()], list(titles.values()), classes)
    return Figure(
        png_writer(sheet, parameters),
        {
            "seed": settings.seed,
            "classes": labels.tolist(),
            "class_names": classes,
            "stages_with_full_precision_tokens": forced_stages,
            "rows": {name: _row(found, drawn[FULL_PRECISION], forced_tokens) for name, found in drawn.items()},
        },
    )


def _teller(workshop: Workshop, name: str, images: int) -> Callable[[StageResult], None]:
    """Tells how many stages of all images are done."""
    return lambda result: workshop.tell(
        f"{name}: drawing, stages", result.first * result.num_stages + result.stage + 1, images * result.num_stages
    )


def _row(found: Generation, original: Generation, forced: int) -> dict[str, Any]:
    """How far the pictures are from full precision's."""
    return {
        "equal_tokens": rounded((found.token_maps == original.token_maps)[:, forced:].mean(1)),
        "psnr_to_full_precision": [
            rounded(psnr(expected, image)) if np.any(expected != image) else None
            for expected, image in zip(original.images, found.images, strict=True)
        ],
    }


def _title(name: str, recipe: Mapping[str, Any]) -> str:
    if name == FULL_PRECISION:
        return "Full\nprecision"
    return f"{method_of(name)}\n{recipe['weights']['bits']}/{recipe['activations']['bits']}"


def _class_names(names: Sequence[str] | None, labels: NDArray[np.int64]) -> list[str]:
    """The first of a class's names."""
    if not names:
        return [f"class {label}" for label in labels]
    return [names[label].partition(",")[0] for label in labels]
