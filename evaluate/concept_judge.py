"""Whether pictures show what their prompts ask for, by a classifier that the caller gives as an ONNX file.

The graph takes `pictures`, uint8 [B, H, W, 3], RGB, and `windows`, float32 [B, 3]: x and y of the middle and the side
of a square part of each picture, in the picture's side. It gives `logits`, float32 [B, K]. Its metadata has a value
`nextscale.judge`, JSON of three keys: `name`; `concepts`, each with its class, and several may share one that looks
the same; `windows`, the parts that prompts name, such as {"whole": [0.5, 0.5, 1.0]}.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from nextscale.runtime._errors import NextscaleError
from nextscale.runtime._regular_file import require_regular
from nextscale.runtime._wording import shown_value

METADATA = "nextscale.judge"
INPUTS = {"pictures": "tensor(uint8)", "windows": "tensor(float)"}
NAMED = 3  # of what it knows, where it is asked for something else
# Concepts, each in a window: what a picture shall show.
Objects: TypeAlias = Sequence[tuple[str, str]]


@dataclass(frozen=True)
class JudgeInfo:
    """What a judge's metadata says.

    Attributes:
        name: of the judge.
        concepts: their classes.
        windows: x and y of the middle, and side.
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
        NextscaleError: the file is missing, no ONNX model, or no judge.
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
            raise NextscaleError(f"{path}: no ONNX model: {str(error).splitlines()[0]}") from None
        inputs = {item.name: item.type for item in self._session.get_inputs()}
        if inputs != INPUTS or [item.name for item in self._session.get_outputs()] != ["logits"]:
            raise NextscaleError(
                f"{path}: no judge: expected inputs pictures (uint8) and windows (float32) and the output logits"
            )
        self.info = _read_info(path, self._session.get_modelmeta().custom_metadata_map.get(METADATA))
        self.name = f"{self.info.name} {hashlib.sha256(content).hexdigest()[:12]}"

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
        feeds = {"pictures": pictures[numbers], "windows": windows}
        (logits,) = self._session.run(["logits"], feeds)
        for i, concept, row in zip(numbers, (concept for _, concept, _ in asked), logits, strict=True):
            found[i] &= int(row.argmax()) == self.info.concepts[concept]
        return found


def _read_info(path: Path, text: str | None) -> JudgeInfo:
    try:
        found: dict[str, Any] = json.loads(text or "")
        info = JudgeInfo(
            str(found["name"]),
            {str(concept): int(number) for concept, number in found["concepts"].items()},
            {str(name): _window(numbers) for name, numbers in found["windows"].items()},
        )
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise NextscaleError(
            f"{path}: no judge: its metadata {METADATA} is missing or damaged; expected JSON of name, concepts and "
            "windows"
        ) from None
    return info


def _window(numbers: Sequence[float]) -> tuple[float, float, float]:
    x, y, side = map(float, numbers)
    return x, y, side
