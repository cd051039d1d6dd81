"""Block reconstruction of weight rounding (BRECQ, Li et al., 2021) for a model of any family and a recipe.

The units are the attention parts and the feed-forward part of each block, and the head. Each learns the rounding of its
layers (`soft_rounding`) so that, fed what the quantized units before it give, it comes close to what the
full-precision model has there; its activations are quantized meanwhile. All else is rounded to nearest.
"""

from __future__ import annotations

import contextlib
import json
import math
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from nextscale.evaluate.teacher_forced import Agreement
from nextscale.graph_passes.expand_attentive_tokens import ShiftAndSum
from nextscale.graph_passes.recipe import Recipe
from nextscale.runtime._errors import NextscaleError
from nextscale.runtime._scratch import scratch_folder
from nextscale.simulation._soft_rounding import SoftRounding, regularizer
from nextscale.simulation._unit_store import Learned, UnitStore
from nextscale.simulation.reconstruction_settings import ReconstructionSettings
from nextscale.simulation.rounding import LayerBits, Rounding, codes_of, nearest_up, weight_sha256
from nextscale.simulation.simulated_agreement import simulated_agreement
from nextscale.simulation.simulated_model import Run, SimulatedModel
from nextscale.simulation.simulated_ranges import calibrated
from nextscale.simulation.teacher_forced_images import FULL_PRECISION, Pick, TeacherForcedImages

REPORT_EVERY = 50
# Of the free memory of a GPU, for the two streams of activations.
STREAMS_SHARE = 0.4


@dataclass(frozen=True)
class Step:
    """Progress: mean squared error relative to rounding to nearest, and the weighted regulariser."""

    unit: str
    step: int
    steps: int
    error: float
    regularizer: float


class OnStep(Protocol):
    """Told about progress now and then."""

    def __call__(self, step: Step) -> None: ...


@dataclass(frozen=True)
class Unit:
    """What is reconstructed together: its integer layers, and how it computes its output."""

    name: str
    layers: tuple[str, ...]
    run: Run


def units(simulated: SimulatedModel, cfg_scale: float) -> list[Unit]:
    """All units, in order; layers that the recipe leaves float are in none."""
    learned = simulated.integer.learned()
    return [
        Unit(name, tuple(layer.name for layer in learned if layer.unit == name), run)
        for name, run in simulated.units(cfg_scale).items()
    ]


def reconstruct(
    images: TeacherForcedImages,
    recipe: Recipe,
    settings: ReconstructionSettings,
    *,
    shift_and_sum: ShiftAndSum | None = None,
    work: Path | None = None,
    on_step: OnStep = lambda step: None,
) -> Rounding:
    """Learn the rounding of `recipe`'s weights and keep it if it is better than rounding to nearest.

    Args:
        images: with their model in full precision, on the device to compute on; the last of them are held out.
        recipe: with `rounding = "reconstructed"`.
        settings: how to learn.
        shift_and_sum: of recipes that have it.
        work: a folder that keeps each finished unit, so that the same call continues; made if it is missing.
        on_step: told about progress.
    Raises:
        NextscaleError: the recipe rounds to nearest, there are too few images, or `work` belongs to another run.
    """
    if not recipe.learned:
        raise NextscaleError(
            f'recipe {recipe.name} rounds weights to nearest; weights.rounding = "reconstructed" asks for more'
        )
    if len(images) < 2:
        raise NextscaleError(f"reconstruction needs at least 2 images, one of them held out; found {len(images)}")
    train, batch = len(images) - max(1, round(len(images) * settings.held_out)), settings.batch_size
    seen, rest = images[:train], images[train:]
    simulated = calibrated(seen, recipe, shift_and_sum=shift_and_sum, batch_size=batch)

    def held_out() -> Agreement:
        return simulated_agreement(rest, simulated, batch_size=batch)

    nearest = held_out()
    store = UnitStore(work, _fingerprint(simulated, images, settings, shift_and_sum))
    began = time.monotonic()
    with scratch_folder(work or Path(tempfile.gettempdir())) as scratch:
        learned = _Reconstruction(simulated, seen, settings, scratch).run(store, on_step)
    seconds = time.monotonic() - began
    reconstructed = held_out()
    kept = "reconstructed" if reconstructed.kl < nearest.kl else "nearest"
    layers = {}
    for found in learned.values():
        for name, up in found.up.items():
            weight = simulated.linears[name].exact.cpu().numpy()
            qparams = simulated.linears[name].qparams
            assert qparams is not None
            layers[name] = LayerBits(
                up if kept == "reconstructed" else nearest_up(weight, qparams), weight_sha256(weight)
            )
    report = {
        "kept": kept,
        "images": train,
        "held_out_images": len(rest),
        "kl_nearest": nearest.kl,
        "kl_reconstructed": reconstructed.kl,
        "kl_reconstructed_stderr": None if math.isnan(reconstructed.kl_stderr) else reconstructed.kl_stderr,
        "top1_nearest": nearest.top1,
        "top1_reconstructed": reconstructed.top1,
        "seconds": seconds,
        "settings": asdict(settings) | {"cfg_scale": images.cfg_scale},
        "shift_and_sum": _plain(shift_and_sum),
        "units": {name: dict(found.report) for name, found in learned.items()},
    }
    factors = {name: found.cpu().numpy() for name, found in simulated.equalization.factors.items()}
    return Rounding(layers, factors, recipe.as_dict(), report)


