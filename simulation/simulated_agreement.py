"""How far a simulated model's predictions are from full precision, token for token (`evaluate.teacher_forced`)."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from nextscale.evaluate.teacher_forced import Agreement, summarize
from nextscale.models.var.multi_scale_quantizer import MultiScaleQuantizer
from nextscale.models.var.transformer import VAR
from nextscale.runtime._request import DEFAULT_CFG_SCALE
from nextscale.simulation.simulated_ranges import batches, teacher_forced_inputs
from nextscale.simulation.simulated_var import SimulatedVAR


@torch.no_grad()
def simulated_agreement(
    reference: VAR,
    quantizer: MultiScaleQuantizer,
    simulated: SimulatedVAR,
    labels: NDArray[np.int64],
    token_maps: NDArray[np.int64],
    *,
    cfg_scale: float = DEFAULT_CFG_SCALE,
    batch_size: int = 4,
    on_images: Callable[[int], object] = lambda done: None,
) -> Agreement:
    """KL(reference || simulated) of the guided distributions, and top-1 agreement, on given token maps.

    Args:
        reference, quantizer: full precision, on the simulation's device.
        simulated: the quantized model.
        labels, token_maps: int64 [N] and [N, L].
        cfg_scale: guidance of both.
        batch_size: images at a time.
        on_images: called with the number of images finished.
    """
    config = reference.config
    sizes = [pn * pn for pn in config.patch_nums]
    divergence: list[Tensor] = []  # sums over a stage's tokens, [B, S] a batch
    agreeing: list[Tensor] = []
    for part_labels, maps in batches(labels, token_maps, batch_size, simulated.device):
        inputs = teacher_forced_inputs(quantizer, maps)
        expected = guided_logits(reference, part_labels, inputs, cfg_scale)
        found = simulated(part_labels, inputs, cfg_scale)
        same = (expected.argmax(-1) == found.argmax(-1)).double()
        log_p, log_q = expected.log_softmax(-1), found.log_softmax(-1)
        kl = (log_p.exp() * (log_p - log_q)).sum(-1, dtype=torch.float64)
        for sums, tokens in ((divergence, kl), (agreeing, same)):
            sums.append(torch.stack([stage.sum(1) for stage in tokens.split(sizes, dim=1)], dim=1))
        on_images(sum(len(part) for part in divergence))
    return summarize(
        torch.cat(divergence).cpu().numpy(), torch.cat(agreeing).cpu().numpy(), np.array(sizes, np.float64)
    )


def guided_logits(var: VAR, labels: Tensor, inputs: Tensor, cfg_scale: float) -> Tensor:
    """Teacher-forced guided logits of full precision: labels int64 [B], inputs [B, ., Cvae] -> [B, L, V]."""
    null = torch.full_like(labels, var.config.num_classes)
    cond, uncond = var(torch.cat((labels, null)), inputs.repeat(2, 1, 1)).chunk(2)
    t = (cfg_scale * var.lvl_1L[0] / (var.config.num_stages - 1))[:, None]
    guided: Tensor = (1 + t) * cond - t * uncond
    return guided
