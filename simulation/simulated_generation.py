"""Images of a simulated model, stage by stage: `models.var.reference.generate` for `SimulatedVAR`, on CPU or CUDA."""

from __future__ import annotations

import torch
from torch import Tensor

from nextscale.models.transformer_parts import KVCache
from nextscale.models.var.reference import Generation, run_stages
from nextscale.models.var.vqvae import VQVAE
from nextscale.simulation.simulated_var import SimulatedVAR


@torch.no_grad()
def generate(
    simulated: SimulatedVAR,
    vqvae: VQVAE,
    labels: Tensor,
    uniforms: Tensor,
    forced_tokens: Tensor | None = None,
    *,
    cfg_scale: float = 1.5,
    top_k: int = 0,
    top_p: float = 0.0,
) -> Generation:
    """Generate with a K/V cache and guidance; arguments and result as in `models.var.reference.generate`.

    All tensors are on the simulation's device; uniforms come from `nextscale.runtime._uniforms`.
    """
    condition = simulated.condition(labels)
    caches = [KVCache() for _ in range(simulated.config.depth)]

    def guided_logits(inputs: Tensor | None, si: int) -> Tensor:
        return simulated.stage_logits(condition, inputs, si, cfg_scale, caches)

    return run_stages(
        guided_logits, simulated.config, vqvae, len(labels), uniforms, forced_tokens, top_k=top_k, top_p=top_p
    )
