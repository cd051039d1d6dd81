"""What a measurement asks a bundle for: random classes, or texts whose features are random.

A text encoder is no part of it: its share of the time depends on how often a prompt comes again.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from nextscale.runtime._manifest import Manifest

# Tokens of a prompt of some forty words, as people write them for Infinity.
TEXT_TOKENS = 64


@dataclass(frozen=True)
class Subject:
    """What pictures are asked for, where a bundle lets one choose.

    Attributes:
        size: index of a size; 0 where the bundle has one.
        text_tokens: of each text.
    """

    size: int = 0
    text_tokens: int = TEXT_TOKENS


def random_request(manifest: Manifest, batch: int, seed: int, subject: Subject) -> dict[str, Any]:
    """Arguments of `Generator.generate` and `stream`: `batch` images, the same for the same seed."""
    rng = np.random.default_rng(seed)
    settings: dict[str, Any] = {"seed": seed}
    if manifest.input_of_kind("label") is not None:
        settings["class_labels"] = rng.integers(manifest.model.num_classes, size=batch)
    inputs: dict[str, Any] = {}
    features, size = (manifest.input_of_kind(kind) for kind in ("text_features", "size"))
    if features is not None:
        shape = (batch, subject.text_tokens, int(features.shape[2]))
        inputs[features.name] = rng.standard_normal(shape, np.float32)
    if size is not None:
        inputs[size.name] = subject.size
    return {**settings, "inputs": inputs} if inputs else settings
