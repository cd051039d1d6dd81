"""The bundles of Tables 2 and 3: folders that a user gives, and one model by recipe, built once and kept.

Unlike those of a throughput table, whose speed alone counts, they are the recipes themselves: with a recipe's matching,
and with its learned rounding, which is read or, where that is asked for, learned; without it the recipe is left out.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from nextscale.calib_data.subjects import SampledImages
from nextscale.compiler._families import family_of
from nextscale.compiler.build import build_bundle
from nextscale.compiler.learn import learn_bundle
from nextscale.compiler.options import BuildOptions, Progress
from nextscale.graph_passes.recipe import Recipe, load_recipe
from nextscale.models.sources import Source
from nextscale.paper.throughput_bundles import MODEL_FILE, changed_words
from nextscale.runtime._bundle import MANIFEST_NAME, Bundle
from nextscale.runtime._errors import NextscaleError
from nextscale.runtime._next_scale_loop import Generator
from nextscale.runtime._outputs import make_folder
from nextscale.runtime._scratch import remove_folder
from nextscale.runtime._session import SessionOptions
from nextscale.runtime.image_io import write_files
from nextscale.simulation._device import Device
from nextscale.simulation.reconstruction_settings import ReconstructionSettings
from nextscale.simulation.rounding import Rounding

FULL_PRECISION = "fp32"


@dataclass(frozen=True)
class RecipeBundle:
    """A row's bundle, and the name of its recipe."""

    name: str
    bundle: Bundle


def given_bundle(text: str) -> RecipeBundle | None:
    """The bundle in the folder of that name; None if it is none, but perhaps a recipe's name."""
    path = Path(text)
    if not (path / MANIFEST_NAME).exists():
        return None
    bundle = Bundle.open(path)
    bundle.require_classes("Table 3 is of VAR")
    return RecipeBundle(bundle.manifest.recipe["name"], bundle)


@dataclass(frozen=True)
class Learning:
    """How rounding is learned where there is none."""

    settings: ReconstructionSettings
    device: Device


@dataclass(frozen=True)
class RecipeBundles:
    """Bundles of one model in a folder, WORK/{recipe}, and token maps that several of them calibrate with.

    Attributes:
        work: the folder.
        load: makes the model's source, when a bundle has to be built.
        roundings: where learned rounding lies, {recipe}.safetensors; None: nowhere.
        session: threads and memory of the builds.
        learning: of rounding that does not lie there; None: it is missing.
        encoder: whether bundles that are built get one.
    """

    work: Path
    load: Callable[[], Source]
    roundings: Path | None
    session: SessionOptions
    learning: Learning | None = None
    encoder: bool = True

    @cached_property
    def _source(self) -> Source:
        return self.load()

    def require_model(self) -> None:
        """Begin in a new folder, or raise NextscaleError unless it has this model's bundles: the source is loaded."""
        identity: Mapping[str, Any] = json.loads(json.dumps(family_of(self._source).identity()))
        path = self.work / MODEL_FILE
        if not path.exists():
            if self.work.exists() and any(self.work.iterdir()):
                raise NextscaleError(f"{self.work}: holds other files, and no {MODEL_FILE}; choose another --work")
            make_folder(self.work)
            write_files({path: lambda file: file.write((json.dumps(identity, indent=1) + "\n").encode())})
            return
        try:
            found = json.loads(path.read_bytes())
        except (OSError, ValueError, RecursionError):
            raise NextscaleError(f"{path}: damaged; remove {self.work} or choose another --work") from None
        if found != identity:
            raise NextscaleError(
                f"{self.work}: holds bundles of another model, or of other sizes or calibration prompts; choose "
                "another --work"
            )

    def require_calibration(self, recipes: Iterable[Recipe]) -> None:
        """Raise NextscaleError if there is nothing to calibrate with those that are to be built, before any is."""
        for recipe in recipes:
            if recipe.precision != FULL_PRECISION and self.built(recipe) is None and self.missing(recipe) is None:
                family_of(self._source).calibration_subjects(1, seed=0)
                return

    def built(self, recipe: Recipe) -> RecipeBundle | None:
        """The bundle, if it is there.

        Raises:
            NextscaleError: there is one of another recipe of that name.
        """
        folder = self.work / recipe.name
        if not folder.exists():
            return None
        bundle = Bundle.open(folder)
        changed = changed_words(bundle, recipe)
        if changed:
            raise NextscaleError(f"{folder}: built with another recipe of that name ({', '.join(changed)}); remove it")
        return RecipeBundle(recipe.name, bundle)

    def missing(self, recipe: Recipe) -> str | None:
        """Why a recipe cannot be built, in a line; None if it can be."""
        if not recipe.learned or self.learning is not None:
            return None
        if self.roundings is None:
            return f"{recipe.name}: its weights are learned, and no --roundings is given"
        if self._is_learned(recipe):
            return None
        return f"{recipe.name}: its weights are learned, and there is no {self._rounding_path(recipe)}"

    def build(self, recipe: Recipe, progress: Progress) -> RecipeBundle:
        """The bundle, built if it is not there.

        Args:
            recipe: one of which nothing is `missing`.
            progress: told each step.
        """
        there = self.built(recipe)
        if there is not None:
            return there
        make_folder(self.work)

        def named(step: str, done: int = 0, total: int = 0) -> None:
            progress(f"{recipe.name}: {step}", done, total)

        learning = self.learning if recipe.learned and not self._is_learned(recipe) else None
        options = BuildOptions(
            recipe,
            session=self.session,
            token_maps=self._token_maps(recipe, learning is not None, named),
            rounding=Rounding.load(self._rounding_path(recipe)) if self._is_learned(recipe) else None,
            encoder=self.encoder,
        )
        source, out = _renamed(self._source, f"{self._source.name}-{recipe.name}"), self.work / recipe.name
        if learning is not None:
            bundle, _ = learn_bundle(source, out, options, learning.settings, learning.device, named)
        else:
            bundle = build_bundle(source, out, options, named)
        return RecipeBundle(recipe.name, bundle)

    def _token_maps(self, recipe: Recipe, to_learn: bool, progress: Progress) -> SampledImages | None:
        """Those that a build samples and matches, once for all recipes of the same matching; None: it samples none."""
        calibration = recipe.calibration
        if recipe.precision == FULL_PRECISION or (calibration.matching == "none" and not to_learn):
            return None
        folder = self.work / f"maps-{calibration.matching}-{calibration.images}"
        family, original = family_of(self._source), self.build(load_recipe(FULL_PRECISION), progress).bundle
        if not folder.exists():
            partial, options = folder.with_name(f"{folder.name}.partial"), BuildOptions(recipe, session=self.session)
            family.sample(Generator(original, self.session), options, partial, progress).save(folder)
            remove_folder(partial)
        return family.load_sampled(folder)

    def _is_learned(self, recipe: Recipe) -> bool:
        """Whether its rounding is there to be read."""
        return recipe.learned and self.roundings is not None and self._rounding_path(recipe).exists()

    def _rounding_path(self, recipe: Recipe) -> Path:
        assert self.roundings is not None
        return self.roundings / f"{recipe.name}.safetensors"


def _renamed(source: Source, name: str) -> Source:
    return replace(source, name=name)  # type: ignore[type-var]
