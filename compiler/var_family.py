"""VAR, as the driver builds it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import torch
from torch import Tensor, nn

from nextscale.calib_data._calibration_labels import calibration_labels
from nextscale.calib_data.match_probabilities import FREQUENCIES
from nextscale.calib_data.sample import SamplingSettings, sample_token_maps
from nextscale.calib_data.subjects import SampledImages, Subjects
from nextscale.calib_data.token_maps import TokenMaps
from nextscale.compiler.family import SAMPLING, TextEncoder, weights_digest
from nextscale.compiler.options import BuildOptions, Progress
from nextscale.evaluate.teacher_forced import evaluation_labels
from nextscale.export.bundle_writer import BundleInfo
from nextscale.export.var.decoder_graph import build_decoder_graph
from nextscale.export.var.encoder_graph import build_features_graph, with_token_maps
from nextscale.export.var.stage_graph import build_stage_graph
from nextscale.graph_passes.layer_facts import StageFacts
from nextscale.graph_passes.recipe import Recipe
from nextscale.models.equalization import NOT_EQUALIZED, Equalization
from nextscale.models.var.equalization import choose_equalization
from nextscale.models.var.layers import facts_of
from nextscale.models.var.sources import VARSource
from nextscale.runtime._errors import NextscaleError
from nextscale.runtime._next_scale_loop import Generator
from nextscale.runtime._var_request import var_request
from nextscale.runtime.image_io import npz_writer
from nextscale.simulation.var_images import VARImages

# The second label differs from the first in every model.
VERIFY_LABELS = (0, -1)
VERIFY_CFG_SCALE = 1.5
AGREEMENT_SEED = 1  # calibration has 0 by default


def require_var_recipe(recipe: Recipe) -> None:
    """Raise NextscaleError if the recipe asks for what only a model of texts has."""
    if recipe.attention.cross == "integer":
        raise NextscaleError(
            f'recipe {recipe.name}: attention.cross = "integer" is of attention to a text, which VAR does not have; '
            "leave it out"
        )


@dataclass(frozen=True)
class VARFamily:
    """See `Family`."""

    source: VARSource

    def require_recipe(self, recipe: Recipe) -> None:
        require_var_recipe(recipe)

    def facts(self, size: int | None = None) -> StageFacts:
        return facts_of(self.source.var)

    def stage_graph(self, equalization: Equalization = NOT_EQUALIZED) -> ir.Model:
        return build_stage_graph(self.source.var, self.source.vqvae.quantize, equalization)

    def as_run(self, stage: ir.Model) -> ir.Model:
        return stage

    def decoder_graph(self) -> ir.Model:
        return build_decoder_graph(self.source.vqvae)

    def features_graph(self) -> ir.Model:
        return build_features_graph(self.source.vqvae)

    def with_token_maps(self, features: ir.Model) -> ir.Model:
        return with_token_maps(features, self.source.vqvae.quantize)

    def text_encoder(self) -> TextEncoder | None:
        return None

    def bundle_info(self, recipe: Mapping[str, Any]) -> BundleInfo:
        source, model = self.source, self.source.model_info()
        return BundleInfo(source.name, "var", model, var_request(model), recipe, source.class_names, source.licence, "")

    def verify(self, has_text_encoder: bool) -> dict[str, Any]:
        model = self.source.model_info()
        labels = [label % model.num_classes for label in VERIFY_LABELS]
        return {
            "seed": 0,
            "inputs": {"class_labels": labels, "cfg_scale": VERIFY_CFG_SCALE, "top_k": 1, "top_p": 0.0},
            "token_maps": [[0] * model.num_tokens for _ in labels],
        }

    def choose_equalization(self, facts: StageFacts, magnitudes: Mapping[str, Tensor], alpha: float) -> Equalization:
        return choose_equalization(self.source.var, magnitudes, alpha)

    def sample(self, generator: Generator, options: BuildOptions, work: Path, progress: Progress) -> TokenMaps:
        calibration = options.recipe.calibration
        settings = SamplingSettings(
            calibration.images, options.seed, batch_size=options.batch_size, matching=calibration.matching
        )
        maps, report = sample_token_maps(generator, settings, work / SAMPLING, progress)
        return replace(maps, further={FREQUENCIES: npz_writer(report.frequencies())})

    def load_sampled(self, folder: Path) -> TokenMaps:
        return TokenMaps.load(folder, self.source.model_info())

    def identity(self) -> dict[str, Any]:
        var, vqvae = self.source.var, self.source.vqvae
        return asdict(var.config) | {"vqvae": asdict(vqvae.config), "weights": weights_digest(var, vqvae)}

    def weights(self) -> tuple[nn.Module, ...]:
        return self.source.var, self.source.vqvae

    def modules(self) -> tuple[nn.Module, ...]:
        return self.source.var, self.source.vqvae.quantize

    def teacher_forced_images(self, sampled: SampledImages) -> VARImages:
        assert isinstance(sampled, TokenMaps)
        return VARImages(self.source.var, self.source.vqvae.quantize, sampled.class_labels, sampled.token_maps)

    def calibration_subjects(self, images: int, seed: int) -> Subjects:
        return Subjects.of_classes(calibration_labels(self.source.var.config.num_classes, images, seed))

    def agreement_subjects(self, images: int) -> Subjects:
        return Subjects.of_classes(evaluation_labels(self.source.var.config.num_classes, images, AGREEMENT_SEED))

    def saturation_subject(self) -> Subjects:
        return Subjects.of_classes(np.zeros(1, np.int64))

    def has_finite_picture(self, tokens: Sequence[int]) -> bool:
        vqvae = self.source.vqvae
        lengths = [pn * pn for pn in vqvae.config.patch_nums]
        images = vqvae.decode_tokens(torch.tensor([tokens]).split(lengths, dim=1))
        return bool(images.isfinite().all())
