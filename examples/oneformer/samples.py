"""Photographs as what `nextscale quantize` and `nextscale paper table-d` calibrate on.

    python samples.py oneformer.onnx photographs samples.npz

The photographs are asked for the three tasks in turn.
"""

import sys
from itertools import cycle
from pathlib import Path

import numpy as np

from nextscale.paper.segmenter import TASKS, Segmenter, read_photographs
from nextscale.runtime import NextscaleError
from nextscale.runtime.image_io import npz_writer, write_files


def main(model, folder, out):
    segmenter = Segmenter(Path(model))
    feeds = [segmenter.feed(pixels, task) for pixels, task in zip(read_photographs(Path(folder)), cycle(TASKS))]
    arrays = {name: np.concatenate([feed[name] for feed in feeds]) for name in feeds[0]}
    write_files({Path(out): npz_writer(arrays)})
    print(f"{out}: {len(feeds)} samples")


if __name__ == "__main__":
    if len(sys.argv) != 4:
        sys.exit(__doc__)
    try:
        main(*sys.argv[1:])
    except NextscaleError as error:
        sys.exit(f"error: {error}")
