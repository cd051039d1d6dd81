"""Learned weights in one go: token maps, theta, rounding, bundle. Each step is kept in a folder until all are done.

The folder lies beside the bundle, OUT.learning:

    settings.json                what the steps were begun with
    full_precision/              the model's float32 bundle
    sampling/, token_maps/       finished batches of sampling, then the token maps
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
from nextscale.calib_data.sample import SamplingSettings, sample_token_maps
from nextscale.calib_data.subjects import Subjects
from nextscale.calib_data.token_maps import TokenMaps
from nextscale.compiler._families import family_of
from nextscale.compiler._float_model import FloatModel
from nextscale.compiler._rounders import require_reducible
from nextscale.compiler._theta import shift_and_sum, theta_within_budget
from nextscale.compiler.build import build_bundle
from nextscale.compiler.options import BuildOptions, Progress
from nextscale.graph_passes.integer_model import IntegerModel
from nextscale.graph_passes.recipe import Recipe, load_recipe
from nextscale.models.var.layers import linear_shapes
from nextscale.models.var.sources import VARSource
from nextscale.runtime._bundle import Bundle
from nextscale.runtime._errors import NextscaleError
from nextscale.runtime._next_scale_loop import Generator
from nextscale.runtime.image_io import require_absent, write_files
from nextscale.simulation._device import Device, on_device, require_device
from nextscale.simulation.reconstruct import Step, reconstruct
from nextscale.simulation.reconstruction_settings import ReconstructionSettings
from nextscale.simulation.rounding import Rounding, weight_sha256
from nextscale.simulation.var_images import VARImages


def learning_folder(out: Path) -> Path:
    """Where `learn_bundle` keeps what is finished while it makes the bundle `out`."""
    return out.with_name(f"{out.name}.learning")


def learn_bundle(
    source: VARSource,
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
            sampled with the recipe's number and matching; `rounding` and `theta` are found here.
        settings: how to learn.
        device: where to learn; all else runs in ONNX Runtime on the CPU.
        progress: told each step.
    Returns:
        The bundle, and its rounding, whose `report` has the losses and the KL before and after.
    Raises:
        NextscaleError: the recipe rounds to nearest, the device is missing, or the work folder was begun with other
            settings.
        OutputError: out exists, or it or the work folder cannot be written.
    """
    require_absent(out)
    require_learned(options.recipe)
    if options.reduce_range:
        require_reducible(options.recipe)
    options.recipe.require_layers(list(linear_shapes(source.var.config)))
    require_device(device)
    learning = _Learning(source, options, settings, device, learning_folder(out), progress)
    learning.begin()
    token_maps = learning.token_maps()
    theta = None if options.recipe.attention.shift_and_sum == "off" else learning.theta(token_maps)
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

    source: VARSource
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
        recipe = self.options.recipe.as_dict()
        del recipe["description"]
        resumed = open_work(
            self.folder,
            {
                "model": _model_settings(self.source),
                "recipe": recipe,
                "calibration": {
                    "seed": self.options.seed,
                    "batch_size": self.options.batch_size,
                    "token_maps": _digest(self.options.token_maps),
                },
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
        return build_bundle(self.source, folder, options, lambda step, done=0, total=0: None)

    def token_maps(self) -> TokenMaps:
        if self.options.token_maps is not None:
            return self.options.token_maps
        folder, work = self.folder / "token_maps", self.folder / "sampling"
        if not folder.exists():
            recipe = self.options.recipe.calibration
            settings = SamplingSettings(
                recipe.images, self.options.seed, batch_size=self.options.batch_size, matching=recipe.matching
            )
            generator = Generator(self.full_precision, self.options.session)
            sample_token_maps(generator, settings, work, self.progress)[0].save(folder)
        shutil.rmtree(work, ignore_errors=True)
        return TokenMaps.load(folder, self.source.model_info())

    def theta(self, maps: TokenMaps) -> ThetaChoice:
        path = self.folder / "theta.json"
        if not path.exists():
            family = family_of(self.source)
            attention = IntegerModel.decide(self.options.recipe, family.facts()).attention
            assert attention is not None  # of a recipe with shift-and-sum
            found = theta_within_budget(
                family,
                self.full_precision,
                FloatModel.stage_of(family, self.full_precision),
                attention,
                Subjects.of_classes(maps.class_labels),
                maps.token_maps,
                self.options,
                self.progress,
            )
            _write_json(path, asdict(found))
        try:
            values = json.loads(path.read_bytes())
            choice = ThetaChoice(**{**values, "rows": tuple(values["rows"])})
            if not isinstance(choice.theta, float) or not all(type(row) is int for row in choice.rows):
                raise TypeError(choice)
            return choice
        except (ValueError, TypeError, KeyError, RecursionError):
            raise NextscaleError(f"{path}: damaged; remove it") from None

    def rounding(self, maps: TokenMaps, theta: ThetaChoice | None) -> Rounding:
        path = self.reconstruction / "rounding.safetensors"
        if not path.exists():
            self.progress("observing what is to be learned from")
            var, quantizer = self.source.var, self.source.vqvae.quantize
            with on_device(self.device, var, quantizer):
                reconstruct(
                    VARImages(var, quantizer, maps.class_labels, maps.token_maps),
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


def _model_settings(source: VARSource) -> dict[str, Any]:
    """The model's shape, and what tells its weights from others'."""
    digest = hashlib.sha256()
    for module in (source.var, source.vqvae):
        for name, tensor in module.state_dict().items():
            digest.update(f"{name} {weight_sha256(tensor.numpy())}".encode())
    return asdict(source.var.config) | {"vqvae": asdict(source.vqvae.config), "weights": digest.hexdigest()[:12]}


def _digest(maps: TokenMaps | None) -> str:
    if maps is None:
        return "sampled"
    return hashlib.sha256(maps.class_labels.tobytes() + maps.token_maps.tobytes()).hexdigest()[:12]


def _write_json(path: Path, values: Mapping[str, Any]) -> None:
    text = json.dumps(values, indent=1) + "\n"
    write_files({path: lambda file: file.write(text.encode())})
