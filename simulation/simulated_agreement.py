"""How far a simulated model's predictions are from full precision, token for token (`evaluate.teacher_forced`)."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch

from nextscale.evaluate.teacher_forced import Agreement, summarize
from nextscale.simulation.simulated_model import SimulatedModel
from nextscale.simulation.teacher_forced_images import TeacherForcedImages, batches, teacher_forced


@torch.no_grad()
def simulated_agreement(
    images: TeacherForcedImages,
    simulated: SimulatedModel,
    *,
    batch_size: int = 4,
    on_images: Callable[[int], object] = lambda done: None,
) -> Agreement:
    """KL(full precision || simulated) of the guided distributions, and top-1 agreement, on given token maps.

    Args:
        images: N, with their full-precision model, on the simulation's device.
        simulated: the quantized model.
        batch_size: images at a time.
        on_images: called with the number of images finished.
    """
    done, num_stages = 0, max(len(images.stage_tokens(image)) for image in range(len(images)))
    divergence, agreeing, sizes = (np.zeros((len(images), num_stages)) for _ in range(3))
    for pick in batches(images, batch_size):
        kl, same = images.compare(images.reference(pick), teacher_forced(images, simulated, pick))
        tokens = images.stage_tokens(int(pick[0]))
        stages = slice(len(tokens))
        for sums, found in ((divergence, kl), (agreeing, same)):
            by_stage = torch.stack([stage.sum(1) for stage in found.split(tokens, dim=1)], dim=1)
            sums[pick, stages] = by_stage.cpu().numpy()
        sizes[pick, stages] = tokens
        done += len(pick)
        on_images(done)
    return summarize(divergence, agreeing, sizes)
