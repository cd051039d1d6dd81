"""Pictures from the torch models, for sample sheets during training; the product's own generation is in `runtime`."""

from __future__ import annotations

import torch
from torch import Tensor

from nextscale.export.var import VAR, KVCache
from nextscale.export.vqvae import VQVAE


def sample_tokens(logits: Tensor, *, top_k: int, top_p: float, generator: torch.Generator) -> Tensor:
    """Tokens [B, l] from guided logits [B, l, V]: the top_k largest, of these the nucleus of mass top_p (0 is off)."""
    if top_k:
        logits = logits.masked_fill(logits < logits.topk(top_k).values[..., -1:], -torch.inf)
    if top_p:
        ordered, order = logits.sort(dim=-1, descending=True)
        probabilities = ordered.softmax(-1)
        drop = probabilities.cumsum(-1) - probabilities >= top_p
        logits = logits.scatter(-1, order, ordered.masked_fill(drop, -torch.inf))
    probabilities = logits.softmax(-1).flatten(0, -2)
    return torch.multinomial(probabilities, 1, generator=generator).view(logits.shape[:-1])


@torch.no_grad()
def generate(
    vqvae: VQVAE, var: VAR, labels: Tensor, *, cfg_scale: float, top_k: int, top_p: float, seed: int
) -> Tensor:
    """Images float32 [B, 3, H, W] in [-1, 1] of the classes `labels` int64 [B]."""
    quantizer, num_stages, count = vqvae.quantize, var.config.num_stages, len(labels)
    generator = torch.Generator(labels.device).manual_seed(seed)
    rows = torch.cat((labels, torch.full_like(labels, var.config.num_classes)))
    embedding, cond = var.condition(rows)
    caches = [KVCache() for _ in var.blocks]
    side = var.config.patch_nums[-1]
    f_hat = torch.zeros(count, var.config.z_channels, side, side, device=labels.device)
    for si in range(num_stages):
        inputs = quantizer.next_input(f_hat, si).repeat(2, 1, 1) if si else None
        logits = var.stage_logits(var.embed(embedding, inputs, si), embedding, cond, caches)
        t = cfg_scale * si / (num_stages - 1)
        guided = (1 + t) * logits[:count] - t * logits[count:]
        tokens = sample_tokens(guided, top_k=top_k, top_p=top_p, generator=generator)
        f_hat = f_hat + quantizer.contribution(tokens, si)
    return vqvae.decode(f_hat)
