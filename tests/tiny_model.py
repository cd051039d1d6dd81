"""A model so small that its bundle is built in a second: two blocks, four stages, 30 tokens, 8 px pictures."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from nextscale.compiler.build import build_bundle
from nextscale.compiler.options import BuildOptions
from nextscale.export.var.stage_graph import build_stage_graph
from nextscale.graph_passes.integer_model import IntegerModel
from nextscale.graph_passes.linear_layers import find_layers
from nextscale.graph_passes.recipe import Recipe, load_recipe
from nextscale.models.var.layers import facts_of
from nextscale.models.var.presets import Preset
from nextscale.models.var.random_weights import random_models
from nextscale.models.var.sources import VARSource
from nextscale.models.var.transformer import VAR, VARConfig
from nextscale.models.var.vqvae import VQVAE, VQVAEConfig
from nextscale.runtime._session import SessionOptions
from nextscale.simulation.rounding import LayerBits, Rounding, weight_sha256

# The models of the tests are small: threads would wait for each other more than they work.
torch.set_num_threads(1)

PATCH_NUMS = (1, 2, 3, 4)
L = sum(pn * pn for pn in PATCH_NUMS)
V = 128
NUM_CLASSES = 10
CLASS_NAMES = [f"class {i}" for i in range(NUM_CLASSES)]
ONE_THREAD = SessionOptions(threads=1, ops="stock")
CALIBRATION_IMAGES = 5
RECIPES = {"fp32": "fp32", "int8": "default"}


def tiny_preset(**options: Any) -> Preset:
    """The configurations; `options` are further ones of the VAR."""
    shared: dict[str, Any] = {"patch_nums": PATCH_NUMS, "vocab_size": V}
    var = {"num_classes": NUM_CLASSES, "depth": 2, "embed_dim": 64, "num_heads": 2} | options
    return Preset("tiny", VARConfig(**var, **shared), VQVAEConfig(ch=32, ch_mult=(1, 2), **shared))


def tiny_models(seed: int = 0, **options: Any) -> tuple[VAR, VQVAE]:
    """The models with random weights."""
    return random_models(tiny_preset(**options), seed)


def tiny_source(seed: int = 0, **options: Any) -> VARSource:
    return VARSource(*tiny_models(seed, **options), "tiny", "For tests.", "MIT", CLASS_NAMES)


def no_progress(step: str, done: int = 0, total: int = 0) -> None:
    """A build that tells nobody."""


def tiny_recipe(name: str) -> Recipe:
    """A recipe with few calibration images."""
    return replace(load_recipe(name), calibration=replace(load_recipe(name).calibration, images=CALIBRATION_IMAGES))


def tiny_options(name: str, **options: Any) -> BuildOptions:
    """How to build with the recipe `name`."""
    return BuildOptions(tiny_recipe(name), session=ONE_THREAD, **options)


def rounded_down(recipe: Recipe, source: VARSource | None = None) -> Rounding:
    """What reconstruction might find for the tiny model, or `source`, and a recipe that equalizes nothing."""
    source = source or tiny_source()
    layers = {}
    learned = {layer.name for layer in IntegerModel.decide(recipe, facts_of(source.var)).learned()}
    for layer in find_layers(build_stage_graph(source.var, source.vqvae.quantize).graph, learned):
        assert layer.weight.const_value is not None
        rows = np.ascontiguousarray(layer.weight.const_value.numpy().T)
        layers[layer.name] = LayerBits(np.zeros(rows.shape, np.bool_), weight_sha256(rows))
    return Rounding(layers, {}, recipe.as_dict())


def build_tiny(out: Path, precision: str, source: VARSource | None = None) -> Path:
    """Build the bundle `out` of the tiny model, or of `source`, in "fp32" or "int8"."""
    build_bundle(source or tiny_source(), out, tiny_options(RECIPES[precision]), no_progress)
    return out
