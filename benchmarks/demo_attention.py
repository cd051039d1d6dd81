"""How attention is distributed in the demo model: what `nextscale table-c` gives to models with random weights.

Writes paper/statistics/demo_attention.npz from a full-precision bundle of the demo model.
"""

from __future__ import annotations

import sys
from pathlib import Path

import click

from nextscale.calib_data.attention_scores import sampled_scores
from nextscale.paper._transfer_scores import statistics_writer
from nextscale.runtime._bundle import Bundle
from nextscale.runtime._session import SessionOptions
from nextscale.runtime.image_io import write_files

OUT = Path(__file__).parents[1] / "paper" / "statistics" / "demo_attention.npz"


@click.command()
@click.argument("bundle_dir", type=click.Path(path_type=Path))
@click.option("--images", type=int, default=32, show_default=True)
@click.option("--threads", type=int, default=2, show_default=True)
def main(bundle_dir: Path, images: int, threads: int) -> None:
    """Sample images with the full-precision bundle BUNDLE_DIR and count what its tokens draw."""
    bundle = Bundle.open(bundle_dir)
    options = SessionOptions(threads=threads)
    statistics = sampled_scores(bundle, images, 0, options, lambda done: print(f"{done}/{images}", file=sys.stderr))
    write_files({OUT: statistics_writer(statistics, bundle.model)})


if __name__ == "__main__":
    main()