@dataclass(frozen=True)
class _OfSize:
    """The unit's inputs of images of one size, as the quantized model and as full precision have them.

    Attributes:
        images: their numbers, int64 [n].
        inputs, targets: float32 [2, n, L, C].
    """

    images: Pick
    inputs: Tensor
    targets: Tensor


class _Reconstruction:
    """The two streams of activations, and the loop over the units."""

    def __init__(
        self,
        simulated: SimulatedModel,
        images: TeacherForcedImages,
        settings: ReconstructionSettings,
        scratch: Path,
    ) -> None:
        self.simulated, self.images, self.settings = simulated, images, settings
        self.full, self.device = images.twin(FULL_PRECISION), simulated.device
        self.streams = list[_OfSize]()
        for size in np.unique(images.sizes):
            self.streams.append(self._begin(np.flatnonzero(images.sizes == size), scratch))

    @torch.no_grad()
    def _begin(self, of_size: Pick, scratch: Path) -> _OfSize:
        """The transformer's inputs of all images of one size."""
        streams = None
        for part in self._chunks(of_size):
            for stream, model in enumerate((self.simulated, self.full)):
                condition, span = self.images.given(model, of_size[part])
                x = self.images.embed(model, of_size[part], condition, span)
                if streams is None:
                    shape = (2, len(of_size), *x.shape[1:])
                    streams = _streams(shape, self.device, scratch, f"{of_size[0]}")
                self._put(streams[stream], part, x)
        assert streams is not None
        return _OfSize(of_size, *streams)

    def run(self, store: UnitStore, on_step: OnStep) -> dict[str, Learned]:
        """Reconstruct all units, or take those that `store` has."""
        learned = {}
        todo = units(self.simulated, self.images.cfg_scale)
        for index, unit in enumerate(todo):
            last = index == len(todo) - 1
            if not last:
                self._advance("targets", self.full, unit)
            found = store.load(unit.name, {name: self._shape(name) for name in unit.layers})
            if found is None:
                found = self._learn(unit, index, last, on_step)
                store.save(unit.name, found)
            for name, up in found.up.items():
                self._set_codes(name, up)
            if not last:
                self._advance("inputs", self.simulated, unit)
            learned[unit.name] = found
        return learned

    def _learn(self, unit: Unit, index: int, last: bool, on_step: OnStep) -> Learned:
        """Adam on V of the unit's layers."""
        if not unit.layers:
            return Learned({})
        settings, began = self.settings, time.monotonic()
        images, batch = len(self.images), min(self.settings.batch_size, len(self.images))
        order = np.random.default_rng([settings.seed, index])
        picks = order.integers(images, size=(settings.iterations, batch))
        # Both are judged on the same images, spread over all.
        judged = torch.linspace(0, images - 1, batch).long().numpy()
        soft = {name: self._soft_rounding(name) for name in unit.layers}

        def error(pick: Pick) -> Tensor:
            parts = [self._error(unit, last, streams, pick) for streams in self.streams]
            numbers = sum(count for _, count in parts)
            return torch.stack([mean * (count / numbers) for mean, count in parts if count]).sum()

        with torch.no_grad():
            nearest = error(judged).clamp_min(torch.finfo(torch.float32).tiny)
        optimizer = torch.optim.Adam([layer.logits for layer in soft.values()], lr=settings.learning_rate)
        with _fast_products():
            for step in range(settings.iterations):
                shares = {name: layer.share_up() for name, layer in soft.items()}
                for name, layer in soft.items():
                    self.simulated.linears[name].weight = layer.weight(shares[name])
                relative = error(picks[step]) / nearest
                left = regularizer(shares, step / settings.iterations, settings)
                optimizer.zero_grad()
                torch.add(relative, left).backward()
                optimizer.step()
                if step % REPORT_EVERY == 0 or step == settings.iterations - 1:
                    on_step(Step(unit.name, step + 1, settings.iterations, relative.item(), left.item()))
        up = {name: layer.up() for name, layer in soft.items()}
        for name, found in up.items():
            self._set_codes(name, found)
        with torch.no_grad():
            relative = error(judged) / nearest
        report = {"nearest": float(nearest), "relative": float(relative), "seconds": time.monotonic() - began}
        return Learned(up, report)

    def _soft_rounding(self, name: str) -> SoftRounding:
        linear = self.simulated.linears[name]
        assert linear.qparams is not None
        return SoftRounding(linear.exact, linear.qparams)

    def _shape(self, name: str) -> tuple[int, ...]:
        """[out, in] of a layer."""
        return tuple(self.simulated.linears[name].exact.shape)

    def _set_codes(self, name: str, up: NDArray[np.bool_]) -> None:
        linear = self.simulated.linears[name]
        assert linear.qparams is not None
        linear.set_codes(codes_of(linear.exact.cpu().numpy(), linear.qparams, up))

    def _error(self, unit: Unit, last: bool, streams: _OfSize, pick: Pick) -> tuple[Tensor, int]:
        """The mean squared error of those of the images that are of one size, and over how many numbers it is."""
        chosen = pick[np.isin(pick, streams.images)]
        if not len(chosen):
            return torch.zeros((), device=self.device), 0
        place = torch.from_numpy(np.searchsorted(streams.images, chosen))
        condition, span = self.images.given(self.simulated, chosen)
        with torch.no_grad():
            target = self._take(streams.targets, place)
            if last:
                target = unit.run(self.full, target, *self.images.given(self.full, chosen))
        found = unit.run(self.simulated, self._take(streams.inputs, place), condition, span)
        return (found - target).square().mean(), found.numel()

    def _chunks(self, images: Pick) -> Iterator[slice]:
        size = self.settings.batch_size
        return (slice(first, first + size) for first in range(0, len(images), size))

    @torch.no_grad()
    def _advance(self, which: Literal["inputs", "targets"], model: SimulatedModel, unit: Unit) -> None:
        """Replace a unit's inputs by its outputs."""
        for streams in self.streams:
            stream: Tensor = getattr(streams, which)
            for part in self._chunks(streams.images):
                condition, span = self.images.given(model, streams.images[part])
                x = stream[:, part].flatten(0, 1).to(self.device)
                self._put(stream, part, unit.run(model, x, condition, span))

    @staticmethod
    def _put(stream: Tensor, part: slice, rows: Tensor) -> None:
        stream[:, part] = rows.detach().unflatten(0, (2, -1)).to(stream.device)

    def _take(self, stream: Tensor, place: Tensor) -> Tensor:
        """Rows of some images: int64 [B] -> [2B, L, C] on the device."""
        return stream[:, place.to(stream.device)].flatten(0, 1).to(self.device)


