"""The bundles whose speed a throughput table compares: one model by several recipes, built once and kept.

Speed does not depend on what weights are rounded to, nor on how many images the ranges were observed on. So unless
there is learned rounding for the model, reconstructed recipes round to nearest; calibration is short and without
matching; and a model with random weights takes the places of attentive tokens from the demo model's attention.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from nextscale import __version__
from nextscale.calib_data.choose_theta import choose_theta
from nextscale.compiler.build import build_bundle
from nextscale.compiler.options import BuildOptions, Progress
from nextscale.evaluate._kept_figures import read_json
from nextscale.graph_passes.recipe import Recipe
from nextscale.models.bit_operations import BitWidths
from nextscale.models.operations import convolution_operations
from nextscale.models.var.layers import facts_of
from nextscale.models.var.sources import VARSource
from nextscale.models.var.vqvae import VQVAE, VQVAEConfig
from nextscale.paper._transfer_scores import DEMO_ATTENTION, demo_statistics
from nextscale.paper.recipe_bundles import RecipeBundle, UnbuiltBundle, told, unbuilt_bundle
from nextscale.paper.store import Key, Store, reading_entry
from nextscale.paper.table_c import TableBundle
from nextscale.runtime._bundle import Bundle
from nextscale.runtime._file_hash import file_sha256
from nextscale.runtime._session import SessionOptions
from nextscale.runtime.image_io import write_files
from nextscale.simulation.rounding import Rounding


@dataclass(frozen=True)
class ModelOrigin:
    """Which model it is, and how to get it when a bundle has to be built.

    Attributes:
        description: plain values that no other model has.
        load: makes the source.
        random: whether its weights are random, so that its attention tells nothing.
    """

    description: Mapping[str, Any]
    load: Callable[[], VARSource]
    random: bool


@dataclass(frozen=True)
class ThroughputBundles:
    """Bundles of one model.

    Attributes:
        origin: the model.
        store: keeps them, by what they are made from.
        roundings: where learned rounding lies, {recipe}.safetensors; None or no such file: to nearest.
        calibration_images: at most this many.
        session: threads and memory of the builds.
        encoder: whether bundles get one.
    """

    origin: ModelOrigin
    store: Store
    roundings: Path | None
    calibration_images: int
    session: SessionOptions
    encoder: bool = False

    @cached_property
    def _source(self) -> VARSource:
        return self.origin.load()

    def build(
        self, recipes: Sequence[Recipe], progress: Progress, rebuild: bool = False
    ) -> tuple[list[TableBundle], int]:
        """The bundles, and the operations of the decoder's convolutions on one image.

        Args:
            recipes: with names of their own.
            progress: told each step.
            rebuild: build those anew that are there.
        Raises:
            NextscaleError: a bundle that is there is damaged; or it is to be built anew, and another command uses it.
        """
        operations = self._operations()
        keys = [self._key(recipe) for recipe in recipes]
        if rebuild:
            for key in keys:
                self.store.remove(key)
        self.store.hold(*keys)
        rows = []
        for recipe, key in zip(recipes, keys, strict=True):
            bundle, notes = self._bundle(recipe, key, progress), self._altered(recipe)[2]
            found = bundle.manifest.recipe.get("shift_and_sum")
            if self.origin.random and isinstance(found, dict):
                places = f"theta {found['theta']:g} and {' '.join(map(str, found['rows']))} places by stage"
                notes = (*notes, f"{places}, of the demo model's attention")
            rows.append(TableBundle(recipe, bundle, notes))
        return rows, operations

    def planned(self, recipe: Recipe, rebuild: bool = False) -> RecipeBundle | UnbuiltBundle:
        """The bundle, or what is known of it before it is built.

        Args:
            recipe: as for `build`.
            rebuild: as if it were not there.
        Raises:
            NextscaleError: it is damaged.
        """
        there = None if rebuild else self.store.find(self._key(recipe))
        if there is not None:
            with reading_entry(there):
                return RecipeBundle(recipe.name, Bundle.open(there))
        return unbuilt_bundle(recipe.name, self._altered(recipe)[0], self._source)

    def _operations(self) -> int:
        """Kept, as the model takes long to load."""
        key = Key(
            "facts", {**self._shared(), "fact": "decoder operations"}, f"{self.origin.description['name']}-decoder"
        )

        def make(target: Path) -> None:
            text = json.dumps(decoder_operations(self._source.vqvae.config))
            write_files({target: lambda file: file.write(text.encode())})

        path = self.store.made(key, make)
        with reading_entry(path):
            return read_json(path).integer()

    def _shared(self) -> dict[str, Any]:
        return {"version": __version__, "model": dict(self.origin.description)}

    def _key(self, recipe: Recipe) -> Key:
        altered, path, _ = self._altered(recipe)
        values = {
            **self._shared(),
            "recipe": told(altered),
            "rounding": None if path is None else file_sha256(path),
            "theta": file_sha256(DEMO_ATTENTION) if self._takes_theta(altered) else "the model's",
            "encoder": self.encoder,
        }
        return Key("bundle", values, f"{self.origin.description['name']}-{recipe.name}-speed")

    def _bundle(self, recipe: Recipe, key: Key, progress: Progress) -> Bundle:
        altered, path, _ = self._altered(recipe)

        def named(step: str, done: int = 0, total: int = 0) -> None:
            progress(f"{recipe.name}: {step}", done, total)

        def make(target: Path) -> None:
            theta = None
            if self._takes_theta(altered):
                model, bits = self._source.model_info(), BitWidths(altered.weights.bits, altered.activations.bits)
                facts = facts_of(self._source.var)
                theta = choose_theta(demo_statistics(model), model, facts, bits, altered.attention.budget)
            rounding = None if path is None else Rounding.load(path)
            options = BuildOptions(altered, session=self.session, rounding=rounding, theta=theta, encoder=self.encoder)
            build_bundle(self._source, target, options, named)

        path = self.store.made(key, make, waiting=lambda: named("waiting: another command builds it"))
        with reading_entry(path):
            return Bundle.open(path)

    def _takes_theta(self, recipe: Recipe) -> bool:
        """Whether theta is that of the demo model's attention."""
        return self.origin.random and recipe.precision != "fp32" and recipe.attention.shift_and_sum != "off"

    def _altered(self, recipe: Recipe) -> tuple[Recipe, Path | None, tuple[str, ...]]:
        """The recipe that is built, the file of its rounding, and what to say about it."""
        if recipe.precision == "fp32":
            return recipe, None, ()
        path = None if self.roundings is None else self.roundings / f"{recipe.name}.safetensors"
        if recipe.learned and path is not None and path.exists():
            return briefly_calibrated(recipe, self.calibration_images), path, ()
        notes = ("weights rounded to nearest",) if recipe.learned else ()
        return without_learning(recipe, self.calibration_images), None, notes


def without_learning(recipe: Recipe, images: int) -> Recipe:
    """The recipe with weights rounded to nearest, and calibrated as by `briefly_calibrated`."""
    if recipe.learned:
        recipe = replace(recipe, weights=replace(recipe.weights, rounding="nearest"))
    return briefly_calibrated(recipe, images)


def briefly_calibrated(recipe: Recipe, images: int) -> Recipe:
    """The recipe with at most so many calibration images, as they are sampled."""
    images = min(images, recipe.calibration.images)
    return replace(recipe, calibration=replace(recipe.calibration, images=images, matching="none"))


def decoder_operations(config: VQVAEConfig) -> int:
    """Operations of the convolutions that decode one image, a multiply-add being two."""
    with torch.device("meta"):
        vqvae = VQVAE(config)
    side = config.patch_nums[-1]
    return convolution_operations(vqvae.decode, (config.z_channels, side, side))
