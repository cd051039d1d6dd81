"""A model's float32 graphs, and the full-precision bundle that calibration runs."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import onnx_ir as ir

from nextscale.compiler.family import Family
from nextscale.compiler.write_bundle import write_bundle
from nextscale.export.bundle_writer import write_graphs
from nextscale.graph_passes._graph_edit import share_constants
from nextscale.models.equalization import Equalization
from nextscale.runtime._bundle import Bundle


@dataclass(frozen=True)
class FloatModel:
    """What is quantized.

    Attributes:
        family: the model, as it is built.
        stage, decoder: its float32 graphs, whose weights are files of `bundle`.
        bundle: in full precision.
        work: a folder for what else has to be written.
    """

    family: Family
    stage: ir.Model
    decoder: ir.Model
    bundle: Bundle
    work: Path

    @classmethod
    def write(cls, family: Family, stage: ir.Model, decoder: ir.Model, work: Path) -> FloatModel:
        """Write the bundle into `work`; the given graphs keep their weights in memory."""
        stage, decoder = stage.clone(), decoder.clone()
        folder = work / "full_precision"
        folder.mkdir()
        run = family.as_run(stage)
        write_bundle(family, folder, {"stage": run, "decoder": decoder}, {"name": "fp32"})
        share_constants(stage.graph, run.graph)
        return cls(family, stage, decoder, Bundle.open(folder), work)

    @staticmethod
    def stage_of(family: Family, bundle: Bundle) -> ir.Model:
        """The float32 stage graph of a full-precision bundle before `Family.as_run`, whose weights are its files."""
        stage = family.stage_graph()
        share_constants(stage.graph, ir.load(bundle.graph_path("stage")).graph)
        return stage

    def equalized_stage(self, equalization: Equalization) -> tuple[ir.Model, Path]:
        """The stage graph of the equalized model, and the folder where its weights lie."""
        folder = self.work / "equalized"
        folder.mkdir()
        model = self.family.stage_graph(equalization)
        write_graphs(folder, {"stage": model})
        return model, folder
