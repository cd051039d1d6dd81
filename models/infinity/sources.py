"""Where an Infinity to build comes from: checkpoints, or a preset with random weights; and its sizes."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from nextscale.models.checkpoint_file import CheckpointError
from nextscale.models.infinity.bsq_vae import BSQVAE
from nextscale.models.infinity.pair import load_pair
from nextscale.models.infinity.presets import Preset, get_preset
from nextscale.models.infinity.prompts import PROMPTS
from nextscale.models.infinity.random_weights import random_models
from nextscale.models.infinity.rope import RopeMode
from nextscale.models.infinity.schedules import AREAS, SCALES, STRIDE, Size, make_size
from nextscale.models.infinity.transformer import Infinity
from nextscale.models.t5.text_source import TextSource, load_text_source, random_text_source
from nextscale.runtime._errors import NextscaleError
from nextscale.runtime._manifest import ModelInfo
from nextscale.runtime._sizes import SizeInfo
from nextscale.runtime._wording import shown_value

# Tokens of the texts of random features.
RANDOM_LENGTHS = range(4, 25)
RANDOM_TEXTS = 64
# The most that the graph of a text encoder takes.
MAX_TOKENS = 512


@dataclass(frozen=True)
class InfinitySource:
    """An Infinity with its VAE (`models.sources.Source`).

    Attributes:
        sizes: of the pictures.
        text: what makes features of prompts, if it is there.
        prompts: what calibration's images are of, where there is such.
        random_seed: of weights that are random, which random features may calibrate; None of learned ones.
    """

    infinity: Infinity
    vae: BSQVAE
    sizes: tuple[Size, ...]
    name: str
    description: str
    licence: str = "that of the checkpoint"
    text: TextSource | None = None
    prompts: tuple[str, ...] = PROMPTS
    random_seed: int | None = None
    class_names: None = None

    def model_info(self) -> ModelInfo:
        """Of the first size."""
        config, first = self.infinity.config, self.sizes[0]
        return ModelInfo(
            num_classes=0,
            stage_sizes=first.stage_sizes,
            image_size=first.image_size,
            vocab_size=2,
            depth=config.depth,
            embed_dim=config.embed_dim,
            num_heads=config.num_heads,
            latent_channels=config.latent_channels,
            latent_size=first.latent_size,
        )

    def size_infos(self) -> tuple[SizeInfo, ...]:
        """The sizes as a manifest lists them."""
        return tuple(
            SizeInfo(size.area, size.ratio, size.image_size, size.latent_size, size.stage_sizes) for size in self.sizes
        )

    def calibration_texts(self) -> tuple[NDArray[np.float32], ...]:
        """Features of the prompts, float32 [Lt, Ct] each; of random weights without a text encoder, random ones.

        Raises:
            NextscaleError: the weights were learned, and there is no text encoder; or it cannot read a prompt.
        """
        if self.text is not None:
            return self.text.features(self.prompts)
        if self.random_seed is None:
            raise NextscaleError(
                "what quantization has to know of a model is observed while it draws prompts; give the text encoder's "
                "folder with --text (--no-text-encoder leaves it out of the bundle), or build with --recipe fp32"
            )
        rng, channels = np.random.default_rng(self.random_seed), self.infinity.config.text_channels
        lengths = rng.integers(RANDOM_LENGTHS.start, RANDOM_LENGTHS.stop, RANDOM_TEXTS).clip(max=self.max_tokens)
        return tuple(rng.standard_normal((length, channels)).astype(np.float32) for length in lengths)

    @property
    def max_tokens(self) -> int:
        """The most tokens that a text may have."""
        return min(self.infinity.config.max_text, MAX_TOKENS)


def checkpoint_source(
    name: str,
    path: Path,
    vae_path: Path,
    areas: Sequence[str],
    ratios: Sequence[str],
    text_folder: Path | None = None,
    prompts: tuple[str, ...] = PROMPTS,
    *,
    patchify: bool | None = None,
    rope_mode: RopeMode = 2,
    level_each_chunk: bool = False,
    weights: str | None = None,
    vae_weights: str | None = None,
) -> InfinitySource:
    """A user's checkpoints; see `load_pair`. Sizes and the text encoder's width are checked as early as they can be.

    Args:
        areas, ratios: of the pictures, as `sizes_of` takes them.
        text_folder: of the text encoder.
        prompts: what calibration's images are of.
    """
    sizes_of(areas, ratios)  # refuses before anything is read
    infinity, vae = load_pair(
        path,
        vae_path,
        patchify=patchify,
        rope_mode=rope_mode,
        level_each_chunk=level_each_chunk,
        weights=weights,
        vae_weights=vae_weights,
    )
    pixels = vae.config.downsample * infinity.config.patch
    if pixels != STRIDE:
        raise CheckpointError(
            f"{vae_path} makes {pixels} x {pixels} pixels of a token, Infinity's have {STRIDE} x {STRIDE}; give the "
            "VAE that the transformer learned from"
        )
    sizes = sizes_of(areas, ratios, infinity)
    files, text, config = [path.name, vae_path.name], None, infinity.config
    if text_folder is not None:
        text = load_text_source(text_folder, config.text_channels, min(config.max_text, MAX_TOKENS))
        files.append(text_folder.resolve().name)
    *most, last = (f"`{file}`" for file in files)
    return InfinitySource(
        infinity, vae, sizes, name, f"Built from {', '.join(most)} and {last}.", text=text, prompts=prompts
    )


def random_source(
    name: str,
    preset: str | Preset,
    areas: Sequence[str],
    ratios: Sequence[str],
    seed: int,
    text: str | None = None,
    prompts: tuple[str, ...] = PROMPTS,
) -> InfinitySource:
    """A preset with random weights: as fast as the real one, and its pictures are noise.

    Args:
        preset: a name in `presets.PRESETS`, or configurations of your own.
        text: a text encoder's preset, to be filled, too.
    """
    preset = get_preset(preset) if isinstance(preset, str) else preset
    config = preset.config
    sizes_of(areas, ratios)
    encoder = None
    if text is not None:
        encoder = random_text_source(text, config.text_channels, min(config.max_text, MAX_TOKENS), seed)
    infinity, vae = random_models(preset, seed)
    both = f"`{preset.name}`" if text is None else f"`{preset.name}` and `{text}`"
    return InfinitySource(
        infinity,
        vae,
        sizes_of(areas, ratios, infinity),
        name,
        f"{both} with random weights (seed {seed}): for measuring speed; its pictures are noise.",
        "none: random numbers",
        encoder,
        prompts,
        seed,
    )


def sizes_of(areas: Sequence[str], ratios: Sequence[str], infinity: Infinity | None = None) -> tuple[Size, ...]:
    """The sizes of each of some areas at each of some ratios, the areas in order, each once.

    Args:
        areas: such as "0.25M"; compared as numbers.
        ratios: width to height, such as "3:4", in any terms.
        infinity: which makes them; None where nothing is known of it yet.
    Raises:
        NextscaleError: no such area or ratio, or one of more stages than the model has.
    """
    patchify = infinity is not None and infinity.config.patchify
    pairs = dict.fromkeys((_area(area), _ratio(ratio)) for area in areas for ratio in ratios)
    sizes = tuple(make_size(area, ratio, patchify=patchify) for area, ratio in pairs)
    for size in sizes:
        if infinity is not None and size.num_stages > infinity.config.num_levels:
            raise NextscaleError(
                f"--area {size.area}: has {size.num_stages} stages, the model makes at most "
                f"{infinity.config.num_levels}; choose a smaller one"
            )
    return sizes


def _area(text: str) -> str:
    number = float(text[:-1]) if re.fullmatch(r"\d{1,6}(\.\d{1,6})?M", text) else None
    for area in AREAS:
        if number == float(area[:-1]):
            return area
    raise NextscaleError(f"--area {shown_value(text)}: expected one of {', '.join(AREAS)}")


def _ratio(text: str) -> tuple[int, int]:
    """Height and width of a ratio that people say as width to height."""
    match = re.fullmatch(r"(\d{1,4}):(\d{1,4})", text)
    width, height = map(int, match.groups()) if match else (0, 0)
    common = math.gcd(width, height) or 1
    ratio = height // common, width // common
    if ratio not in SCALES:
        known = ", ".join(f"{width}:{height}" for height, width in SCALES)
        raise NextscaleError(f"--ratio {shown_value(text)}: expected one of {known} (width to height)")
    return ratio
