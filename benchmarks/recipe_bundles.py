"""Bundles of the demo model by recipe, built once, and their agreement with full precision, measured once."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, wraps
from pathlib import Path
from typing import Any

import click
from learned_roundings import ROUNDINGS, require_rounding
from progress import log

from nextscale.calib_data.token_maps import TokenMaps
from nextscale.compiler.build import build_bundle
from nextscale.compiler.options import BuildOptions
from nextscale.evaluate.teacher_forced import as_json, teacher_forced
from nextscale.graph_passes.recipe import Recipe, load_recipe
from nextscale.measure.provenance import versions
from nextscale.models.var.sources import VARSource, demo_source
from nextscale.runtime._bundle import MANIFEST_NAME, Bundle
from nextscale.runtime._errors import NextscaleError
from nextscale.runtime._machine import describe_machine
from nextscale.runtime._next_scale_loop import Generator
from nextscale.runtime._session import SessionOptions
from nextscale.simulation.rounding import Rounding

HERE = Path(__file__).parent
FOLDERS = (HERE / "front", HERE.parent / "paper" / "recipes")  # of recipes that do not come with nextscale
FULL_PRECISION = "fp32"
TOGETHER = 5  # bundles that share the reference's work
# What a manifest adds to a recipe, or what its calibration found.
_OUTCOMES = ("calibration", "shift_and_sum", "agreement", "kernels", "description")


def find_recipe(name: str) -> Recipe:
    """A recipe by name, from this folder's or those that come with nextscale, or from a file."""
    here = [folder / f"{name}.toml" for folder in FOLDERS]
    return load_recipe(next((str(path) for path in here if path.exists()), name))


def with_recipe_bundles(work: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Options that say which bundles of the demo model a program works on; it gets them as `bundles`.

    Args:
        work: the folder by default.
    """
    path = click.Path(path_type=Path)
    options = (
        click.option("--work", type=path, default=Path(work), show_default=True),
        click.option("--roundings", type=path, default=ROUNDINGS, help="Reconstructed weights."),
        click.option("--token-maps", type=path, help="`nextscale calibrate`'s folder, no matching."),
        click.option("--matched-maps", type=path, help="The same with matching."),
        click.option("--threads", type=int, default=2, show_default=True),
    )

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        @wraps(command)
        def run(
            work: Path, roundings: Path, token_maps: Path | None, matched_maps: Path | None, threads: int, **rest: Any
        ) -> None:
            work.mkdir(parents=True, exist_ok=True)
            session = SessionOptions(threads=threads)
            command(bundles=RecipeBundles(work, session, roundings, token_maps, matched_maps), **rest)

        for option in reversed(options):
            run = option(run)
        return run

    return decorate


@dataclass(frozen=True)
class RecipeBundles:
    """A folder of bundles of the demo model, WORK/{recipe}, and of results, so that an interrupted run goes on.

    Attributes:
        work: the folder.
        session: threads and memory.
        roundings: where reconstructed weights lie, {recipe}.safetensors.
        token_maps, matched_maps: `nextscale calibrate`'s folders; without one a build samples.
    """

    work: Path
    session: SessionOptions
    roundings: Path = ROUNDINGS
    token_maps: Path | None = None
    matched_maps: Path | None = None

    @cached_property
    def source(self) -> VARSource:
        """The demo model."""
        return demo_source("demo")

    def can_build(self, recipe: Recipe) -> bool:
        """Whether the weights that the recipe asks for are there."""
        return not recipe.learned or self._rounding_path(recipe).exists()

    def build(self, recipe: Recipe, *, reduce_range: bool = False) -> str:
        """Make WORK/{recipe}, or WORK/{recipe}-reduced if its range is reduced, or find it there; its name there.

        Raises:
            NextscaleError: a bundle is there already, of another recipe of that name.
            click.ClickException: the recipe's learned rounding is missing.
        """
        name = f"{recipe.name}-reduced" if reduce_range else recipe.name
        folder = self.work / name
        if folder.exists():
            changed = changed_words(Bundle.open(folder), recipe)
            if changed:
                raise NextscaleError(f"{folder}: built with another recipe ({', '.join(changed)}); remove it")
            return name
        log(f"building {name}")
        options = BuildOptions(
            recipe,
            session=self.session,
            token_maps=self._token_maps(recipe),
            rounding=self._rounding(recipe),
            reduce_range=reduce_range,
            encoder=False,
        )
        build_bundle(replace(self.source, name=f"demo-{name}"), folder, options, log)
        return name

    def open(self, name: str) -> Generator:
        """A recipe's bundle, ready to generate."""
        return Generator(self.work / name, self.session)

    def agreements(self, names: Sequence[str], images: int, cfg_scale: float) -> dict[str, dict[str, Any]]:
        """Teacher-forced agreement with full precision, by recipe; kept as WORK/{recipe}.{images}-{cfg_scale}.json."""
        paths = {name: self._result_path(name, images, cfg_scale) for name in names}
        pending = [name for name in names if not self.measured(name, images, cfg_scale)]
        for first in range(0, len(pending), TOGETHER):
            together = pending[first : first + TOGETHER]
            log(f"comparing {', '.join(together)}")
            found = teacher_forced(
                self.open(FULL_PRECISION),
                {name: self.open(name) for name in together},
                images=images,
                cfg_scale=cfg_scale,
                on_images=lambda done: log("images", done, images),
            )
            for name, values in as_json(found).items():
                machine = {"machine": describe_machine().cpu, "onnxruntime": versions()["onnxruntime"]}
                size = {"megabytes": Bundle.open(self.work / name).manifest.size / 1e6}
                paths[name].write_text(json.dumps(values | size | machine), encoding="utf-8")
        return {name: json.loads(path.read_text(encoding="utf-8")) for name, path in paths.items()}

    def measured(self, name: str, images: int, cfg_scale: float) -> bool:
        """Whether a recipe's agreement is there, of the bundle that is there, if any is."""
        result, manifest = self._result_path(name, images, cfg_scale), self.work / name / MANIFEST_NAME
        if not result.exists() or not manifest.exists():
            return result.exists()
        return result.stat().st_mtime >= manifest.stat().st_mtime

    def _result_path(self, name: str, images: int, cfg_scale: float) -> Path:
        return self.work / f"{name}.{images}-{cfg_scale:g}.json"

    def _rounding_path(self, recipe: Recipe) -> Path:
        return self.roundings / f"{recipe.name}.safetensors"

    def _rounding(self, recipe: Recipe) -> Rounding | None:
        if not recipe.learned:
            return None
        return Rounding.load(require_rounding(self._rounding_path(recipe)))

    def _token_maps(self, recipe: Recipe) -> TokenMaps | None:
        """As many of the maps as the recipe calibrates on, as if a build had sampled them."""
        folder = self.token_maps if recipe.calibration.matching == "none" else self.matched_maps
        if folder is None or recipe.precision == "fp32":
            return None
        maps, count = TokenMaps.load(folder, self.source.model_info()), recipe.calibration.images
        return replace(maps, class_labels=maps.class_labels[:count], token_maps=maps.token_maps[:count])


def changed_words(bundle: Bundle, recipe: Recipe) -> list[str]:
    """In which words of a recipe a bundle's differs, those of its calibration aside; empty if it was built by it."""
    found = bundle.manifest.recipe
    expected = {"name": recipe.name} if recipe.precision == "fp32" else recipe.as_dict()
    plain = json.loads(json.dumps(expected))
    return [key for key in plain if key not in _OUTCOMES and found.get(key) != plain[key]]
