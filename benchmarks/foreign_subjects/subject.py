"""What is tried: a model that we did not make, samples for it, and a measure of what it loses."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from foreign_tools.feeds import Arrays

Measure = Callable[[Sequence[Arrays], Sequence[Arrays]], Sequence[str]]


@dataclass(frozen=True)
class Subject:
    """A model and how it is measured.

    Attributes:
        title: what it is.
        origin: where it and its samples come from, a line each.
        model: the float32 ONNX file.
        calibration: what each call is fed, of samples that tools may look at.
        test: of others, that no tool sees.
        headings: of the columns that measure fills.
        measure: from the outputs of the float model on the test samples, and another's, the columns' texts.
    """

    title: str
    origin: Sequence[str]
    model: Path
    calibration: Sequence[Arrays]
    test: Sequence[Arrays]
    headings: Sequence[str]
    measure: Measure
