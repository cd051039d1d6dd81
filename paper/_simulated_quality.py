"""What Tables 1 and 4 measure, of recipes that are simulated in torch instead of built: minutes on a GPU."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from nextscale.calib_data.token_maps import TokenMaps
from nextscale.compiler.options import Progress
from nextscale.evaluate._kept_figures import digest_of, plain_name
from nextscale.evaluate.generated_statistics import Sampling, continued_statistics
from nextscale.evaluate.image_comparison import MetricsRow, floor_seeds
from nextscale.evaluate.image_metrics import image_metrics
from nextscale.evaluate.image_statistics import ImageNetwork, ImageStatistics
from nextscale.evaluate.reference_statistics import Reference
from nextscale.graph_passes.expand_attentive_tokens import ShiftAndSum
from nextscale.graph_passes.recipe import Recipe
from nextscale.models.var.sources import VARSource
from nextscale.paper._quality import COMPARED_SEED, Asked, Nearness, OnImages, Quality, read_nearness, write_nearness
from nextscale.paper._rows import NOISE_FLOOR
from nextscale.paper.recipe_bundles import FULL_PRECISION, RecipeBundles
from nextscale.paper.store import reading_entry
from nextscale.simulation._device import Device, on_device
from nextscale.simulation.rounding import Rounding
from nextscale.simulation.simulated_agreement import simulated_agreement
from nextscale.simulation.simulated_pictures import SimulatedPictures
from nextscale.simulation.simulated_var import SimulatedVAR

# Token maps that are compared at a time.
COMPARED_AT_ONCE = 16


def simulated_note(device: Device) -> str:
    """What a reader must know of the figures."""
    where = torch.cuda.get_device_name() if device == "cuda" else "the CPU"
    return (
        f"simulated in torch {torch.__version__} on {where}, with a decoder in full precision: not pictures of "
        "bundles, whose decoder is of integers, and whose sums are in another order"
    )


def simulate_quality(
    recipes: Sequence[Recipe],
    store: RecipeBundles,
    source: VARSource,
    network: ImageNetwork,
    asked: Asked,
    work: Path,
    device: Device,
    *,
    reference: Reference | None,
    on_images: Progress,
) -> list[Quality]:
    """As `measure_quality`, of simulations with a float decoder.

    What each is made of is made and read before any draws, so that what is damaged is refused early, and read again
    when it is its turn: all of it at once would take much memory.

    Args:
        recipes: full precision first; the store misses nothing for them.
        store: has token maps to calibrate with, theta and rounding.
        source: the model, on the CPU.
        network, asked, work, reference, on_images: as there.
        device: where to draw.
    """
    original, *others = recipes
    model, expansions = source.model_info(), list[ShiftAndSum | None]()

    def read(recipe: Recipe) -> tuple[TokenMaps, Rounding | None]:
        maps = store.maps(recipe, on_images)
        with reading_entry(maps):
            token_maps = TokenMaps.load(maps, model)
        return token_maps, store.rounding(recipe, on_images)

    for recipe in others:
        read(recipe)
        expansions.append(store.expansion(recipe, on_images))
    with on_device(device, source.var, source.vqvae), torch.no_grad():
        pictures = SimulatedPictures(source, asked.batch_size)
        simulated = _Simulated(pictures, network, asked, work, on_images)
        full = _Row(FULL_PRECISION, store.digest(original), lambda: pictures.full_precision)
        of_full = simulated.statistics(full, asked.seeds)
        others_seeds = floor_seeds(asked.seeds)
        floor = simulated.statistics(full, others_seeds)
        found = [
            Quality(FULL_PRECISION, _metrics(full, "full precision", asked.seeds, of_full, reference), None, None),
            Quality(NOISE_FLOOR, _metrics(full, NOISE_FLOOR, others_seeds, floor, reference, of_full), None, None),
        ]

        def simulate(recipe: Recipe, expansion: ShiftAndSum | None) -> SimulatedVAR:
            return pictures.simulate(recipe, *read(recipe), expansion)

        for recipe, expansion in zip(others, expansions, strict=True):
            row = _Row(recipe.name, store.digest(recipe), _once(partial(simulate, recipe, expansion)))
            nearness = simulated.nearness(row) if asked.compared else None
            statistics = simulated.statistics(row, asked.seeds)
            metrics = _metrics(row, "bundle", asked.seeds, statistics, reference, of_full)
            found.append(Quality(row.name, metrics, nearness, None))
    return found


@dataclass(frozen=True)
class _Row:
    """A recipe to simulate.

    Attributes:
        name: the recipe's.
        digest: of all that decides its simulation.
        simulate: makes it.
    """

    name: str
    digest: str
    simulate: Callable[[], SimulatedVAR]


def _once(make: Callable[[], SimulatedVAR]) -> Callable[[], SimulatedVAR]:
    """Makes it when it is first asked for: where all figures are there, it never is."""
    made = list[SimulatedVAR]()

    def known() -> SimulatedVAR:
        if not made:
            made.append(make())
        return made[0]

    return known


@dataclass(frozen=True)
class _Simulated:
    """Figures of rows, kept in a folder and gone on with."""

    pictures: SimulatedPictures
    network: ImageNetwork
    asked: Asked
    work: Path
    on_images: OnImages

    def statistics(self, row: _Row, seeds: Sequence[int]) -> list[ImageStatistics]:
        """Of the pictures of each seed."""
        return [self._of_seed(row, seed) for seed in seeds]

    def nearness(self, row: _Row) -> Nearness:
        """To full precision, fed what that samples."""
        settings = {"compared": self.asked.compared, "seed": COMPARED_SEED, "cfg_scale": self.asked.sampling.cfg_scale}
        path = self._path(row, settings, "agreement.json")
        if not path.exists():
            count, images = self.asked.compared, self.pictures.images(self._compared)
            compared = simulated_agreement(
                replace(images, cfg_scale=self.asked.sampling.cfg_scale),
                row.simulate(),
                batch_size=min(self.asked.batch_size, COMPARED_AT_ONCE),
                on_images=lambda done: self.on_images(f"{row.name}: comparing tokens", done, count),
            )
            write_nearness(path, compared)
        return read_nearness(path)

    @cached_property
    def _compared(self) -> TokenMaps:
        sampling = Sampling(seed=COMPARED_SEED, cfg_scale=self.asked.sampling.cfg_scale)  # filters as of bundles
        return self.pictures.token_maps(self.asked.compared, sampling)

    def _of_seed(self, row: _Row, seed: int) -> ImageStatistics:
        sampling, total = replace(self.asked.sampling, seed=seed), self.asked.images
        settings: dict[str, Any] = {"network": self.network.name, **asdict(sampling)}
        path = self._path(row, settings, f"seed{seed}.npz")
        told = f"{row.name}: drawing, seed {seed}"

        def draw(part: range) -> NDArray[np.uint8]:
            return np.concatenate([drawn for _, drawn in self.pictures.drawn(row.simulate(), part, sampling)])

        return continued_statistics(
            path,
            settings,
            draw,
            self.network,
            total,
            self.asked.batch_size,
            lambda done: self.on_images(told, done, total),
        )

    def _path(self, row: _Row, settings: dict[str, Any], form: str) -> Path:
        circumstances = {"device": self.pictures.device.type, "torch": torch.__version__}
        digest = digest_of({"simulated": row.digest, "images": self.asked.images, **circumstances, **settings})
        return self.work / f"simulated-{plain_name(row.name)}-{digest}-{form}"


def _metrics(
    row: _Row,
    role: str,
    seeds: tuple[int, ...],
    found: Sequence[ImageStatistics],
    reference: Reference | None,
    originals: Sequence[ImageStatistics] | None = None,
) -> MetricsRow:
    """Seed by seed; to full precision's pictures where these are given."""
    gaussian = reference.gaussian if reference else None
    metrics = [
        image_metrics(one, gaussian, originals[number] if originals else None) for number, one in enumerate(found)
    ]
    return MetricsRow(Path(row.name), role, seeds, tuple(metrics))
