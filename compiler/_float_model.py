"""A model's float32 graphs, and the full-precision bundle that calibration runs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import onnx_ir as ir

from nextscale.export.bundle_writer import write_graphs
from nextscale.export.var.stage_graph import build_stage_graph
from nextscale.models.equalization import Equalization
from nextscale.models.sources import Source
from nextscale.runtime._bundle import Bundle

# Writes a bundle of a stage graph and a decoder graph into an empty folder.
Writer = Callable[[Path, ir.Model, ir.Model], None]


@dataclass(frozen=True)
class FloatModel:
    """What is quantized.

    Attributes:
        source: the torch model.
        stage, decoder: its float32 graphs, whose weights are files of `bundle`.
        bundle: in full precision.
        work: a folder for what else has to be written.
    """

    source: Source
    stage: ir.Model
    decoder: ir.Model
    bundle: Bundle
    work: Path

    @classmethod
    def write(cls, source: Source, stage: ir.Model, decoder: ir.Model, work: Path, write: Writer) -> FloatModel:
        """Write the bundle into `work`; the given graphs keep their weights in memory."""
        stage, decoder = stage.clone(), decoder.clone()
        folder = work / "full_precision"
        folder.mkdir()
        write(folder, stage, decoder)
        return cls(source, stage, decoder, Bundle.open(folder), work)

    def equalized_stage(self, equalization: Equalization) -> tuple[ir.Model, Path]:
        """The stage graph of the equalized model, and the folder where its weights lie."""
        folder = self.work / "equalized"
        folder.mkdir()
        model = build_stage_graph(self.source.var, self.source.vqvae.quantize, equalization)
        write_graphs(folder, {"stage": model})
        return model, folder
