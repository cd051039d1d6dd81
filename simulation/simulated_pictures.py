"""Pictures of a recipe's simulation, with a float decoder: on a GPU thousands take a minute."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict

import numpy as np
import torch
from numpy.typing import NDArray

from nextscale.calib_data.token_maps import TokenMaps
from nextscale.evaluate.generated_statistics import Sampling
from nextscale.evaluate.teacher_forced import evaluation_labels
from nextscale.graph_passes.expand_attentive_tokens import ShiftAndSum
from nextscale.graph_passes.recipe import Recipe
from nextscale.models.equalization import Equalization
from nextscale.models.var.sources import VARSource
from nextscale.runtime._request import resolve_top_k
from nextscale.runtime._uniforms import uniforms
from nextscale.simulation.rounding import Rounding
from nextscale.simulation.simulated_generation import generate
from nextscale.simulation.simulated_ranges import calibrated
from nextscale.simulation.simulated_var import SimulatedVAR
from nextscale.simulation.teacher_forced_images import FULL_PRECISION
from nextscale.simulation.var_images import VARImages

# Images whose ranges are observed at a time.
OBSERVED = 16


class SimulatedPictures:
    """A model whose recipes draw, on the device that it is on.

    Attributes:
        full_precision: the simulation that quantizes nothing.
    """

    def __init__(self, source: VARSource, batch_size: int) -> None:
        self.source, self.batch_size = source, batch_size
        self.model, self.device = source.model_info(), source.var.pos_start.device
        self.full_precision = SimulatedVAR(source.var, FULL_PRECISION)

    def simulate(
        self, recipe: Recipe, maps: TokenMaps, rounding: Rounding | None, shift_and_sum: ShiftAndSum | None
    ) -> SimulatedVAR:
        """The recipe's simulation, calibrated as its graph is.

        Args:
            recipe: of integers.
            maps: that ranges are observed on.
            rounding: of recipes that learn it.
            shift_and_sum: of recipes that have it.
        """
        equalization = None
        if rounding is not None:  # learned with its own
            factors = {name: torch.from_numpy(found).to(self.device) for name, found in rounding.factors.items()}
            equalization = Equalization(factors)
        simulated = calibrated(
            self.images(maps),
            recipe,
            equalization=equalization,
            shift_and_sum=shift_and_sum,
            batch_size=min(self.batch_size, OBSERVED),
        )
        assert isinstance(simulated, SimulatedVAR)
        for name in () if rounding is None else rounding.layers:
            assert rounding is not None
            linear = simulated.linears[name]
            linear.set_codes(rounding.codes(name, linear.exact.cpu().numpy()))
        return simulated

    def images(self, maps: TokenMaps) -> VARImages:
        """Token maps as what is fed."""
        return VARImages(self.source.var, self.source.vqvae.quantize, maps.class_labels, maps.token_maps)

    def drawn(
        self, simulated: SimulatedVAR, images: range, sampling: Sampling
    ) -> Iterator[tuple[NDArray[np.int64], NDArray[np.uint8]]]:
        """Batches of token maps [B, L] and pictures [B, H, W, 3] of some images of a seed, spread over the classes."""
        labels = evaluation_labels(self.model.num_classes, images.stop, sampling.seed)
        for first in range(images.start, images.stop, self.batch_size):
            part = range(first, min(first + self.batch_size, images.stop))
            found = generate(
                simulated,
                self.source.vqvae,
                torch.from_numpy(labels[part.start : part.stop]).to(self.device),
                torch.from_numpy(uniforms(sampling.seed, part, self.model.num_tokens)).to(self.device),
                cfg_scale=sampling.cfg_scale,
                top_k=resolve_top_k(sampling.top_k, self.model),
                top_p=sampling.top_p,
            )
            yield found.token_maps.cpu().numpy(), found.images.cpu().numpy()

    def token_maps(self, images: int, sampling: Sampling) -> TokenMaps:
        """What full precision samples."""
        labels = evaluation_labels(self.model.num_classes, images, sampling.seed)
        drawn = self.drawn(self.full_precision, range(images), sampling)
        return TokenMaps(labels, np.concatenate([maps for maps, _ in drawn]), asdict(sampling))
