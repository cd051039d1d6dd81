"""A segmentation model in ONNX, such as OneFormer, run on photographs of any size.

The graph takes `pixel_values`, float32 [1, 3, H, W], and `task_inputs`, int64 [1, T], and gives `class_queries_logits`,
float32 [1, Q, K + 1], and `masks_queries_logits`, float32 [1, Q, h, w]. H and W are fixed. Its metadata has a value
`nextscale.segmentation`, JSON of five keys: `tasks`, the T numbers of `task_inputs` that ask for each of "semantic",
"instance" and "panoptic"; `classes`, K names; `things`, the numbers of those that have instances; `mean` and `std` of
each colour, of pixels in [0, 1]. A sixth, `weights`, may tell where the weights come from.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from nextscale.foreign.running import Running
from nextscale.paper.segmentation import Queries
from nextscale.runtime._errors import NextscaleError
from nextscale.runtime._photo import resized
from nextscale.runtime._read_picture import read_picture
from nextscale.runtime._regular_file import require_regular
from nextscale.runtime._session import SessionOptions
from nextscale.runtime._wording import shown_text, shown_value

METADATA = "nextscale.segmentation"
Task = Literal["semantic", "instance", "panoptic"]
TASKS: tuple[Task, ...] = ("semantic", "instance", "panoptic")
PIXELS, TASK = "pixel_values", "task_inputs"
CLASSES, MASKS = "class_queries_logits", "masks_queries_logits"
COLOURS = 3
# Of what is told of the weights.
LONGEST = 200


@dataclass(frozen=True)
class SegmenterInfo:
    """What a model's metadata says.

    Attributes:
        tasks: int64 [1, T] by task.
        classes: K names.
        things: numbers of the classes that have instances.
        mean, std: float32 [3], of the colours of pixels in [0, 1].
        weights: where they come from; empty where that is not told.
    """

    tasks: Mapping[Task, NDArray[np.int64]]
    classes: tuple[str, ...]
    things: frozenset[int]
    mean: NDArray[np.float32]
    std: NDArray[np.float32]
    weights: str

    @classmethod
    def from_json(cls, text: str) -> SegmenterInfo:
        """Read the metadata's value.

        Raises:
            ValueError: it is not as the module's docstring says.
        """
        try:
            told: dict[str, Any] = json.loads(text)
            tasks = {task: np.array([told["tasks"][task]], np.int64) for task in TASKS}
            mean, std = (np.array(told[name], np.float32) for name in ("mean", "std"))
            classes, things = tuple(map(str, told["classes"])), frozenset(map(int, told["things"]))
        except (ValueError, TypeError, KeyError, OverflowError, RecursionError) as error:
            raise ValueError(f"its {METADATA} is not as expected: {shown_text(str(error))}") from None
        if len({ids.shape for ids in tasks.values()}) > 1 or next(iter(tasks.values())).ndim != 2:
            raise ValueError(f"its {METADATA} has tasks that are no lists of the same length")
        are_of_colours = mean.shape == std.shape == (COLOURS,) and np.isfinite([mean, std]).all()
        if not are_of_colours or not (std > 0).all():
            raise ValueError(f"its {METADATA} has a mean or std that are not those of three colours")
        if not classes or not things <= {*range(len(classes))}:
            raise ValueError(f"its {METADATA} has things that are none of its {len(classes)} classes")
        return cls(tasks, classes, things, mean, std, shown_text(str(told.get("weights", "")), LONGEST))


class Segmenter:
    """A model in ONNX Runtime.

    Args:
        path: the file.
        options: threads and memory.
    Raises:
        NextscaleError: the file is missing, no ONNX model, or no segmentation model as above.
    """

    def __init__(self, path: Path, options: SessionOptions | None = None) -> None:
        require_regular(path)
        if not path.exists():
            raise NextscaleError(f"{path}: no such file; expected an ONNX model")
        self.running = Running.of(path, options or SessionOptions())
        session = self.running.session
        shapes = {item.name: item.shape for item in (*session.get_inputs(), *session.get_outputs())}
        missing = [name for name in (PIXELS, TASK, CLASSES, MASKS) if name not in shapes]
        if missing:
            raise NextscaleError(f"{path}: no segmentation model: it has no {', '.join(missing)}")
        size = shapes[PIXELS]
        if len(size) != 4 or size[:2] != [1, COLOURS] or not all(isinstance(side, int) for side in size):
            raise NextscaleError(f"{path}: {PIXELS} is {shown_value(size)}; expected [1, 3, H, W] with fixed sides")
        text = session.get_modelmeta().custom_metadata_map.get(METADATA)
        if text is None:
            raise NextscaleError(f"{path}: no {METADATA} in its metadata; examples/oneformer/export.py writes it")
        try:
            self.info = SegmenterInfo.from_json(text)
        except ValueError as error:
            raise NextscaleError(f"{path}: {error}") from None
        self.size = (int(size[2]), int(size[3]))
        self._path = path

    def fitted(self, pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """A photograph [h, w, 3] as large as fits into the model's size, in its own proportions."""
        (height, width), (tall, wide) = pixels.shape[:2], self.size
        scale = min(tall / height, wide / width)
        return resized(pixels, (max(1, round(height * scale)), max(1, round(width * scale))))

    def feed(self, pixels: NDArray[np.uint8], task: Task) -> dict[str, NDArray[Any]]:
        """What the graph is fed for a photograph [h, w, 3]; below it and on its right the mean colour is added."""
        small = self.fitted(pixels)
        values = np.zeros((1, COLOURS, *self.size), np.float32)
        normal = (small / np.float32(255) - self.info.mean) / self.info.std
        values[0, :, : small.shape[0], : small.shape[1]] = normal.transpose(2, 0, 1)
        return {PIXELS: values, TASK: self.info.tasks[task]}

    def queries(self, pixels: NDArray[np.uint8], task: Task) -> Queries:
        """What the model says of a photograph [h, w, 3], with masks of the photograph's size.

        Raises:
            NextscaleError: the model fails, or its outputs do not fit its metadata.
        """
        found = self.running.run(self.feed(pixels, task), [CLASSES, MASKS])
        classes, masks = found[CLASSES], found[MASKS]
        if classes.ndim != 3 or masks.ndim != 4 or classes.shape[-1] != len(self.info.classes) + 1:
            raise NextscaleError(
                f"{self._path}: gives {shown_value(classes)} and {shown_value(masks)}; expected [1, Q, "
                f"{len(self.info.classes) + 1}] for its {len(self.info.classes)} classes, and [1, Q, h, w]"
            )
        small = self.fitted(pixels).shape
        part = small[0] / self.size[0], small[1] / self.size[1]
        return Queries(classes[0], masks[0]).resized((pixels.shape[0], pixels.shape[1]), part)


def read_photographs(folder: Path) -> list[NDArray[np.uint8]]:
    """The pictures of a folder, uint8 [H, W, 3], hidden files aside, in the order of their names.

    Raises:
        NextscaleError: no such folder, none in it, or one that is no picture.
    """
    if not folder.is_dir():
        raise NextscaleError(f"{folder}: no such folder; expected photographs")
    names = sorted(path for path in folder.iterdir() if path.is_file() and not path.name.startswith("."))
    if not names:
        raise NextscaleError(f"{folder}: no files; expected photographs")
    return [read_picture(name).pixels for name in names]
