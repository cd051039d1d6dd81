"""Draw what one model, or several side by side, see in photographs: a line for each, classes and segments.

python segment.py oneformer.onnx oneformer_int8.onnx --images photographs --out sheet.png
"""

import argparse
import colorsys
import os
import sys
from pathlib import Path

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # before the import that would start it

import numpy as np

from nextscale.paper.segmentation import OVERLAP, SCORE, panoptic_segments, semantic_map
from nextscale.paper.segmenter import Segmenter, read_photographs
from nextscale.runtime import NextscaleError
from nextscale.runtime.image_io import picture_writer, write_files

GOLDEN = 0.618034  # of a turn of the hue: neighbouring numbers get colours far apart
SHARE = 0.6  # of a colour over the photograph
GAP = 4


def colours(count):
    """uint8 [count, 3]."""
    hues = (np.arange(count) * GOLDEN) % 1
    return np.array([colorsys.hsv_to_rgb(hue, 0.75, 1) for hue in hues]).reshape(-1, 3) * 255


def overlay(pixels, numbers):
    """The photograph with a colour for each number above 0, and dark lines where they change."""
    palette = colours(numbers.max() + 1)
    mixed = np.where(numbers[..., None] > 0, (1 - SHARE) * pixels + SHARE * palette[numbers], pixels)
    edges = np.zeros(numbers.shape, bool)
    edges[:, 1:] |= numbers[:, 1:] != numbers[:, :-1]
    edges[1:] |= numbers[1:] != numbers[:-1]
    return np.where(edges[..., None], 0, mixed).astype(np.uint8)


def drawn(segmenters, photograph, score, overlap):
    """The photograph and, of each model, its classes and its segments: uint8 [H, W, 3], each of the same size."""
    small = segmenters[0].fitted(photograph)
    pictures = [small]
    for segmenter in segmenters:
        pictures.append(overlay(small, semantic_map(segmenter.queries(small, "semantic")) + 1))
        segments = panoptic_segments(segmenter.queries(small, "panoptic"), segmenter.info.things, score, overlap)
        pictures.append(overlay(small, segments.ids))
        named = ", ".join(segmenter.info.classes[label] for label in segments.classes)
        print(f"{len(segments.classes)} segments: {named}")
    return pictures


def sheet(lines):
    """All pictures of all lines on white."""
    tall, wide = (max(picture.shape[axis] for line in lines for picture in line) + GAP for axis in (0, 1))
    canvas = np.full((tall * len(lines), wide * len(lines[0]), 3), 255, np.uint8)
    for row, line in enumerate(lines):
        for column, picture in enumerate(line):
            height, width, _ = picture.shape
            canvas[row * tall :, column * wide :][:height, :width] = picture
    return canvas


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", type=Path, nargs="+", metavar="MODEL.onnx")
    parser.add_argument("--images", type=Path, required=True, metavar="FOLDER")
    parser.add_argument("--score", type=float, default=SCORE, help="the least probability of a segment's class")
    parser.add_argument("--overlap", type=float, default=OVERLAP, help="the least share of its mask that it keeps")
    parser.add_argument("--out", type=Path, required=True, metavar="FILE.png")
    arguments = parser.parse_args()
    segmenters = [Segmenter(path) for path in arguments.models]
    options = arguments.score, arguments.overlap
    picture = sheet([drawn(segmenters, photograph, *options) for photograph in read_photographs(arguments.images)])
    write_files({arguments.out: picture_writer(arguments.out, picture, {"models": [*map(str, arguments.models)]})})


if __name__ == "__main__":
    try:
        main()
    except NextscaleError as error:
        sys.exit(f"error: {error}")
