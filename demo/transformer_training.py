"""What the training of both transformers shares: attention of all stages at once, and small first weights."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def attend_by_stage(q: Tensor, k: Tensor, v: Tensor, bounds: Sequence[int], mask: Tensor, scale: float) -> Tensor:
    """Attention of all stages; only early ones need a mask, the late see everything before them.

    Args:
        q, k, v: [B, H, L, d].
        bounds: 0, the end of the stages that share the mask, and the end of each later one, L the last.
        mask: added to the first ones' logits, [..., m, m] with m of at least bounds[1].
        scale: of the logits.
    Returns:
        [B, L, H d].
    """
    parts = []
    for i, end in enumerate(bounds[1:]):
        begin = bounds[i]
        visible = mask[..., :end, :end].to(q.dtype) if i == 0 else None
        seen = (q[:, :, begin:end], k[:, :, :end], v[:, :, :end])
        parts.append(F.scaled_dot_product_attention(*seen, attn_mask=visible, scale=scale))
    return torch.cat(parts, dim=2).transpose(1, 2).flatten(2)


def draw_small_weights(model: nn.Module, std: float) -> None:
    """Random weights of all linear layers and embeddings, and biases of zero."""
    for module in model.modules():
        if isinstance(module, nn.Linear | nn.Embedding):
            nn.init.trunc_normal_(module.weight, std=std)
            if isinstance(module, nn.Linear) and module.bias is not None:
                nn.init.zeros_(module.bias)