@contextlib.contextmanager
def _fast_products() -> Iterator[None]:
    """Meanwhile a GPU multiplies float32 matrices as TF32: what is learned needs no more, and quantizers stay exact."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def _streams(shape: tuple[int, ...], device: torch.device, scratch: Path, name: str) -> tuple[Tensor, Tensor]:
    """Two float32 tensors: in the GPU's memory if it has room, otherwise in files."""
    needed = 2 * 4 * math.prod(shape)
    if device.type == "cuda" and needed < STREAMS_SHARE * torch.cuda.mem_get_info(device)[0]:
        return torch.empty(shape, device=device), torch.empty(shape, device=device)
    files = [np.memmap(scratch / f"{name}.{end}", np.float32, "w+", shape=shape) for end in ("inputs", "targets")]
    return torch.from_numpy(files[0]), torch.from_numpy(files[1])


def _plain(shift_and_sum: ShiftAndSum | None) -> dict[str, Any] | None:
    """What the simulation depends on; both forms compute the same."""
    return None if shift_and_sum is None else {"theta": shift_and_sum.theta, "places": shift_and_sum.places}


def _fingerprint(
    simulated: SimulatedModel,
    images: TeacherForcedImages,
    settings: ReconstructionSettings,
    shift_and_sum: ShiftAndSum | None,
) -> dict[str, Any]:
    """What a work folder must agree in, as JSON reads it back."""
    weights = {name: weight_sha256(layer.exact.cpu().numpy()) for name, layer in simulated.linears.items()}
    document = {
        "recipe": simulated.recipe.as_dict(),
        "settings": asdict(settings) | {"cfg_scale": images.cfg_scale},
        "shift_and_sum": _plain(shift_and_sum),
        "images": images.digest(),
        "weights": weights,
    }
    found: dict[str, Any] = json.loads(json.dumps(document))
    return found
