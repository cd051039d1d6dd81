"""What the driver asks of a model, so that it needs to know no family."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import onnx_ir as ir
from torch import Tensor, nn

from nextscale.calib_data.subjects import SampledImages, Subjects
from nextscale.compiler.options import BuildOptions, Progress
from nextscale.export.bundle_writer import BundleInfo
from nextscale.graph_passes.layer_facts import StageFacts
from nextscale.graph_passes.linear_layers import linear_layers
from nextscale.graph_passes.recipe import Recipe
from nextscale.models.equalization import NOT_EQUALIZED, Equalization
from nextscale.models.sources import Source
from nextscale.runtime._next_scale_loop import Generator
from nextscale.simulation.rounding import weight_sha256
from nextscale.simulation.teacher_forced_images import TeacherForcedImages

SAMPLING = "sampling"


def weights_digest(*modules: nn.Module) -> str:
    """What tells the weights of some modules from others'."""
    digest = hashlib.sha256()
    for module in modules:
        for name, tensor in module.state_dict().items():
            digest.update(f"{name} {weight_sha256(tensor.float().numpy())}".encode())
    return digest.hexdigest()[:12]


@dataclass(frozen=True)
class TextEncoder:
    """A text encoder's float32 graph, and the layers that read two bytes of each number where it becomes integer."""

    graph: ir.Model
    wide: Sequence[str]

    def layers(self) -> list[str]:
        """The names of its linear layers."""
        return [layer.name for layer in linear_layers(self.graph.graph)]


class Family(Protocol):
    """A model of one family: its graphs, what is known of them, and what a bundle says.

    Graphs refer to the model's weights, or make them when they are asked for: none holds a copy.
    """

    @property
    def source(self) -> Source:
        """The model in torch."""

    def require_recipe(self, recipe: Recipe) -> None:
        """Raise NextscaleError if the recipe, one of an integer bundle, asks for what this family does not have."""

    def facts(self, size: int | None = None) -> StageFacts:
        """Of the stage graph; of the size of an index, what is counted at that size alone."""

    def stage_graph(self, equalization: Equalization = NOT_EQUALIZED) -> ir.Model:
        """The float32 stage graph of the equalized model."""

    def as_run(self, stage: ir.Model) -> ir.Model:
        """A stage graph of either precision, observed or not, in the form that is run: what no other pass may miss."""

    def decoder_graph(self) -> ir.Model:
        """The float32 graph of the decoder."""

    def features_graph(self) -> ir.Model:
        """The float32 graph of the encoder before quantization: images -> features."""

    def with_token_maps(self, features: ir.Model) -> ir.Model:
        """Such a graph, float32 or integer, with what makes token maps of features behind it; changes the given one."""

    def text_encoder(self) -> TextEncoder | None:
        """None where prompts need another program, or the model takes no text."""

    def bundle_info(self, recipe: Mapping[str, Any]) -> BundleInfo:
        """What the manifest says besides the graphs, with an empty card."""

    def verify(self, has_text_encoder: bool) -> dict[str, Any]:
        """The stored generation as the manifest has it, with zeros for tokens: greedy, so that few say much."""

    def choose_equalization(self, facts: StageFacts, magnitudes: Mapping[str, Tensor], alpha: float) -> Equalization:
        """Factors of the inputs that `StageFacts.equalizable` names, by the largest |input| of their channels [C]."""

    def sample(self, generator: Generator, options: BuildOptions, work: Path, progress: Progress) -> SampledImages:
        """Images of calibration with the recipe's number and matching, by full precision.

        Args:
            generator: of the full-precision bundle.
            options: recipe, seed and images at a time.
            work: where finished batches are kept, in the folder `SAMPLING`.
            progress: told each batch.
        """

    def load_sampled(self, folder: Path) -> SampledImages:
        """What was saved of `sample`, or by `nextscale calibrate` with this model's full-precision bundle.

        Raises:
            NextscaleError: there is no such folder, or it is damaged or of another model.
        """

    def identity(self) -> dict[str, Any]:
        """The model's shape, and what tells its weights and texts from others': plain values."""

    def weights(self) -> tuple[nn.Module, ...]:
        """All that has weights which graphs refer to."""

    def modules(self) -> tuple[nn.Module, ...]:
        """What reconstruction computes with, to be moved to its device."""

    def teacher_forced_images(self, sampled: SampledImages) -> TeacherForcedImages:
        """The images as the model's twin is fed them; `modules` decide the device."""

    def calibration_subjects(self, images: int, seed: int) -> Subjects:
        """What so many images are of that calibration observes."""

    def agreement_subjects(self, images: int) -> Subjects:
        """What so many others are of, which are compared with full precision."""

    def saturation_subject(self) -> Subjects:
        """What the one image is of with which saturation is emulated."""

    def has_finite_picture(self, tokens: Sequence[int]) -> bool:
        """Whether the decoder in torch makes no NaN of the tokens of one image of the stored generation, row-major."""
