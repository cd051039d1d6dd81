"""How often attentive tokens find no place, on images that places were not chosen on.

A debug bundle (`nextscale build … --debug`) counts them: in each block and stage, over rows and heads.
"""

from __future__ import annotations

from pathlib import Path

import click
import numpy as np
from provenance import provenance, publish

from nextscale.evaluate.teacher_forced import evaluation_labels
from nextscale.runtime._bundle import Bundle
from nextscale.runtime._next_scale_loop import Generator
from nextscale.runtime._session import SessionOptions

SEED = 1  # calibration uses 0


@click.command()
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option("--images", type=int, default=64, show_default=True)
@click.option("--threads", type=int, default=2, show_default=True)
def main(bundle: Path, images: int, threads: int) -> None:
    """Count the attentive tokens without a place in the debug bundle BUNDLE."""
    opened = Bundle.open(bundle)
    counters = [t.name for t in opened.manifest.graphs["stage"].outputs if t.name.startswith("overflow.")]
    if not counters:
        raise SystemExit(f"error: {bundle} counts no attentive tokens; build it with --debug and shift-and-sum")
    generator, model = Generator(opened, SessionOptions(threads=threads)), opened.model
    # Of one image at a time: what is counted is a sum, and a share of heads needs more.
    lost = np.zeros((model.num_stages, len(counters)), np.int64)
    full = np.zeros_like(lost)
    for i, label in enumerate(evaluation_labels(model.num_classes, images, SEED).tolist()):
        for result in generator.stream([label], seed=SEED, first_image=i, outputs=counters):
            counts = np.array([int(result.outputs[name]) for name in counters])
            lost[result.stage] += counts
            full[result.stage] += counts > 0
    found = dict(opened.manifest.recipe["shift_and_sum"])
    heads = images * 2 * model.num_heads
    lines = [
        "# Attentive tokens without a place",
        "",
        *provenance(threads),
        f"- {opened.manifest.recipe['name']} of {opened.manifest.name}, {images} images of seed {SEED}: theta "
        f"{found['theta']}, chosen on {found['images']} images of seed 0 so that at most a share of "
        f"{found['overflow']} of heads has too few",
        "",
        "| stage | places per row and head | tokens without one, per row, head and block | images, blocks with any |",
        "|---|---|---|---|",
    ]
    for stage, places in enumerate(found["rows"]):
        tokens, share = lost[stage].sum() / (heads * len(counters)), full[stage].sum() / (images * len(counters))
        lines.append(f"| {stage + 1} | {places} | {tokens:.5f} | {share:.2%} |")
    publish("attentive_overflow", lines)


if __name__ == "__main__":
    main()
