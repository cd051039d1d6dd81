"""Full precision against a quantized bundle in one table: speed, size, memory and agreement."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from nextscale.evaluate.teacher_forced import Agreement, teacher_forced
from nextscale.measure.bench import BenchReport, Measurement, bench
from nextscale.runtime._bundle import Bundle
from nextscale.runtime._next_scale_loop import Generator
from nextscale.runtime._session import SessionOptions
from nextscale.runtime.image_io import make_grid


@dataclass(frozen=True)
class Comparison:
    """What `compare` measured.

    Attributes:
        report: speed and memory of both bundles, generate.onnx, batch 1.
        agreement: of the quantized bundle with full precision.
    """

    report: BenchReport
    agreement: Agreement

    @property
    def reference(self) -> Measurement:
        return self.report.measurements[0]

    @property
    def quantized(self) -> Measurement:
        return self.report.measurements[1]


def compare(
    reference: Bundle,
    quantized: Bundle,
    *,
    images: int,
    repetitions: int,
    options: SessionOptions | None = None,
    log: Callable[[str], object] = lambda line: None,
) -> Comparison:
    """Measure speed and memory interleaved, and agreement on `images` teacher-forced images."""
    report = bench([reference, quantized], forms=("generate",), options=options, repetitions=repetitions, log=log)
    agreements = teacher_forced(
        Generator(reference, options),
        {"quantized": Generator(quantized, options)},
        images=images,
        on_images=lambda done: log(f"agreement: {done} of {images} images") if done % 16 == 0 else None,
    )
    return Comparison(report, agreements["quantized"])


def paired_sheet(
    reference: Bundle, quantized: Bundle, labels: list[int], options: SessionOptions | None = None, columns: int = 8
) -> NDArray[np.uint8]:
    """Pictures of the same labels and seeds, full precision above quantized in each pair of rows: uint8 [H, W, 3]."""
    pictures = [Generator(bundle, options).generate(labels, batch_size=4).images for bundle in (reference, quantized)]
    rows = []
    for first in range(0, len(labels), columns):
        rows += [make_grid(images[first : first + columns], columns) for images in pictures]
    return np.concatenate(rows)
