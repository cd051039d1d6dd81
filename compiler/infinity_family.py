"""Infinity, as the driver builds it."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from nextscale.calib_data.bit_maps import BitMaps
from nextscale.calib_data.sample_bits import BitSamplingSettings, sample_bit_maps
from nextscale.calib_data.subjects import SampledImages, Subjects
from nextscale.calib_data.text_subjects import drawn_subjects
from nextscale.compiler._caches import sizes_in_full_precision
from nextscale.compiler.family import SAMPLING, TextEncoder, weights_digest
from nextscale.compiler.options import BuildOptions, Progress
from nextscale.export.bundle_writer import BundleInfo
from nextscale.export.infinity.decoder_graph import build_decoder_graph
from nextscale.export.infinity.encoder_graph import build_features_graph, with_token_maps
from nextscale.export.infinity.stage_graph import build_stage_graph
from nextscale.export.text_encoder_graph import build_text_encoder_graph
from nextscale.graph_passes.layer_facts import StageFacts
from nextscale.graph_passes.recipe import Recipe
from nextscale.graph_passes.tile_attention import tile_attention
from nextscale.models.equalization import NOT_EQUALIZED, Equalization
from nextscale.models.infinity.equalization import choose_equalization
from nextscale.models.infinity.layers import linear_shapes, stage_facts
from nextscale.models.infinity.multi_scale_bits import accumulate
from nextscale.models.infinity.schedules import Size
from nextscale.models.infinity.sources import InfinitySource
from nextscale.models.t5.layers import wide_layers
from nextscale.runtime._infinity_request import infinity_request
from nextscale.runtime._next_scale_loop import Generator
from nextscale.simulation.infinity_images import InfinityImages

VERIFY_PROMPTS = ("a red fox in the snow", "two boats")
VERIFY_TEXT_TOKENS = (5, 3)  # of texts whose features are made up, where there is no text encoder
VERIFY_CFG_SCALE = 1.5
GREEDY_TOP_P = 0.5  # the likelier value of each bit
# Of one part of the queries: 256 MiB of float32. A picture of 1M would have 5.5 GB at its last stage.
MAX_SCORES = 1 << 26
AGREEMENT_STREAM = 1  # keeps what is drawn from what calibration draws with the same seed


@dataclass(frozen=True)
class InfinityFamily:
    """See `Family`."""

    source: InfinitySource

    def require_recipe(self, recipe: Recipe) -> None:
        _ = self._observed_sizes  # refuses where there is none

    def facts(self, size: int | None = None) -> StageFacts:
        sizes = self.source.sizes if size is None else self.source.sizes[size : size + 1]
        return stage_facts(linear_shapes(self.source.infinity.config), sizes)

    def stage_graph(self, equalization: Equalization = NOT_EQUALIZED) -> ir.Model:
        return build_stage_graph(self.source.infinity, self.source.sizes, equalization)

    def as_run(self, stage: ir.Model) -> ir.Model:
        return tile_attention(stage, MAX_SCORES)

    def decoder_graph(self) -> ir.Model:
        return build_decoder_graph(self.source.vae)

    def features_graph(self) -> ir.Model:
        return build_features_graph(self.source.vae)

    def with_token_maps(self, features: ir.Model) -> ir.Model:
        return with_token_maps(features, self.source.vae.config, [size.stage_sizes for size in self.source.sizes])

    def text_encoder(self) -> TextEncoder | None:
        text = self.source.text
        if text is None:
            return None
        return TextEncoder(build_text_encoder_graph(text.encoder), wide_layers(text.encoder.config))

    def bundle_info(self, recipe: Mapping[str, Any]) -> BundleInfo:
        source, config, text = self.source, self.source.infinity.config, self.source.text
        return BundleInfo(
            source.name,
            "infinity",
            source.model_info(),
            infinity_request(config.token_bits, config.text_channels, config.max_text, patchify=config.patchify),
            recipe,
            None,
            source.licence,
            "",
            source.size_infos(),
            None if text is None else text.tokenizer,
            None if text is None else text.tokenizer_file,
            None if text is None else text.words_file,
        )

    def verify(self, has_text_encoder: bool) -> dict[str, Any]:
        index, size = self._smallest
        lengths = [min(length, self.source.max_tokens) for length in VERIFY_TEXT_TOKENS]
        texts = {"prompts": list(VERIFY_PROMPTS)} if has_text_encoder else {"text_lengths": lengths}
        row = [0] * (size.num_tokens * self.source.infinity.config.token_bits)
        inputs = {"size": index, "cfg_scale": VERIFY_CFG_SCALE, "top_p": GREEDY_TOP_P}
        return {"seed": 0, "inputs": inputs, **texts, "token_maps": [row for _ in VERIFY_PROMPTS]}

    def choose_equalization(self, facts: StageFacts, magnitudes: Mapping[str, Tensor], alpha: float) -> Equalization:
        return choose_equalization(self.source.infinity, facts, magnitudes, alpha)

    def sample(self, generator: Generator, options: BuildOptions, work: Path, progress: Progress) -> BitMaps:
        calibration = options.recipe.calibration
        subjects = self.calibration_subjects(calibration.images, options.seed)
        settings = BitSamplingSettings(options.seed, options.batch_size, calibration.matching)
        return sample_bit_maps(generator, subjects, settings, work / SAMPLING, progress)[0]

    def load_sampled(self, folder: Path) -> BitMaps:
        config = self.source.infinity.config
        return BitMaps.load(folder, config.text_channels, config.token_bits, self.source.size_infos())

    def identity(self) -> dict[str, Any]:
        source = self.source
        return asdict(source.infinity.config) | {
            "vae": asdict(source.vae.config),
            "sizes": [list(size.stage_sizes[-1]) for size in source.sizes],
            "prompts": hashlib.sha256("\n".join(source.prompts).encode()).hexdigest()[:12],
            "weights": weights_digest(*self.weights()),
        }

    def weights(self) -> tuple[nn.Module, ...]:
        source = self.source
        return source.infinity, source.vae, *(() if source.text is None else (source.text.encoder,))

    def modules(self) -> tuple[nn.Module, ...]:
        return (self.source.infinity,)

    def teacher_forced_images(self, sampled: SampledImages) -> InfinityImages:
        return InfinityImages(self.source.infinity, self.source.sizes, sampled.subjects, sampled.token_maps)

    def calibration_subjects(self, images: int, seed: int) -> Subjects:
        return self._subjects(images, np.random.default_rng(seed))

    def agreement_subjects(self, images: int) -> Subjects:
        return self._subjects(images, np.random.default_rng([0, AGREEMENT_STREAM]))

    def saturation_subject(self) -> Subjects:
        return self.calibration_subjects(1, seed=0)

    def has_finite_picture(self, tokens: Sequence[int]) -> bool:
        _, size = self._smallest
        bits = torch.tensor(tokens).view(1, size.num_tokens, -1)
        f_hat, _ = accumulate(bits.split(size.stage_tokens, dim=1), size)
        return bool(self.source.vae.decode(f_hat).isfinite().all())

    @cached_property
    def _texts(self) -> tuple[NDArray[np.float32], ...]:
        return self.source.calibration_texts()

    @cached_property
    def _observed_sizes(self) -> list[int]:
        source = self.source
        return sizes_in_full_precision(source.name, source.model_info(), source.size_infos())

    @property
    def _smallest(self) -> tuple[int, Size]:
        """Index and size of the fewest tokens, of which the stored generation is."""
        return min(enumerate(self.source.sizes), key=lambda item: item[1].num_tokens)

    def _subjects(self, images: int, rng: np.random.Generator) -> Subjects:
        return drawn_subjects(self._texts, self._observed_sizes, images, rng)
