"""Whether pictures show what their prompts ask for, by a classifier that the caller gives as an ONNX file.

The graph takes `pictures`, uint8 [B, H, W, 3], RGB, and `windows`, float32 [B, 3]: x and y of the middle and the side
of a square part of each picture, in the picture's side. It gives `logits`, float32 [B, K]. B, H and W may be any. Its
metadata has a value `nextscale.judge`, JSON of three keys: `name`; `concepts`, each with its class in 0 to K - 1, and
several may share one that looks the same; `windows`, the parts that prompts name, such as {"whole": [0.5, 0.5, 1.0]}.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, SupportsIndex, TypeAlias

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from nextscale.runtime._checked_values import whole_number
from nextscale.runtime._errors import NextscaleError
from nextscale.runtime._regular_file import require_regular
from nextscale.runtime._session import first_line
from nextscale.runtime._wording import shown_value

METADATA = "nextscale.judge"
INPUTS = {"pictures": "tensor(uint8)", "windows": "tensor(float)"}
NAMED = 3  # of what it knows, where it is asked for something else
TRIED = (
    3,
    48,
    64,
)  # pictures, and their sides, on which a judge is tried before hours are spent on what it shall judge
# Concepts, each in a window: what a picture shall show.
Objects: TypeAlias = Sequence[tuple[str, str]]


@dataclass(frozen=True)
class JudgeInfo:
    """What a judge's metadata says.

    Attributes:
        name: of the judge.
        concepts: their classes, at least 0.
        windows: x and y of the middle, and side, which is positive; all finite.
    """

    name: str
    concepts: dict[str, int]
    windows: dict[str, tuple[float, float, float]]


class ConceptJudge:
    """A judge of pictures in ONNX Runtime.

    Args:
        path: the file.
        threads: to compute with; 0: one for each core.
    Raises:
        NextscaleError: the file is missing, no ONNX model, or no judge, which is tried on a few pictures.
    """

    def __init__(self, path: Path, threads: int = 0) -> None:
        require_regular(path)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.log_severity_level = threads, 4
        try:
            content = path.read_bytes()
            self._session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
        except OSError as error:
            raise NextscaleError(f"{path}: cannot be read: {error.strerror or error}") from None
        except Exception as error:  # ONNX Runtime's own
            raise NextscaleError(f"{path}: no ONNX model: {first_line(error)}") from None
        inputs = {item.name: item.type for item in self._session.get_inputs()}
        if inputs != INPUTS or [item.name for item in self._session.get_outputs()] != ["logits"]:
            raise NextscaleError(
                f"{path}: no judge: expected inputs pictures (uint8) and windows (float32) and the output logits"
            )
        self.info = _read_info(path, self._session.get_modelmeta().custom_metadata_map.get(METADATA))
        self.name = f"{self.info.name} {hashlib.sha256(content).hexdigest()[:12]}"
        self._path = path
        count, height, width = TRIED
        windows = np.tile(np.array([0.5, 0.5, 1], np.float32), (count, 1))
        classes = self._logits(np.zeros((count, height, width, 3), np.uint8), windows).shape[1]
        for concept, number in self.info.concepts.items():
            if number >= classes:
                raise NextscaleError(
                    f"{path}: no judge: concept {shown_value(concept)} is of class {shown_value(number)}; its logits "
                    f"have classes 0 to {classes - 1}"
                )

    def require(self, objects: Sequence[Objects]) -> None:
        """Raise NextscaleError unless the judge knows all concepts and windows, of N pictures."""
        kinds = (("concept", [*self.info.concepts]), ("window", [*self.info.windows]))
        for number, pairs in enumerate(objects):
            for pair in pairs:
                for value, (what, known) in zip(pair, kinds, strict=True):
                    if value not in known:
                        raise NextscaleError(
                            f"prompt {number + 1}: {what} {shown_value(value)} is unknown to {self.info.name}: "
                            f"expected one of {len(known)}, such as {', '.join(known[:NAMED])}"
                        )

    def recognised(self, pictures: NDArray[np.uint8], objects: Sequence[Objects]) -> NDArray[np.bool_]:
        """Whether the likeliest class of each window is what was asked, everywhere in a picture: bool [B].

        Args:
            pictures: uint8 [B, H, W, 3].
            objects: of each picture, known ones.
        """
        found = np.ones(len(pictures), np.bool_)
        asked = [(i, *pair) for i, pairs in enumerate(objects) for pair in pairs]
        if not asked:
            return found
        numbers = [i for i, _, _ in asked]
        windows = np.array([self.info.windows[window] for _, _, window in asked], np.float32)
        logits = self._logits(pictures[numbers], windows)
        for i, concept, row in zip(numbers, (concept for _, concept, _ in asked), logits, strict=True):
            found[i] &= int(row.argmax()) == self.info.concepts[concept]
        return found

    def _logits(self, pictures: NDArray[np.uint8], windows: NDArray[np.float32]) -> NDArray[np.float32]:
        """Of pictures uint8 [B, H, W, 3] and windows [B, 3]: [B, K]."""
        try:
            (logits,) = self._session.run(["logits"], {"pictures": pictures, "windows": windows})
        except Exception as error:  # ONNX Runtime's own
            raise NextscaleError(
                f"{self._path}: cannot judge pictures {[*pictures.shape]}; expected a judge of any B, H and W: "
                f"{first_line(error)}"
            ) from None
        if not isinstance(logits, np.ndarray) or logits.dtype != np.float32 or logits.ndim != 2 or not logits.size:
            raise NextscaleError(f"{self._path}: gives logits {shown_value(logits)}; expected float32 [B, K]")
        if len(logits) != len(pictures):
            raise NextscaleError(f"{self._path}: gives {len(logits)} rows of logits for {len(pictures)} pictures")
        return logits


def _read_info(path: Path, text: str | None) -> JudgeInfo:
    try:
        found: dict[str, Any] = json.loads(text or "")
        info = JudgeInfo(
            _name(found["name"]),
            {_name(concept): _class(number) for concept, number in found["concepts"].items()},
            {_name(name): _window(numbers) for name, numbers in found["windows"].items()},
        )
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError):
        raise NextscaleError(
            f"{path}: no judge: its metadata {METADATA} is missing or damaged; expected JSON of name, concepts with "
            "classes, and windows of a positive side, all names printable"
        ) from None
    return info


def _name(text: str) -> str:
    if not text.isprintable() or not text.strip():
        raise ValueError(text)
    return text


def _class(number: SupportsIndex) -> int:
    found = whole_number(number)
    if found < 0:
        raise ValueError(number)
    return found


def _window(numbers: Sequence[float]) -> tuple[float, float, float]:
    x, y, side = map(float, numbers)
    if not (math.isfinite(x) and math.isfinite(y) and 0 < side < math.inf):
        raise ValueError(numbers)
    return x, y, side
