"""The bundles of the paper's tables: folders that a user gives, and one model by recipe, built once and kept.

Unlike those of a throughput table, whose speed alone counts, they are the recipes themselves: with a recipe's matching,
and with its learned rounding, which is read or, where that is asked for, learned; without it the recipe is left out.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from nextscale import __version__
from nextscale.calib_data.choose_theta import ThetaChoice
from nextscale.calib_data.subjects import SampledImages
from nextscale.compiler._families import family_of
from nextscale.compiler._theta import shift_and_sum, theta_of_recipe
from nextscale.compiler.build import build_bundle
from nextscale.compiler.learn import learn_bundle
from nextscale.compiler.options import BuildOptions, Progress
from nextscale.graph_passes.expand_attentive_tokens import ShiftAndSum
from nextscale.graph_passes.recipe import Recipe, load_recipe
from nextscale.models.sources import Source
from nextscale.paper._estimated_size import bundle_bytes
from nextscale.paper._estimated_time import image_seconds
from nextscale.paper.store import Key, Store, reading_entry
from nextscale.runtime._bundle import MANIFEST_NAME, Bundle
from nextscale.runtime._errors import NextscaleError, OutputError
from nextscale.runtime._file_hash import file_sha256
from nextscale.runtime._next_scale_loop import Generator
from nextscale.runtime._session import SessionOptions
from nextscale.simulation._device import Device
from nextscale.simulation.reconstruction_settings import ReconstructionSettings
from nextscale.simulation.rounding import Rounding

FULL_PRECISION = "fp32"


@dataclass(frozen=True)
class RecipeBundle:
    """A row's bundle, and the name of its recipe."""

    name: str
    bundle: Bundle


@dataclass(frozen=True)
class UnbuiltBundle:
    """A row's bundle that is yet to be built.

    Attributes:
        name: of its recipe.
        recipe: what it is built by.
        bytes: that it takes, about.
        image: seconds of an image of its model in full precision, by operations.
        learns: whether rounding is to be learned for it.
    """

    name: str
    recipe: Recipe
    bytes: int
    image: float
    learns: bool = False


