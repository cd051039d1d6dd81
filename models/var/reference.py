"""Next-scale generation in torch: what the ONNX graphs must reproduce, written to be read (VAR, Sec. 3.2).

Symbols: B images, L tokens of all stages, l tokens of a stage, V codebook entries, Cvae latent channels.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from nextscale.models.transformer_parts import KVCache
from nextscale.models.var.transformer import VAR, VARConfig
from nextscale.models.var.vqvae import VQVAE


@dataclass(frozen=True)
class Generation:
    """What `generate` made.

    Attributes:
        token_maps: int64 [B, L].
        guided_logits: a float32 [B, l, V] for each stage, before top_k and top_p.
        f_hat: float32 [B, Cvae, h, w].
        images: uint8 [B, H, W, 3].
    """

    token_maps: Tensor
    guided_logits: list[Tensor]
    f_hat: Tensor
    images: Tensor


def kept_entries(logits: Tensor, top_k: int = 0, top_p: float = 0.0) -> Tensor:
    """Which entries may be sampled: float [N, V] -> bool [N, V].

    top_k keeps the entries at least as large as the k-th largest; of these, top_p keeps each entry for which the
    probability of all strictly larger ones is below top_p. 0 turns either off.
    """
    vocab_size = logits.shape[-1]
    if not 0 <= top_k <= vocab_size:
        raise ValueError(f"top_k must be in [0, {vocab_size}], found {top_k}")
    if not 0 <= top_p <= 1:
        raise ValueError(f"top_p must be in [0, 1], found {top_p}")
    keep = torch.ones_like(logits, dtype=torch.bool)
    if top_k:
        keep &= logits >= logits.topk(top_k).values[:, -1:]
    if top_p:
        descending, order = logits.double().masked_fill(~keep, -torch.inf).sort(dim=-1, descending=True)
        mass = torch.nn.functional.pad(descending.softmax(-1).cumsum(-1), (1, 0))
        # The larger entries of each are those before the first of its equals.
        first_equal = torch.searchsorted(-descending, -descending)
        keep &= torch.empty_like(keep).scatter_(1, order, mass.gather(1, first_equal) < top_p)
    return keep


def sample(logits: Tensor, uniforms: Tensor, top_k: int = 0, top_p: float = 0.0) -> Tensor:
    """One token a row: the first kept entry, in codebook order, whose cumulative probability exceeds u x total.

    Args:
        logits: float [N, V].
        uniforms: float [N], in [0, 1).
        top_k, top_p: as in `kept_entries`.
    Returns:
        int64 [N].
    """
    keep = kept_entries(logits, top_k, top_p)
    cumulative = logits.double().masked_fill(~keep, -torch.inf).softmax(-1).cumsum(-1)
    exceeds = cumulative > uniforms.double()[:, None] * cumulative[:, -1:]
    # Rounding may leave none; then it is the last kept one.
    exceeds |= keep & (keep.cumsum(-1) == keep.sum(-1, keepdim=True))
    return exceeds.int().argmax(-1)


@torch.no_grad()
def generate(
    var: VAR,
    vqvae: VQVAE,
    labels: Tensor,
    uniforms: Tensor,
    forced_tokens: Tensor | None = None,
    *,
    cfg_scale: float = 1.5,
    top_k: int = 0,
    top_p: float = 0.0,
) -> Generation:
    """Generate stage after stage, with a K/V cache and classifier-free guidance.

    Args:
        var, vqvae: the two models; their patch_nums are equal.
        labels: int64 [B], in [0, num_classes).
        uniforms: float32 [B, L], in [0, 1): one per token, stages in order, row-major.
        forced_tokens: int64 [B, L]; -1 is sampled, any other value is taken as it is. None samples all.
        cfg_scale: guidance is cfg_scale * si / (S - 1) at stage si.
        top_k, top_p: as in `kept_entries`.
    """
    batch, null = len(labels), torch.full_like(labels, var.config.num_classes)
    embedding, cond = var.condition(torch.cat((labels, null)))
    caches = [KVCache() for _ in var.blocks]

    def guided_logits(inputs: Tensor | None, si: int) -> Tensor:
        both = None if inputs is None else inputs.repeat(2, 1, 1)
        logits = var.stage_logits(var.embed(embedding, both, si), embedding, cond, caches)
        t = cfg_scale * si / (var.config.num_stages - 1)
        return (1 + t) * logits[:batch] - t * logits[batch:]

    return run_stages(guided_logits, var.config, vqvae, batch, uniforms, forced_tokens, top_k=top_k, top_p=top_p)


@torch.no_grad()
def run_stages(
    guided_logits: Callable[[Tensor | None, int], Tensor],
    config: VARConfig,
    vqvae: VQVAE,
    batch: int,
    uniforms: Tensor,
    forced_tokens: Tensor | None,
    *,
    top_k: int,
    top_p: float,
) -> Generation:
    """The next-scale loop: sample a stage from its logits, accumulate it, and make the next one's inputs.

    Args:
        guided_logits: a stage's inputs float32 [B, l, Cvae] (None at stage 0) and its index to logits [B, l, V]; called
            once a stage, in order.
        config: of the transformer.
        batch: B.
        vqvae, uniforms, forced_tokens, top_k, top_p: as in `generate`.
    Raises:
        ValueError: uniforms or forced_tokens have another shape.
    """
    for name, tensor in (("uniforms", uniforms), ("forced_tokens", forced_tokens)):
        if tensor is not None and tensor.shape != (batch, config.num_tokens):
            raise ValueError(f"{name} must be [{batch}, {config.num_tokens}], found {list(tensor.shape)}")
    side = config.patch_nums[-1]
    f_hat = uniforms.new_zeros(batch, config.z_channels, side, side)
    token_maps, logits = [], []
    for si, (begin, pn) in enumerate(zip(config.stage_begins, config.patch_nums, strict=True)):
        stage = slice(begin, begin + pn * pn)
        guided = guided_logits(vqvae.quantize.next_input(f_hat, si) if si else None, si)
        token_map = sample(guided.flatten(0, 1), uniforms[:, stage].flatten(), top_k, top_p).view(batch, -1)
        if forced_tokens is not None:
            forced = forced_tokens[:, stage]
            token_map = torch.where(forced < 0, token_map, forced)
        f_hat = f_hat + vqvae.quantize.contribution(token_map, si)
        token_maps.append(token_map)
        logits.append(guided)
    return Generation(torch.cat(token_maps, dim=1), logits, f_hat, to_pixels(vqvae.decode(f_hat)))


def to_pixels(images: Tensor) -> Tensor:
    """Images float [B, 3, H, W] in [-1, 1] to uint8 [B, H, W, 3]."""
    return ((images + 1) / 2).clamp(0, 1).mul(255).round().to(torch.uint8).permute(0, 2, 3, 1)
