"""Infinity's images, fed to its twin (`TeacherForcedImages`)."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from nextscale.calib_data.subjects import Subjects, TokenRows
from nextscale.graph_passes.expand_attentive_tokens import ShiftAndSum
from nextscale.graph_passes.layer_facts import StageFacts
from nextscale.graph_passes.qparams import Range
from nextscale.graph_passes.recipe import Recipe
from nextscale.models.equalization import NOT_EQUALIZED, Equalization
from nextscale.models.infinity.equalization import choose_equalization
from nextscale.models.infinity.layers import linear_shapes, stage_facts
from nextscale.models.infinity.multi_scale_bits import accumulate
from nextscale.models.infinity.schedules import Size
from nextscale.models.infinity.transformer import Infinity
from nextscale.runtime._infinity_request import DEFAULT_CFG_SCALE
from nextscale.simulation.simulated_infinity import SimulatedInfinity, SizeSpan, TextCondition
from nextscale.simulation.teacher_forced_images import Pick


@dataclass(frozen=True)
class InfinityImages:
    """See `TeacherForcedImages`.

    Attributes:
        infinity: full precision, on one device.
        model_sizes: of its stage graph.
        subjects: texts and sizes of the images.
        token_maps: int64 [L, D] of each.
        cfg_scale: guidance at all stages.
    """

    infinity: Infinity
    model_sizes: tuple[Size, ...]
    subjects: Subjects
    token_maps: TokenRows
    cfg_scale: float = DEFAULT_CFG_SCALE

    @property
    def device(self) -> torch.device:
        return self.infinity.pos_start.device

    @property
    def facts(self) -> StageFacts:
        return stage_facts(linear_shapes(self.infinity.config), self.model_sizes)

    @property
    def sizes(self) -> NDArray[np.int64]:
        return self.subjects.sizes

    def __len__(self) -> int:
        return len(self.subjects)

    def __getitem__(self, images: slice) -> InfinityImages:
        return replace(self, subjects=self.subjects[images], token_maps=self.token_maps[images])

    def digest(self) -> str:
        digest = hashlib.sha256(self.subjects.digest().encode())
        for bits in self.token_maps:
            digest.update(bits.tobytes())
        return digest.hexdigest()

    def twin(
        self,
        recipe: Recipe,
        *,
        ranges: Mapping[str, Range] | None = None,
        equalization: Equalization = NOT_EQUALIZED,
        shift_and_sum: ShiftAndSum | None = None,
    ) -> SimulatedInfinity:
        return SimulatedInfinity(
            self.infinity,
            self.model_sizes,
            recipe,
            ranges=ranges,
            equalization=equalization,
            shift_and_sum=shift_and_sum,
        )

    def choose_equalization(self, magnitudes: Mapping[str, Tensor], alpha: float) -> Equalization:
        return choose_equalization(self.infinity, self.facts, magnitudes, alpha)

    def given(self, twin: SimulatedInfinity, pick: Pick) -> tuple[TextCondition, SizeSpan]:
        return twin.condition(*self._rows(pick)), twin.span(self._size(pick))

    def embed(self, twin: SimulatedInfinity, pick: Pick, condition: TextCondition, span: SizeSpan) -> Tensor:
        return twin.embed(condition, self._inputs(pick), span)

    def reference(self, pick: Pick) -> Tensor:
        inputs = self._inputs(pick).repeat(2, 1, 1)
        cond, uncond = self.infinity(*self._rows(pick), inputs, self._size(pick)).chunk(2)
        guided: Tensor = self.cfg_scale * cond + (1 - self.cfg_scale) * uncond
        return guided

    def compare(self, expected: Tensor, found: Tensor) -> tuple[Tensor, Tensor]:
        """A token's KL is the sum of its bits'; it is equal as far as their likelier values are."""
        p, q = expected.double(), found.double()
        kl = torch.zeros_like(p)
        for sign in (-1, 1):
            log_p, log_q = F.logsigmoid(sign * p), F.logsigmoid(sign * q)
            kl += log_p.exp() * (log_p - log_q)
        return kl.sum(-1), ((expected > 0) == (found > 0)).double().mean(-1)

    def stage_tokens(self, image: int) -> tuple[int, ...]:
        return self.model_sizes[int(self.sizes[image])].stage_tokens

    @property
    def _texts(self) -> tuple[NDArray[np.float32], ...]:
        assert self.subjects.texts is not None
        return self.subjects.texts

    def _size(self, pick: Pick) -> Size:
        return self.model_sizes[int(self.sizes[pick[0]])]

    def _rows(self, pick: Pick) -> tuple[Tensor, Tensor]:
        """Features [2B, Lt, Ct] and which are tokens, bool [2B, Lt], of both rows: no text is as long as the text.

        A shorter text goes on with its last token, which is not visible there and widens no range that is found at run
        time: an image is quantized as if it were alone.
        """
        texts = [torch.from_numpy(self._texts[image]).to(self.device) for image in pick]
        texts += [self.infinity.cfg_uncond.detach()[: len(text)] for text in texts]
        place = torch.arange(max(map(len, texts)), device=self.device)
        features = torch.stack([text[place.clamp(max=len(text) - 1)] for text in texts])
        return features, torch.stack([place < len(text) for text in texts])

    def _inputs(self, pick: Pick) -> Tensor:
        """The transformer's inputs of all stages but the first, float32 [B, L - 1, D]."""
        size = self._size(pick)
        bits = torch.from_numpy(np.stack([self.token_maps[image] for image in pick])).to(self.device)
        return accumulate(bits.split(size.stage_tokens, dim=1), size)[1]
