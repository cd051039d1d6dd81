"""The bundles of Table 3: folders that a user gives, and the demo model by recipe, built once and kept.

Unlike those of a throughput table, whose speed alone counts, they are the recipes themselves: with a recipe's matching,
and with its learned rounding, without which it is left out.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

from nextscale.calib_data.sample import SamplingSettings, sample_token_maps
from nextscale.calib_data.token_maps import TokenMaps
from nextscale.compiler.build import build_bundle
from nextscale.compiler.options import BuildOptions, Progress
from nextscale.graph_passes.recipe import Recipe, load_recipe
from nextscale.models.var.sources import VARSource
from nextscale.paper.throughput_bundles import changed_words
from nextscale.runtime._bundle import MANIFEST_NAME, Bundle
from nextscale.runtime._errors import NextscaleError
from nextscale.runtime._next_scale_loop import Generator
from nextscale.runtime._scratch import remove_folder
from nextscale.runtime._session import SessionOptions
from nextscale.simulation.rounding import Rounding

FULL_PRECISION = "fp32"
SAMPLED_AT_ONCE = BuildOptions.batch_size  # as a build does


@dataclass(frozen=True)
class EditingBundle:
    """A row's bundle, and the name of its recipe."""

    name: str
    bundle: Bundle


def given_bundle(text: str) -> EditingBundle | None:
    """The bundle in the folder of that name; None if it is none, but perhaps a recipe's name."""
    path = Path(text)
    if not (path / MANIFEST_NAME).exists():
        return None
    bundle = Bundle.open(path)
    bundle.require_classes("Table 3 is of VAR")
    return EditingBundle(bundle.manifest.recipe["name"], bundle)


@dataclass(frozen=True)
class DemoBundles:
    """Bundles of one model in a folder, WORK/{recipe}, and token maps that several of them calibrate with.

    Attributes:
        work: the folder.
        load: makes the model's source, when a bundle has to be built.
        roundings: where learned rounding lies, {recipe}.safetensors; None: nowhere.
        session: threads and memory of the builds.
    """

    work: Path
    load: Callable[[], VARSource]
    roundings: Path | None
    session: SessionOptions

    @cached_property
    def _source(self) -> VARSource:
        return self.load()

    def built(self, recipe: Recipe) -> EditingBundle | None:
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
        return EditingBundle(recipe.name, bundle)

    def missing(self, recipe: Recipe) -> str | None:
        """Why a recipe cannot be built, in a line; None if it can be."""
        if not recipe.learned:
            return None
        if self.roundings is None:
            return f"{recipe.name}: its weights are learned, and no --roundings is given"
        path = self._rounding_path(recipe)
        return None if path.exists() else f"{recipe.name}: its weights are learned, and there is no {path}"

    def build(self, recipe: Recipe, progress: Progress) -> EditingBundle:
        """The bundle, built if it is not there.

        Args:
            recipe: one of which nothing is `missing`.
            progress: told each step.
        """
        there = self.built(recipe)
        if there is not None:
            return there
        self.work.mkdir(parents=True, exist_ok=True)

        def named(step: str, done: int = 0, total: int = 0) -> None:
            progress(f"{recipe.name}: {step}", done, total)

        options = BuildOptions(
            recipe,
            session=self.session,
            token_maps=self._token_maps(recipe, named),
            rounding=Rounding.load(self._rounding_path(recipe)) if recipe.learned else None,
        )
        source = replace(self._source, name=f"{self._source.name}-{recipe.name}")
        return EditingBundle(recipe.name, build_bundle(source, self.work / recipe.name, options, named))

    def _token_maps(self, recipe: Recipe, progress: Progress) -> TokenMaps | None:
        """Those that a build samples and matches, once for all recipes of the same matching; None: it samples none."""
        calibration = recipe.calibration
        if recipe.precision == FULL_PRECISION or calibration.matching == "none":
            return None
        folder = self.work / f"maps-{calibration.matching}-{calibration.images}"
        original = self.build(load_recipe(FULL_PRECISION), progress).bundle
        if not folder.exists():
            settings = SamplingSettings(calibration.images, batch_size=SAMPLED_AT_ONCE, matching=calibration.matching)
            partial = folder.with_name(f"{folder.name}.partial")
            maps, _ = sample_token_maps(Generator(original, self.session), settings, partial, progress)
            maps.save(folder)
            remove_folder(partial)
        return TokenMaps.load(folder, original.model)

    def _rounding_path(self, recipe: Recipe) -> Path:
        assert self.roundings is not None
        return self.roundings / f"{recipe.name}.safetensors"
