"""Full precision against a quantized bundle in one table: speed, size, memory and agreement."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from nextscale.calib_data.subjects import Subjects
from nextscale.calib_data.text_subjects import takes_text
from nextscale.evaluate.teacher_forced import Agreement, teacher_forced
from nextscale.measure.bench import BenchReport, Measurement, bench
from nextscale.runtime._bundle import Bundle
from nextscale.runtime._next_scale_loop import Generator
from nextscale.runtime._session import SessionOptions
from nextscale.runtime._variants import each_variant
from nextscale.runtime.image_io import make_grid


@dataclass(frozen=True)
class Comparison:
    """What `compare` measured.

    Attributes:
        report: speed and memory of full precision, then of each variant of the quantized bundle; one call, batch 1.
        agreements: of the quantized bundle with full precision, by variant ("stock", "fused").
        token_bits: by how many bits a token is told, where a token is bits and not an entry of a vocabulary.
    """

    report: BenchReport
    agreements: Mapping[str, Agreement]
    token_bits: int | None

    @property
    def reference(self) -> Measurement:
        return self.report.measurements[0]

    @property
    def quantized(self) -> dict[str, Measurement]:
        """By variant, as the agreements."""
        return {measurement.ops: measurement for measurement in self.report.measurements[1:]}


def compare(
    reference: Bundle,
    quantized: Bundle,
    *,
    images: int,
    repetitions: int,
    subjects: Subjects | None = None,
    options: SessionOptions | None = None,
    log: Callable[[str], object] = lambda line: None,
) -> Comparison:
    """Measure each variant that runs: speed and memory interleaved, agreement on `images` teacher-forced images.

    Args:
        subjects: what these images are of, where the model takes no classes.
    """
    report = bench([reference, quantized], forms=("generate",), options=options, repetitions=repetitions, log=log)
    agreements = teacher_forced(
        Generator(reference, options),
        {choice.ops: Generator(quantized, choice) for choice in each_variant(quantized, options or SessionOptions())},
        images=images,
        subjects=subjects,
        on_images=lambda done: log(f"agreement: {done} of {images} images") if done % 16 == 0 else None,
    )
    *_, bits = reference.manifest.forced_tokens.row_shape
    return Comparison(report, agreements, bits if takes_text(reference.manifest) else None)


def paired_sheet(
    reference: Bundle, quantized: Bundle, labels: list[int], options: SessionOptions | None = None, columns: int = 8
) -> NDArray[np.uint8]:
    """Pictures of the same labels and seeds, full precision above quantized in each pair of rows: uint8 [H, W, 3]."""
    pictures = [Generator(bundle, options).generate(labels, batch_size=4).images for bundle in (reference, quantized)]
    rows = []
    for first in range(0, len(labels), columns):
        rows += [make_grid(images[first : first + columns], columns) for images in pictures]
    return np.concatenate(rows)
