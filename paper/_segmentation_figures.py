"""What Table D measures of each row's segmentations, kept in a folder and gone on with there row by row."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from nextscale.evaluate._kept_figures import kept_file, number_or_nan, or_none, read_json
from nextscale.measure.statistics import Interval
from nextscale.paper._coco import Coco
from nextscale.paper._coco_scores import CocoScores, coco_scores, require_classes
from nextscale.paper._segmentation_agreement import Agreement, Pixels, Seen, Thresholds, agreement, see
from nextscale.paper.segmenter import Segmenter
from nextscale.runtime._checked_json import JsonNode
from nextscale.runtime._file_hash import file_sha256
from nextscale.runtime._session import SessionOptions
from nextscale.runtime.image_io import write_files

OnPictures = Callable[[str, int, int], object]


@dataclass(frozen=True)
class Figures:
    """Of one row.

    Attributes:
        agreement: with full precision; None for full precision.
        coco: None without COCO.
    """

    agreement: Agreement | None
    coco: CocoScores | None


class SegmentationFigures:
    """What is looked at, and the figures that an earlier call left.

    Args:
        original: the file of full precision.
        photographs: uint8 [H, W, 3].
        coco: None: without.
        thresholds: of panoptic segments.
        folder: for the figures; an existing one, if any are to be kept.
        options: threads and memory.
        on_pictures: called with what is done, and how many of how many are finished.
    Raises:
        NextscaleError: the file is no segmentation model, or has other classes than COCO.
    """

    def __init__(
        self,
        original: Path,
        photographs: Sequence[Pixels],
        coco: Coco | None,
        thresholds: Thresholds,
        folder: Path,
        options: SessionOptions,
        on_pictures: OnPictures,
    ) -> None:
        self.original = Segmenter(original, options)
        if coco is not None:
            require_classes(coco, self.original)
        self._photographs, self._coco, self._thresholds = photographs, coco, thresholds
        self._folder, self._options, self._on_pictures = folder, options, on_pictures
        digest = hashlib.sha256()
        for photograph in photographs:
            digest.update(str(photograph.shape).encode() + photograph.tobytes())
        self._told = {
            "original": file_sha256(original),
            "photographs": digest.hexdigest(),
            "coco": None if coco is None else coco.digest,
            **asdict(thresholds),
        }
        self._expected: list[Seen] | None = None

    def of(self, name: str, path: Path | None) -> Figures:
        """Of a row.

        Args:
            name: the row's.
            path: of its model; None: it is full precision.
        Raises:
            NextscaleError: the model cannot be run, or what an earlier call left is damaged.
        """
        kept = self._file(name, path)
        if kept.exists():
            return _read(kept)
        segmenter = self.original if path is None else Segmenter(path, self._options)
        found = Figures(
            None if path is None else agreement(self._seen(), self._look(name, segmenter), len(segmenter.info.classes)),
            None if self._coco is None else self._scores(name, segmenter, self._coco),
        )
        text = json.dumps(asdict(found), indent=1) + "\n"
        write_files({kept: lambda file: file.write(text.encode())})
        return found

    def are_kept(self, name: str, path: Path | None) -> bool:
        """Whether an earlier call left those of a row; see `of`."""
        return self._file(name, path).exists()

    def seconds_per_photograph(self) -> float:
        """That full precision takes for the first, behind a run that warms up."""
        first = self._photographs[:1]
        see(self.original, first, self._thresholds, lambda done: None)
        began = time.perf_counter()
        see(self.original, first, self._thresholds, lambda done: None)
        return time.perf_counter() - began

    def _file(self, name: str, path: Path | None) -> Path:
        told = {**self._told, "model": None if path is None else file_sha256(path)}
        digest = hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()[:12]
        return self._folder / f"{name if path is None else path.stem}-{digest}.json"

    def _seen(self) -> list[Seen]:
        """What full precision sees, which is looked at once, when the first row has to be compared."""
        if self._expected is None:
            self._expected = self._look("full precision", self.original)
        return self._expected

    def _look(self, name: str, segmenter: Segmenter) -> list[Seen]:
        total, what = len(self._photographs), f"{name}: photographs"
        return see(segmenter, self._photographs, self._thresholds, lambda done: self._on_pictures(what, done, total))

    def _scores(self, name: str, segmenter: Segmenter, coco: Coco) -> CocoScores:
        what = f"{name}: COCO"
        return coco_scores(coco, segmenter, self._thresholds, lambda done: self._on_pictures(what, done, len(coco)))


def _read(path: Path) -> Figures:
    with kept_file(path, "measure that row again"):
        found = read_json(path)
        return Figures(or_none(found["agreement"], _agreement), or_none(found["coco"], _coco_scores))


def _agreement(found: JsonNode) -> Agreement:
    pixels = {item.name: number_or_nan(found["pixels"][item.name]) for item in fields(Interval)}
    return Agreement(
        photographs=found["photographs"].integer(1),
        pixels=Interval(**pixels),
        miou=found["miou"].number(),
        pq=or_none(found["pq"], JsonNode.number),
        segments=found["segments"].integer(),
    )


def _coco_scores(found: JsonNode) -> CocoScores:
    return CocoScores(
        pictures=found["pictures"].integer(1),
        miou=or_none(found["miou"], JsonNode.number),
        ap=found["ap"].number(),
        pq=or_none(found["pq"], JsonNode.number),
    )
