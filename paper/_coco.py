"""A user's COCO folder (Lin et al., 2014): pictures, their panoptic annotations, and AP by COCO's own evaluation.

    FOLDER/val2017/*.jpg, FOLDER/annotations/panoptic_val2017.json, FOLDER/annotations/panoptic_val2017/*.png

Instances are those of the panoptic annotations, as OneFormer's (Jain et al., 2023) are.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nextscale.paper._segmentation_scores import VOID
from nextscale.paper.segmentation import Instances, Segments
from nextscale.runtime._errors import NextscaleError
from nextscale.runtime._file_hash import file_sha256
from nextscale.runtime._read_picture import read_picture
from nextscale.runtime._regular_file import require_regular
from nextscale.runtime._wording import shown_text

SPLIT = "val2017"


@dataclass(frozen=True)
class CocoPicture:
    """A picture and what is in it.

    Attributes:
        number: COCO's.
        pixels: uint8 [H, W, 3].
        segments: with the model's classes.
        crowds: numbers of segments that are crowds.
    """

    number: int
    pixels: NDArray[np.uint8]
    segments: Segments
    crowds: frozenset[int]

    @property
    def classes(self) -> NDArray[np.int64]:
        """int64 [H, W]: the class of each pixel, VOID where there is none."""
        return np.append(VOID, self.segments.classes)[self.segments.ids]


class Coco:
    """The folder.

    Args:
        folder: see above.
        count: pictures that are looked at, the first ones by number; None: all.
    Attributes:
        names: of the categories, in their order.
        things: numbers of those that have instances.
        digest: of the annotations and the number of pictures.
    Raises:
        NextscaleError: annotations are missing or damaged.
    """

    def __init__(self, folder: Path, count: int | None = None) -> None:
        self._folder, self._path = folder, folder / "annotations" / f"panoptic_{SPLIT}.json"
        require_regular(self._path)
        try:
            told = json.loads(self._path.read_bytes())
            # Models number COCO's categories in their order.
            categories = sorted(told["categories"], key=lambda item: int(item["id"]))
            self._class_of = {int(item["id"]): number for number, item in enumerate(categories)}
            self.names = [str(item["name"]) for item in categories]
            self.things = frozenset(i for i, item in enumerate(categories) if item["isthing"])
            files = {int(item["id"]): str(item["file_name"]) for item in told["images"]}
            annotations = sorted(told["annotations"], key=lambda item: int(item["image_id"]))[:count]
            self._pictures = [
                (int(item["image_id"]), files[int(item["image_id"])], str(item["file_name"]), item["segments_info"])
                for item in annotations
            ]
        except OSError as error:
            raise NextscaleError(f"{self._path}: cannot be read: {error.strerror or error}") from None
        except (ValueError, TypeError, KeyError, OverflowError, RecursionError) as error:
            raise NextscaleError(f"{self._path}: no panoptic annotations: {shown_text(str(error))}") from None
        if not self._pictures:
            raise NextscaleError(f"{self._path}: annotates no picture")
        self.digest = f"{file_sha256(self._path)} {len(self._pictures)}"

    def __len__(self) -> int:
        return len(self._pictures)

    def __getitem__(self, place: int) -> CocoPicture:
        """The picture at a place.

        Raises:
            NextscaleError: it or its annotation cannot be read, or they do not belong together.
        """
        number, photograph, annotation, told = self._pictures[place]
        pixels = read_picture(self._folder / SPLIT / photograph).pixels
        path = self._path.with_suffix("") / annotation
        colours = read_picture(path).pixels.astype(np.int64)
        if colours.shape != pixels.shape:
            raise NextscaleError(f"{path}: of another size than {photograph}")
        ids = colours @ np.array([1, 2**8, 2**16])
        segments = np.zeros(ids.shape, np.int64)
        try:
            for place_of, item in enumerate(told, 1):
                segments[ids == int(item["id"])] = place_of
            classes = np.array([self._class_of[int(item["category_id"])] for item in told], np.int64)
            crowds = frozenset(i for i, item in enumerate(told, 1) if item["iscrowd"])
        except (ValueError, TypeError, KeyError, OverflowError) as error:
            raise NextscaleError(
                f"{self._path}: segments of picture {number}: {type(error).__name__} {shown_text(str(error))}"
            ) from None
        return CocoPicture(number, pixels, Segments(segments, classes), crowds)


class AveragePrecision:
    """COCO's AP over intersections over union of .5 to .95, by pycocotools.

    Args:
        things: classes that have instances.
    Raises:
        NextscaleError: pycocotools is not installed.
    """

    def __init__(self, things: Sequence[int]) -> None:
        try:
            self._mask = importlib.import_module("pycocotools.mask")
            self._coco = importlib.import_module("pycocotools.coco")
            self._evaluation = importlib.import_module("pycocotools.cocoeval")
        except ModuleNotFoundError:
            raise NextscaleError(
                'AP needs pycocotools, which is not installed: pip install "nextscale[coco]"'
            ) from None
        self._things = sorted(things)
        self._pictures, self._expected, self._found = list[dict[str, Any]](), list[dict[str, Any]](), list[Any]()

    def add(self, picture: CocoPicture, found: Instances) -> None:
        """Count a picture."""
        height, width = picture.segments.ids.shape
        self._pictures.append({"id": picture.number, "height": height, "width": width})
        for i, label in enumerate(picture.segments.classes, 1):
            if label in self._things:
                mask = self._encoded(picture.segments.ids == i)
                self._expected.append(
                    {
                        "id": len(self._expected) + 1,
                        "image_id": picture.number,
                        "category_id": int(label),
                        "iscrowd": int(i in picture.crowds),
                        "segmentation": mask,
                        "area": float(self._mask.area(mask)),
                        "bbox": self._mask.toBbox(mask).tolist(),
                    }
                )
        for pixels, label, score in zip(found.masks, found.classes, found.scores, strict=True):
            self._found.append(
                {
                    "image_id": picture.number,
                    "category_id": int(label),
                    "segmentation": self._encoded(pixels),
                    "score": float(score),
                }
            )

    def ap(self) -> float:
        """In [0, 1]; 0 where nothing was found or expected."""
        if not self._found or not self._expected:
            return 0.0
        with contextlib.redirect_stdout(io.StringIO()):
            expected = self._coco.COCO()
            expected.dataset = {
                "info": {},
                "images": self._pictures,
                "categories": [{"id": label, "name": str(label)} for label in self._things],
                "annotations": self._expected,
            }
            expected.createIndex()
            evaluation = self._evaluation.COCOeval(expected, expected.loadRes(self._found), "segm")
            evaluation.evaluate()
            evaluation.accumulate()
            evaluation.summarize()
        return max(float(evaluation.stats[0]), 0.0)

    def _encoded(self, mask: NDArray[np.bool_]) -> Any:
        return self._mask.encode(np.asfortranarray(mask.astype(np.uint8)))
