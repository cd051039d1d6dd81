"""The multi-scale quantizer as training needs it: differentiable, and with few kernels.

Resampling between a stage's token map and the latent is linear and of fixed size, so it is a product with a constant
matrix: `bicubic_up` [pn*pn, H*W] and `area_down` [H*W, pn*pn]. Tests compare both with `MultiScaleQuantizer`.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nextscale.export.multi_scale_quantizer import MultiScaleQuantizer


@dataclass
class Quantized:
    """What one training step of the tokenizer needs from the quantizer."""

    f_hat: Tensor  # [B, Cvae, H, W], gradients pass straight through to the features
    loss: Tensor  # commitment and codebook terms, mean over stages
    hits: Tensor  # float32 [V], how often each entry was chosen
    residuals: Tensor  # [B*L, Cvae], the vectors that were quantized


class StageResampling(nn.Module):
    """A `MultiScaleQuantizer`'s two training passes."""

    def __init__(self, quantizer: MultiScaleQuantizer) -> None:
        super().__init__()
        self.quantizer = quantizer
        side = quantizer.patch_nums[-1]
        for si, pn in enumerate(quantizer.patch_nums):
            up = F.interpolate(torch.eye(pn * pn).view(pn * pn, 1, pn, pn), size=(side, side), mode="bicubic")
            down = F.interpolate(torch.eye(side * side).view(side * side, 1, side, side), size=(pn, pn), mode="area")
            self.register_buffer(f"bicubic_up_{si}", up.flatten(1), persistent=False)
            self.register_buffer(f"area_down_{si}", down.flatten(1), persistent=False)

    def contribution(self, token_map: Tensor, si: int) -> Tensor:
        """`MultiScaleQuantizer.contribution`: int64 [B, pn*pn] -> [B, Cvae, H, W]."""
        side = self.quantizer.patch_nums[-1]
        h = self.quantizer.embedding(token_map).transpose(1, 2)
        if si != self.quantizer.num_stages - 1:
            h = h @ getattr(self, f"bicubic_up_{si}")
        return self.quantizer.phi(si)(h.unflatten(2, (side, side)))

    def quantize(self, f: Tensor, *, beta: float = 0.25) -> Quantized:
        """Quantize features with gradients (VAR, Alg. 1; `VectorQuantizer2.forward` in the official code).

        Args:
            f: float32 [B, Cvae, H, W].
            beta: weight of the commitment term.
        """
        target = f.detach()
        residual, f_hat, loss = target, torch.zeros_like(target), f.new_zeros(())
        hits = f.new_zeros(self.quantizer.embedding.num_embeddings)
        rows = []
        for si in range(self.quantizer.num_stages):
            z = (residual.flatten(2) @ getattr(self, f"area_down_{si}")).transpose(1, 2)
            rows.append(z.flatten(0, 1))
            tokens = self.quantizer.nearest(rows[-1])
            hits.index_add_(0, tokens, hits.new_ones(len(tokens)))
            h = self.contribution(tokens.view(z.shape[:2]), si)
            f_hat = f_hat + h
            residual = residual - h.detach()
            loss = loss + beta * F.mse_loss(f, f_hat.detach()) + F.mse_loss(f_hat, target)
        straight_through = f + (f_hat.detach() - target)
        return Quantized(straight_through, loss / self.quantizer.num_stages, hits, torch.cat(rows))

    @torch.no_grad()
    def teacher_forced_inputs(self, tokens: Tensor) -> Tensor:
        """`MultiScaleQuantizer.accumulate`'s second output: int64 [B, L] -> [B, L - patch_nums[0]**2, Cvae]."""
        sizes = [pn * pn for pn in self.quantizer.patch_nums]
        maps = tokens.split(sizes, dim=1)
        f_hat, inputs = self.contribution(maps[0], 0), []
        for si in range(1, self.quantizer.num_stages):
            inputs.append((f_hat.flatten(2) @ getattr(self, f"area_down_{si}")).transpose(1, 2))
            f_hat = f_hat + self.contribution(maps[si], si)
        return torch.cat(inputs, dim=1)
