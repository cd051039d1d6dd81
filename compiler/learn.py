"""Learned weights in one go: token maps, theta, rounding, bundle. Each step is kept in a folder until all are done.

The folder lies beside the bundle, OUT.learning:

    settings.json                what the steps were begun with
    full_precision/              the model's float32 bundle
    sampling/, token_maps/       finished batches of sampling, then the token maps or bits
    theta.json                   of recipes with shift-and-sum
    reconstruction/              settings.json, finished units, then the rounding
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from nextscale.calib_data._work_folder import open_work
from nextscale.calib_data.choose_theta import ThetaChoice
from nextscale.calib_data.subjects import SampledImages
from nextscale.compiler._families import family_of
from nextscale.compiler._rounders import require_reducible
from nextscale.compiler._theta import shift_and_sum, theta_of_recipe
from nextscale.compiler.build import build_bundle
from nextscale.compiler.family import SAMPLING, Family
from nextscale.compiler.options import BuildOptions, Progress
from nextscale.graph_passes.recipe import Recipe, load_recipe
from nextscale.models.sources import Source
from nextscale.runtime._bundle import Bundle
from nextscale.runtime._errors import NextscaleError
from nextscale.runtime._next_scale_loop import Generator
from nextscale.runtime.image_io import require_absent, write_files
from nextscale.simulation._device import Device, on_device, require_device
from nextscale.simulation.reconstruct import Step, reconstruct
from nextscale.simulation.reconstruction_settings import ReconstructionSettings
from nextscale.simulation.rounding import Rounding


def learning_folder(out: Path) -> Path:
    """Where `learn_bundle` keeps what is finished while it makes the bundle `out`."""
    return out.with_name(f"{out.name}.learning")


def learn_bundle(
    source: Source,
    out: Path,
    options: BuildOptions,
    settings: ReconstructionSettings,
    device: Device,
    progress: Progress,
) -> tuple[Bundle, Rounding]:
    """Learn how the recipe rounds the weights, and write the bundle `out` with them.

    The same call goes on from what an interrupted one finished: batches of sampled images, theta, reconstructed units.
    Reconstruction and bundle share theta and its places. The work folder goes when the bundle is written.

    Args:
        source: the model, on the CPU.
        out: the folder to make.
        options: with a recipe whose weights are reconstructed. Its `token_maps` are taken or, where there are none,
            sampled with the recipe's number and matching; so is its `theta`, or chosen; `rounding` is found here.
        settings: how to learn.
        device: where to learn; all else runs in ONNX Runtime on the CPU.
        progress: told each step.
    Returns:
        The bundle, and its rounding, whose `report` has the losses and the KL before and after.
    Raises:
        NextscaleError: the recipe rounds to nearest or is not for the family, there is nothing to calibrate with, the
            device is missing, or the work folder was begun with other settings.
        OutputError: out exists, or it or the work folder cannot be written.
    """
    require_absent(out)
    require_learned(options.recipe)
    if options.reduce_range:
        require_reducible(options.recipe)
    family = family_of(source)
    family.require_recipe(options.recipe)
    options.recipe.require_layers([layer.name for layer in family.facts().layers])
    require_device(device)
    family.calibration_subjects(1, options.seed)  # refuses what cannot be calibrated before anything is computed
    learning = _Learning(family, options, settings, device, learning_folder(out), progress)
    learning.begin()
    token_maps = learning.token_maps()
    theta = None
    if options.recipe.attention.shift_and_sum != "off":
        theta = options.theta or learning.theta(token_maps)
    rounding = learning.rounding(token_maps, theta)
    learned = replace(options, token_maps=token_maps, theta=theta, rounding=rounding)
    bundle = build_bundle(source, out, learned, progress)
    shutil.rmtree(learning.folder, ignore_errors=True)  # the bundle is what counts
    return bundle, rounding


def require_learned(recipe: Recipe) -> None:
    """Raise NextscaleError unless the recipe's weights are learned."""
    if not recipe.learned:
        does = "quantizes nothing" if recipe.precision == "fp32" else "rounds weights to nearest"
        raise NextscaleError(
            f"recipe {recipe.name}: {does}, so there is nothing to learn; leave out --learn, or choose a recipe with "
            "learned weights, such as default-w8a8"
        )


