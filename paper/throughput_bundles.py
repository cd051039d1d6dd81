"""The bundles whose speed a throughput table compares: one model by several recipes, built once and kept in a folder.

Speed does not depend on what weights are rounded to, nor on how many images the ranges were observed on. So unless
there is learned rounding for the model, reconstructed recipes round to nearest; calibration is short and without
matching; and a model with random weights takes the places of attentive tokens from the demo model's attention.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from nextscale.calib_data.choose_theta import choose_theta
from nextscale.compiler.build import build_bundle
from nextscale.compiler.options import BuildOptions, Progress
from nextscale.graph_passes.recipe import Recipe
from nextscale.models.bit_operations import BitWidths
from nextscale.models.operations import convolution_operations
from nextscale.models.var.layers import facts_of
from nextscale.models.var.sources import VARSource
from nextscale.models.var.vqvae import VQVAE, VQVAEConfig
from nextscale.paper._transfer_scores import demo_statistics
from nextscale.paper.table_c import TableBundle
from nextscale.runtime._bundle import Bundle
from nextscale.runtime._errors import NextscaleError
from nextscale.runtime._outputs import make_folder
from nextscale.runtime._scratch import remove_folder
from nextscale.runtime._session import SessionOptions
from nextscale.runtime.image_io import require_writable, write_files
from nextscale.simulation.rounding import Rounding

MODEL_FILE = "model.json"
# What a manifest adds to a recipe, or what its calibration found.
_OUTCOMES = ("calibration", "shift_and_sum", "agreement", "kernels", "description")


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
    """Bundles of one model in a folder, WORK/{recipe}.

    Attributes:
        origin: the model.
        work: the folder.
        roundings: where learned rounding lies, {recipe}.safetensors; None or no such file: to nearest.
        calibration_images: at most this many.
        session: threads and memory of the builds.
        encoder: whether bundles that are built get one.
    """

    origin: ModelOrigin
    work: Path
    roundings: Path | None
    calibration_images: int
    session: SessionOptions
    encoder: bool = False

    def build(
        self, recipes: Sequence[Recipe], progress: Progress, rebuild: bool = False
    ) -> tuple[list[TableBundle], int]:
        """The bundles, and the operations of the decoder's convolutions on one image.

        Args:
            recipes: with names of their own.
            progress: told each step.
            rebuild: build those anew that are there.
        Raises:
            NextscaleError: the folder holds another model's bundles, one of another recipe of that name, or a folder of
                that name that was not made here.
        """
        make_folder(self.work)
        source: VARSource | None = None
        operations = self._known_operations()
        if operations is None:
            for folder in (self.work / recipe.name for recipe in recipes):
                if folder.exists():
                    raise NextscaleError(
                        f"{folder}: not made by table-c: no {MODEL_FILE} beside it; choose another --work"
                    )
            source = self.origin.load()
            operations = decoder_operations(source.vqvae.config)
            text = json.dumps({"model": dict(self.origin.description), "convolution_operations": operations}) + "\n"
            write_files({self.work / MODEL_FILE: lambda file: file.write(text.encode())})
        rows = []
        for recipe in recipes:
            folder = self.work / recipe.name
            altered, rounding, notes = self._altered(recipe)
            if rebuild and folder.exists():
                remove_folder(folder)
            if folder.exists():
                bundle = Bundle.open(folder)
                changed = changed_words(bundle, altered)
                if changed:
                    raise NextscaleError(
                        f"{folder}: built with another recipe of that name ({', '.join(changed)}); remove it, or give "
                        "--rebuild"
                    )
                if self.encoder and "encoder" not in bundle.manifest.graphs:
                    raise NextscaleError(f"{folder}: built without an encoder; remove it")
                if altered.precision != "fp32" and not any(info.fused for info in bundle.manifest.graphs.values()):
                    progress(f"{recipe.name}: is there without fused graphs; --rebuild adds them")
            else:
                source = source or self.origin.load()
                bundle = self._build_one(source, folder, altered, rounding, progress)
            found = bundle.manifest.recipe.get("shift_and_sum")
            if self.origin.random and isinstance(found, dict):
                places = f"theta {found['theta']:g} and {' '.join(map(str, found['rows']))} places by stage"
                notes = (*notes, f"{places}, of the demo model's attention")
            rows.append(TableBundle(recipe, bundle, notes))
        return rows, operations

    def _known_operations(self) -> int | None:
        """What model.json says, if it is there and of this model."""
        path = self.work / MODEL_FILE
        require_writable([path])
        if not path.exists():
            return None
        try:
            document = json.loads(path.read_text(encoding="utf-8"))
            model, operations = document["model"], int(document["convolution_operations"])
        except (OSError, ValueError, KeyError, TypeError):
            raise NextscaleError(f"{path}: damaged; remove the folder or choose another --work") from None
        if model != dict(self.origin.description):
            raise NextscaleError(
                f"{self.work}: holds bundles of another model ({_shown(model)}); choose another --work"
            )
        return operations

    def _altered(self, recipe: Recipe) -> tuple[Recipe, Rounding | None, tuple[str, ...]]:
        """The recipe that is built, its rounding, and what to say about it."""
        if recipe.precision == "fp32":
            return recipe, None, ()
        path = None if self.roundings is None else self.roundings / f"{recipe.name}.safetensors"
        if recipe.learned and path is not None and path.exists():
            return briefly_calibrated(recipe, self.calibration_images), Rounding.load(path), ()
        notes = ("weights rounded to nearest",) if recipe.learned else ()
        return without_learning(recipe, self.calibration_images), None, notes

    def _build_one(
        self, source: VARSource, folder: Path, recipe: Recipe, rounding: Rounding | None, progress: Progress
    ) -> Bundle:
        theta = None
        if self.origin.random and recipe.attention.shift_and_sum != "off":
            model, bits = source.model_info(), BitWidths(recipe.weights.bits, recipe.activations.bits)
            theta = choose_theta(demo_statistics(model), model, facts_of(source.var), bits, recipe.attention.budget)
        options = BuildOptions(recipe, session=self.session, rounding=rounding, theta=theta, encoder=self.encoder)

        def named(step: str, done: int = 0, total: int = 0) -> None:
            progress(f"{recipe.name}: {step}", done, total)

        return build_bundle(source, folder, options, named)


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


def changed_words(bundle: Bundle, recipe: Recipe) -> list[str]:
    """In which words of a recipe a bundle's differs, those of its calibration aside; empty if it was built by it."""
    found = bundle.manifest.recipe
    expected = {"name": recipe.name} if recipe.precision == "fp32" else recipe.as_dict()
    plain = json.loads(json.dumps(expected))
    return [key for key in plain if key not in _OUTCOMES and found.get(key) != plain[key]]


def _shown(model: object) -> str:
    return ", ".join(f"{key} {value}" for key, value in model.items()) if isinstance(model, dict) else str(model)
