"""Images of a simulated model, stage by stage: `export.reference.generate` for `SimulatedVAR`, on CPU or CUDA."""

from __future__ import annotations

import torch
from torch import Tensor

from nextscale.models.var.reference import Generation, sample, to_pixels
from nextscale.models.var.transformer import KVCache
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
    """Generate with a K/V cache and guidance; arguments and result as in `export.reference.generate`.

    All tensors are on the simulation's device; uniforms come from `nextscale.runtime._uniforms`.
    """
    config, batch = simulated.config, len(labels)
    for name, tensor in (("uniforms", uniforms), ("forced_tokens", forced_tokens)):
        if tensor is not None and tensor.shape != (batch, config.num_tokens):
            raise ValueError(f"{name} must be [{batch}, {config.num_tokens}], found {list(tensor.shape)}")

    condition = simulated.condition(labels)
    caches = [KVCache() for _ in range(config.depth)]
    side = config.patch_nums[-1]
    f_hat = uniforms.new_zeros(batch, config.z_channels, side, side)
    token_maps, guided_logits = [], []
    for si, (begin, pn) in enumerate(zip(config.stage_begins, config.patch_nums, strict=True)):
        stage = slice(begin, begin + pn * pn)
        inputs = vqvae.quantize.next_input(f_hat, si) if si else None
        guided = simulated.stage_logits(condition, inputs, si, cfg_scale, caches)
        token_map = sample(guided.flatten(0, 1), uniforms[:, stage].flatten(), top_k, top_p).view(batch, -1)
        if forced_tokens is not None:
            forced = forced_tokens[:, stage]
            token_map = torch.where(forced < 0, token_map, forced)
        f_hat = f_hat + vqvae.quantize.contribution(token_map, si)
        token_maps.append(token_map)
        guided_logits.append(guided)
    return Generation(torch.cat(token_maps, dim=1), guided_logits, f_hat, to_pixels(vqvae.decode(f_hat)))