@dataclass(frozen=True)
class _Learning:
    """The steps before the bundle: each takes what an earlier run left in the folder, or makes it and leaves it."""

    family: Family
    options: BuildOptions
    settings: ReconstructionSettings
    device: Device
    folder: Path
    progress: Progress

    @property
    def reconstruction(self) -> Path:
        """The folder of the step that more settings decide about, so that it can be begun again alone."""
        return self.folder / "reconstruction"

    def begin(self) -> None:
        """Make the folders, or find out whether an earlier run had the same settings."""
        recipe, theta = self.options.recipe.as_dict(), self.options.theta
        del recipe["description"]
        resumed = open_work(
            self.folder,
            {
                "model": self.family.identity(),
                "recipe": recipe,
                "calibration": {
                    "seed": self.options.seed,
                    "batch_size": self.options.batch_size,
                    "token_maps": _digest(self.options.token_maps),
                },
                **({} if theta is None else {"shift_and_sum": asdict(theta)}),
            },
        )
        open_work(self.reconstruction, asdict(self.settings))
        if resumed:
            self.progress(f"going on from {self.folder}")

    @cached_property
    def full_precision(self) -> Bundle:
        folder = self.folder / "full_precision"
        if folder.exists():
            return Bundle.open(folder)
        self.progress("writing the full-precision model")
        options = BuildOptions(load_recipe("fp32"), session=self.options.session, encoder=False)
        return build_bundle(self.family.source, folder, options, lambda step, done=0, total=0: None)

    def token_maps(self) -> SampledImages:
        if self.options.token_maps is not None:
            return self.options.token_maps
        folder = self.folder / "token_maps"
        if not folder.exists():
            generator = Generator(self.full_precision, self.options.session)
            self.family.sample(generator, self.options, self.folder, self.progress).save(folder)
        shutil.rmtree(self.folder / SAMPLING, ignore_errors=True)
        return self.family.load_sampled(folder)

    def theta(self, maps: SampledImages) -> ThetaChoice:
        path = self.folder / "theta.json"
        if not path.exists():
            found = theta_of_recipe(self.family, self.full_precision, maps, self.options, self.progress)
            _write_json(path, asdict(found))
        try:
            values = json.loads(path.read_bytes())
            choice = ThetaChoice(**{**values, "rows": tuple(values["rows"])})
            if not isinstance(choice.theta, float) or not all(type(row) is int for row in choice.rows):
                raise TypeError(choice)
            return choice
        except (ValueError, TypeError, KeyError, RecursionError):
            raise NextscaleError(f"{path}: damaged; remove it") from None

    def rounding(self, maps: SampledImages, theta: ThetaChoice | None) -> Rounding:
        path = self.reconstruction / "rounding.safetensors"
        if not path.exists():
            self.progress("observing what is to be learned from")
            with on_device(self.device, *self.family.modules()):
                reconstruct(
                    self.family.teacher_forced_images(maps),
                    self.options.recipe,
                    self.settings,
                    shift_and_sum=shift_and_sum(self.options.recipe, theta),
                    work=self.reconstruction / "units",
                    on_step=self._on_step,
                ).save(path)
        found = Rounding.load(path)
        try:
            found.summary()
        except (KeyError, TypeError, ValueError):
            raise NextscaleError(f"{path}: damaged: its report lacks what learning gained; remove it") from None
        return found

    def _on_step(self, step: Step) -> None:
        self.progress(f"learning {step.unit}", step.step, step.steps)


def _digest(maps: SampledImages | None) -> str:
    if maps is None:
        return "sampled"
    rows = (row.tobytes() for row in maps.token_maps)
    return hashlib.sha256(b"".join([maps.subjects.digest().encode(), *rows])).hexdigest()[:12]


def _write_json(path: Path, values: Mapping[str, Any]) -> None:
    text = json.dumps(values, indent=1) + "\n"
    write_files({path: lambda file: file.write(text.encode())})
