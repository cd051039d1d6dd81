"""Fig. D: photographs edited in full precision and with recipes."""

from __future__ import annotations

from dataclasses import replace

from nextscale.evaluate.imagenet_classes import imagenet_ids
from nextscale.paper._class_scores import ClassProbability
from nextscale.paper._editing import PICTURED, Editing, Measures
from nextscale.paper._figure import Figure, FigureLeftOut, Workshop
from nextscale.paper._photographs import read_photographs
from nextscale.paper._table_3_sheet import sheet
from nextscale.paper.recipe_bundles import FULL_PRECISION
from nextscale.paper.table_3 import measure_table_3
from nextscale.runtime.image_io import png_writer

RECIPES = ("brecq-w6a6", "litevar-w6a6", "ours-w6a6")
PHOTOGRAPHS = max(part.stop for part in PICTURED.values())


def figure_d(workshop: Workshop) -> Figure:
    """The sheet of Table 3 on the first photographs of the seed; its numbers are that table's, of these few.

    Raises:
        FigureLeftOut: there are no photographs, or none of the recipes has a bundle.
    """
    if workshop.photographs is None:
        raise FigureLeftOut("it edits photographs, and no --photographs are given")
    settings, manifest = workshop.settings, workshop.original.bundle.manifest
    photographs = read_photographs(
        workshop.photographs,
        manifest.model,
        PHOTOGRAPHS,
        settings.seed,
        lambda done, total: workshop.tell("reading photographs", done, total),
    )
    items = workshop.found([FULL_PRECISION, *RECIPES])
    if len(items) < 2:
        raise FigureLeftOut(f"no bundle of {', '.join(RECIPES)}")
    for item in items.values():
        workshop.generator(item)
    ids = imagenet_ids(manifest.class_names, manifest.model.num_classes)
    assert workshop.judges.classifier is not None  # as the figure edits
    measures = Measures(workshop.judges.distances, ClassProbability(workshop.judges.classifier, ids))
    known = measures.known(photographs.labels).any()
    table = measure_table_3(
        list(items.values()),
        photographs,
        measures if known else replace(measures, class_score=None),
        Editing(settings.seed, settings.seed, batch_size=settings.batch_size),
        workshop.work,
        options=workshop.session,
        on_images=lambda name, done: workshop.tell(f"{name}: editing", done, len(photographs)),
    )
    if not known:
        workshop.left_out.append("class-conditional editing: no photograph has a class that the classifier knows")
    parameters = {"rows": [row.name for row in table.rows], **table.settings}
    return Figure(png_writer(sheet(table), parameters), table.to_json())