def unbuilt_bundle(name: str, recipe: Recipe, source: Source, *, learns: bool = False) -> UnbuiltBundle:
    """What is known of the source's bundle by a recipe."""
    family = family_of(source)
    facts = family.facts(0)
    parameters = sum(weight.numel() for module in family.weights() for weight in module.parameters())
    size = bundle_bytes(recipe, facts, parameters)
    return UnbuiltBundle(name, recipe, size, image_seconds(source.model_info(), facts), learns)


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
    """Bundles of one model, the token maps that several of them calibrate with, and rounding that is learned.

    Attributes:
        store: keeps them, by what they are made from.
        load: makes the model's source, whose weights are a part of that.
        roundings: where learned rounding lies, {recipe}.safetensors; None: nowhere.
        session: threads and memory of the builds.
        learning: of rounding that does not lie there; None: it is missing.
        encoder: whether bundles need one; those that are built without are of no use to whoever needs it.
        theta: of recipes with shift-and-sum, and its places; None: each build chooses its own within the budget.
    """

    store: Store
    load: Callable[[], Source]
    roundings: Path | None
    session: SessionOptions
    learning: Learning | None = None
    encoder: bool = True
    theta: ThetaChoice | None = None

    @cached_property
    def _source(self) -> Source:
        return self.load()

    @cached_property
    def _model(self) -> Mapping[str, Any]:
        """What tells the model from others."""
        source = self._source
        names = None if source.class_names is None else list(source.class_names)
        text = json.dumps([family_of(source).identity(), names, source.licence], sort_keys=True)
        return {"name": source.name, "sha256": hashlib.sha256(text.encode()).hexdigest()}

    def require_model(self) -> None:
        """Load the source: raise NextscaleError if it cannot be."""
        _ = self._model

    def require_calibration(self, recipes: Iterable[Recipe]) -> None:
        """Raise NextscaleError if there is nothing to calibrate with those that are to be built, before any is."""
        for recipe in recipes:
            if recipe.precision != FULL_PRECISION and self.built(recipe) is None and self.missing(recipe) is None:
                family_of(self._source).calibration_subjects(1, seed=0)
                return

    def hold(self, recipes: Iterable[Recipe]) -> None:
        """Keep what these recipes need in the store, also while others of them are built."""
        for recipe in recipes:
            if self.missing(recipe) is None:
                self.store.hold(*self._bundle_keys(recipe))
                if self._takes_maps(recipe):
                    self.store.hold(self._maps_key(recipe))
                if recipe.learned and not self._is_learned(recipe):
                    self.store.hold(self._rounding_key(recipe))

    def built(self, recipe: Recipe) -> RecipeBundle | None:
        """The bundle, if it is there.

        Raises:
            NextscaleError: it is damaged.
        """
        for key in self._bundle_keys(recipe) if self.missing(recipe) is None else ():
            found = self.store.find(key)
            if found is not None:
                return _opened(recipe, found)
        return None

    def planned(self, recipe: Recipe) -> RecipeBundle | UnbuiltBundle:
        """The bundle, or what is known of it before it is built.

        Args:
            recipe: one of which nothing is `missing`.
        """
        return self.built(recipe) or self.unbuilt(recipe, is_new=False)

    def unbuilt(self, recipe: Recipe, *, is_new: bool = True) -> UnbuiltBundle:
        """What is known of a bundle that is not in the store.

        Args:
            recipe: one of which nothing is `missing`.
            is_new: its rounding is not there either.
        """
        learns = recipe.learned and not self._is_learned(recipe)
        learns = learns and (is_new or self.store.find(self._rounding_key(recipe)) is None)
        return unbuilt_bundle(recipe.name, recipe, self._source, learns=learns)

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

        def named(step: str, done: int = 0, total: int = 0) -> None:
            progress(f"{recipe.name}: {step}", done, total)

        key = self._bundle_keys(recipe)[0]
        source = _renamed(self._source, f"{self._source.name}-{recipe.name}")
        options = BuildOptions(
            recipe,
            session=self.session,
            token_maps=self._token_maps(recipe, named),
            rounding=Rounding.load(self._rounding_path(recipe)) if self._is_learned(recipe) else None,
            theta=None if recipe.attention.shift_and_sum == "off" else self.theta,
            encoder=self.encoder,
        )

        def make(target: Path) -> None:
            if recipe.learned and options.rounding is None:
                self._learn(source, target, options, self.store.partial(key), named)
            else:
                build_bundle(source, target, options, named)

        needed = unbuilt_bundle(recipe.name, recipe, self._source).bytes
        path = self.store.made(key, make, needed=needed, waiting=lambda: named("waiting: another builds it"))
        return _opened(recipe, path)

    def built_or_why(self, recipe: Recipe, progress: Progress) -> RecipeBundle | str:
        """The bundle, built if it is not there; or why it cannot be, in a line.

        Args:
            recipe: any.
            progress: told each step.
        Raises:
            OutputError: there is no room, or the folder cannot be written.
            NextscaleError: full precision cannot be built, without which there is nothing to compare with.
        """
        missing = self.missing(recipe)
        if missing is not None:
            return missing
        try:
            return self.build(recipe, progress)
        except OutputError:
            raise
        except NextscaleError as error:  # such as a budget that is too small for the model
            if recipe.name == FULL_PRECISION:
                raise
            return f"{recipe.name}: {error}"

    def maps(self, recipe: Recipe, progress: Progress) -> Path:
        """Token maps or bits with the recipe's number and matching, sampled if they are not there.

        Args:
            recipe: of an integer bundle.
            progress: told each step.
        Returns:
            A folder as `nextscale calibrate` makes it, with the frequencies of a codebook's entries.
        """
        key = self._maps_key(recipe)

        def make(target: Path) -> None:
            original = Generator(self.build(load_recipe(FULL_PRECISION), progress).bundle, self.session)
            options = BuildOptions(recipe, session=self.session)
            family_of(self._source).sample(original, options, self.store.partial(key), progress).save(target)

        return self.store.made(key, make, waiting=lambda: progress("waiting: another command samples the token maps"))

    def has_maps(self, recipe: Recipe) -> bool:
        """Whether those of `maps` are there."""
        return self.store.find(self._maps_key(recipe)) is not None

    def digest(self, recipe: Recipe) -> str:
        """Of all that decides its bundle."""
        return self._bundle_keys(recipe)[0].digest

    def rounding(self, recipe: Recipe, progress: Progress) -> Rounding | None:
        """A recipe's learned rounding, read or learned; None of one that learns none.

        Raises:
            NextscaleError: it went from the store, and its bundle did not.
        """
        if not recipe.learned:
            return None
        if self._is_learned(recipe):
            return Rounding.load(self._rounding_path(recipe))
        self.build(recipe, progress)
        known = self.store.find(self._rounding_key(recipe))
        if known is None:
            raise NextscaleError(
                f"{recipe.name}: its rounding is gone, and its bundle is there; `nextscale paper clean --kind bundle`, "
                "so that it is learned again"
            )
        return _rounding_at(known)

    def expansion(self, recipe: Recipe, progress: Progress) -> ShiftAndSum | None:
        """Theta and places as a build chooses them; None of a recipe without shift-and-sum."""
        if recipe.attention.shift_and_sum == "off":
            return None
        family, options = family_of(self._source), BuildOptions(recipe, session=self.session)
        choice = self.theta
        if choice is None:
            original = self.build(load_recipe(FULL_PRECISION), progress).bundle
            maps = self._sampled(recipe, progress)
            choice = theta_of_recipe(family, original, maps, options, progress)
        return shift_and_sum(recipe, choice)

    def _learn(self, source: Source, target: Path, options: BuildOptions, partial: Path, progress: Progress) -> None:
        """The bundle with rounding that an earlier call has learned, or that is learned now, and kept."""
        assert self.learning is not None
        recipe = options.recipe
        key = self._rounding_key(recipe)
        known = self.store.find(key)
        if known is not None:
            build_bundle(source, target, replace(options, rounding=_rounding_at(known)), progress)
            return
        finished = partial / "bundle"
        if not finished.exists():
            settings, device = self.learning.settings, self.learning.device
            _, rounding = learn_bundle(source, finished, options, settings, device, progress)
            self.store.made(key, rounding.save)
        finished.rename(target)

    def _token_maps(self, recipe: Recipe, progress: Progress) -> SampledImages | None:
        """Those that a build is given; None: it samples while it observes."""
        return self._sampled(recipe, progress) if self._takes_maps(recipe) else None

    def _sampled(self, recipe: Recipe, progress: Progress) -> SampledImages:
        path = self.maps(recipe, progress)
        with reading_entry(path):
            return family_of(self._source).load_sampled(path)

    def _takes_maps(self, recipe: Recipe) -> bool:
        to_learn = recipe.learned and not self._is_learned(recipe)
        return recipe.precision != FULL_PRECISION and (recipe.calibration.matching != "none" or to_learn)

    def _bundle_keys(self, recipe: Recipe) -> list[Key]:
        """Of the bundles that will do: what is built, and where no encoder is needed also one with it."""
        rounding: dict[str, str] | None = None
        if recipe.learned:
            is_there = self._is_learned(recipe)
            rounding = (
                {"file": file_sha256(self._rounding_path(recipe))}
                if is_there
                else {"learned": self._rounding_key(recipe).digest}
            )
        values = {
            **self._shared(recipe),
            "recipe": told(recipe),
            "maps": self._maps_key(recipe).digest if self._takes_maps(recipe) else None,
            "rounding": rounding,
        }
        values |= self._given_theta(recipe)
        label = f"{self._source.name}-{recipe.name}"
        return [Key("bundle", {**values, "encoder": has}, label) for has in dict.fromkeys([self.encoder, True])]

    def _given_theta(self, recipe: Recipe) -> dict[str, Any]:
        """Of a key; nothing where theta is chosen, or there is none."""
        if self.theta is None or recipe.attention.shift_and_sum == "off":
            return {}
        return {"theta": asdict(self.theta)}

    def _maps_key(self, recipe: Recipe) -> Key:
        calibration = recipe.calibration
        values = {**self._shared(recipe), "images": calibration.images, "matching": calibration.matching}
        return Key("maps", values, f"{self._source.name}-{calibration.matching}-{calibration.images}")

    def _rounding_key(self, recipe: Recipe) -> Key:
        assert self.learning is not None
        values = {
            **self._shared(recipe),
            "recipe": told(recipe),
            "maps": self._maps_key(recipe).digest,
            "settings": asdict(self.learning.settings),
            "device": self.learning.device,
            **self._given_theta(recipe),
        }
        return Key("rounding", values, f"{self._source.name}-{recipe.name}")

    def _shared(self, recipe: Recipe) -> dict[str, Any]:
        """What decides all that is made, beside the recipe."""
        options = BuildOptions(recipe)
        sampling = {} if recipe.precision == FULL_PRECISION else {"seed": options.seed, "batch": options.batch_size}
        return {"version": __version__, "model": self._model, **sampling}

    def _is_learned(self, recipe: Recipe) -> bool:
        """Whether its rounding is there to be read."""
        return recipe.learned and self.roundings is not None and self._rounding_path(recipe).exists()

    def _rounding_path(self, recipe: Recipe) -> Path:
        assert self.roundings is not None
        return self.roundings / f"{recipe.name}.safetensors"


def model_name(original: Bundle) -> str:
    """Of the model of a full-precision bundle."""
    return original.manifest.name.removesuffix(f"-{FULL_PRECISION}")


def told(recipe: Recipe) -> dict[str, Any]:
    """All of a recipe that a bundle depends on, plain values."""
    if recipe.precision == FULL_PRECISION:
        return {"name": recipe.name}
    return {word: value for word, value in recipe.as_dict().items() if word != "description"}


def _opened(recipe: Recipe, path: Path) -> RecipeBundle:
    with reading_entry(path):
        return RecipeBundle(recipe.name, Bundle.open(path))


def _rounding_at(path: Path) -> Rounding:
    """Of an entry."""
    with reading_entry(path):
        return Rounding.load(path)


def _renamed(source: Source, name: str) -> Source:
    return replace(source, name=name)  # type: ignore[type-var]
