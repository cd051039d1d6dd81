"""A model so small that its bundle is built in a second: two blocks, four stages, 30 tokens, 8 px pictures."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from nextscale.calib_data.calibrate import CalibrationSettings
from nextscale.export.build import BuildOptions, Precision, Source, build_bundle
from nextscale.export.presets import Preset
from nextscale.export.random_weights import random_models
from nextscale.export.var import VAR, VARConfig
from nextscale.export.vqvae import VQVAE, VQVAEConfig
from nextscale.runtime.session import SessionOptions

# The models of the tests are small: threads would wait for each other more than they work.
torch.set_num_threads(1)

PATCH_NUMS = (1, 2, 3, 4)
L = sum(pn * pn for pn in PATCH_NUMS)
V = 128
NUM_CLASSES = 10
CLASS_NAMES = [f"class {i}" for i in range(NUM_CLASSES)]
ONE_THREAD = SessionOptions(threads=1)
CALIBRATION = CalibrationSettings(images=5, batch_size=2)


def tiny_preset(**options: Any) -> Preset:
    """The configurations; `options` are further ones of the VAR."""
    shared: dict[str, Any] = {"patch_nums": PATCH_NUMS, "vocab_size": V}
    var = {"num_classes": NUM_CLASSES, "depth": 2, "embed_dim": 64, "num_heads": 2} | options
    return Preset("tiny", VARConfig(**var, **shared), VQVAEConfig(ch=32, ch_mult=(1, 2), **shared))


def tiny_models(seed: int = 0, **options: Any) -> tuple[VAR, VQVAE]:
    """The models with random weights."""
    return random_models(tiny_preset(**options), seed)


def tiny_source(seed: int = 0, **options: Any) -> Source:
    return Source(*tiny_models(seed, **options), "tiny", "For tests.", "MIT", CLASS_NAMES)


def no_progress(step: str, done: int = 0, total: int = 0) -> None:
    """A build that tells nobody."""


def build_tiny(out: Path, precision: Precision, source: Source | None = None) -> Path:
    """Build the bundle `out` of the tiny model, or of `source`."""
    build_bundle(source or tiny_source(), out, BuildOptions(precision, CALIBRATION, ONE_THREAD), no_progress)
    return out
