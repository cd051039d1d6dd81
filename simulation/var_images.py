"""VAR's images, fed to its twin (`TeacherForcedImages`)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from nextscale.graph_passes.expand_attentive_tokens import ShiftAndSum
from nextscale.graph_passes.layer_facts import StageFacts
from nextscale.graph_passes.qparams import Range
from nextscale.graph_passes.recipe import Recipe
from nextscale.models.equalization import NOT_EQUALIZED, Equalization
from nextscale.models.var.equalization import choose_equalization
from nextscale.models.var.layers import facts_of
from nextscale.models.var.multi_scale_quantizer import MultiScaleQuantizer
from nextscale.models.var.transformer import VAR
from nextscale.runtime._request import DEFAULT_CFG_SCALE
from nextscale.simulation.rounding import weight_sha256
from nextscale.simulation.simulated_attention import Span
from nextscale.simulation.simulated_var import Condition, SimulatedVAR
from nextscale.simulation.teacher_forced_images import Pick


@dataclass(frozen=True)
class VARImages:
    """See `TeacherForcedImages`.

    Attributes:
        var, quantizer: full precision, on one device.
        labels, token_maps: int64 [N] and [N, L].
        cfg_scale: guidance is cfg_scale * si / (S - 1) at stage si.
    """

    var: VAR
    quantizer: MultiScaleQuantizer
    labels: NDArray[np.int64]
    token_maps: NDArray[np.int64]
    cfg_scale: float = DEFAULT_CFG_SCALE

    @property
    def device(self) -> torch.device:
        return self.var.class_emb.weight.device

    @property
    def facts(self) -> StageFacts:
        return facts_of(self.var)

    @property
    def sizes(self) -> NDArray[np.int64]:
        return np.zeros(len(self.labels), np.int64)

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, images: slice) -> VARImages:
        return replace(self, labels=self.labels[images], token_maps=self.token_maps[images])

    def digest(self) -> str:
        return weight_sha256(np.concatenate((self.labels[:, None], self.token_maps), axis=1).astype(np.float32))

    def twin(
        self,
        recipe: Recipe,
        *,
        ranges: Mapping[str, Range] | None = None,
        equalization: Equalization = NOT_EQUALIZED,
        shift_and_sum: ShiftAndSum | None = None,
    ) -> SimulatedVAR:
        return SimulatedVAR(self.var, recipe, ranges=ranges, equalization=equalization, shift_and_sum=shift_and_sum)

    def choose_equalization(self, magnitudes: Mapping[str, Tensor], alpha: float) -> Equalization:
        return choose_equalization(self.var, magnitudes, alpha)

    def given(self, twin: SimulatedVAR, pick: Pick) -> tuple[Condition, Span]:
        return twin.condition(self._labels(pick)), twin.span()

    def embed(self, twin: SimulatedVAR, pick: Pick, condition: Condition, span: Span) -> Tensor:
        return twin.embed(condition, self._inputs(pick), span)

    def reference(self, pick: Pick) -> Tensor:
        return guided_logits(self.var, self._labels(pick), self._inputs(pick), self.cfg_scale)

    def compare(self, expected: Tensor, found: Tensor) -> tuple[Tensor, Tensor]:
        """Equal is a token whose likeliest entry is the same."""
        same = (expected.argmax(-1) == found.argmax(-1)).double()
        log_p, log_q = expected.log_softmax(-1), found.log_softmax(-1)
        return (log_p.exp() * (log_p - log_q)).sum(-1, dtype=torch.float64), same

    def stage_tokens(self, image: int) -> tuple[int, ...]:
        return tuple(pn * pn for pn in self.quantizer.patch_nums)

    def _labels(self, pick: Pick) -> Tensor:
        return torch.from_numpy(self.labels[pick]).to(self.device)

    def _inputs(self, pick: Pick) -> Tensor:
        return teacher_forced_inputs(self.quantizer, torch.from_numpy(self.token_maps[pick]).to(self.device))


def teacher_forced_inputs(quantizer: MultiScaleQuantizer, token_maps: Tensor) -> Tensor:
    """The transformer's inputs for given token maps: int64 [B, L] -> float32 [B, L - patch_nums[0]**2, Cvae]."""
    sizes = [pn * pn for pn in quantizer.patch_nums]
    return quantizer.accumulate(token_maps.split(sizes, dim=1))[1]


def guided_logits(var: VAR, labels: Tensor, inputs: Tensor, cfg_scale: float) -> Tensor:
    """Teacher-forced guided logits of full precision: labels int64 [B], inputs [B, ., Cvae] -> [B, L, V]."""
    null = torch.full_like(labels, var.config.num_classes)
    cond, uncond = var(torch.cat((labels, null)), inputs.repeat(2, 1, 1)).chunk(2)
    t = (cfg_scale * var.lvl_1L[0] / (var.config.num_stages - 1))[:, None]
    guided: Tensor = (1 + t) * cond - t * uncond
    return guided
