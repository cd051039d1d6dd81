"""The multi-scale quantizer as training needs it: differentiable, and with few kernels.

Resampling between a stage's token map and the latent is a product with the matrices of `models.var.resampling`.
Tests compare every method with its counterpart in `MultiScaleQuantizer`.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nextscale.models.var.multi_scale_quantizer import MultiScaleQuantizer
from nextscale.models.var.resampling import downsampling_matrix, upsampling_matrix


@dataclass
class Quantized:
    """What one training step of the tokenizer needs from the quantizer."""

    f_hat: Tensor  # [B, Cvae, H, W], gradients pass straight through to the features
    loss: Tensor  # commitment and codebook terms, mean over stages
    hits: Tensor  # float32 [V], how often each entry was chosen
    residuals: Tensor  # [B*L, Cvae], the vectors that were quantized


class StageResampling(nn.Module):
    """A `MultiScaleQuantizer`'s two training passes."""

    upsampling: Tensor  # [L, H*W], the rows of all stages
    downsampling: Tensor  # [L, H*W]

    def __init__(self, quantizer: MultiScaleQuantizer) -> None:
        super().__init__()
        self.quantizer = quantizer
        patch_nums = quantizer.patch_nums
        self.sizes = [pn * pn for pn in patch_nums]
        # `downsampling_matrix` has no rows for the first stage, at which the transformer takes no input. The tokenizer
        # quantizes that stage too, so it is given twice.
        downsampling = downsampling_matrix((patch_nums[0], *patch_nums))
        self.register_buffer("upsampling", upsampling_matrix(patch_nums), persistent=False)
        self.register_buffer("downsampling", downsampling, persistent=False)

    def downsample(self, latent: Tensor, si: int) -> Tensor:
        """`MultiScaleQuantizer.next_input`, of stage 0 too: [B, Cvae, H, W] -> [B, pn*pn, Cvae]."""
        return self.downsampling.split(self.sizes)[si] @ latent.flatten(2).mT

    def contribution(self, token_map: Tensor, si: int) -> Tensor:
        """`MultiScaleQuantizer.contribution`: int64 [B, pn*pn] -> [B, Cvae, H, W]."""
        side = self.quantizer.patch_nums[-1]
        h = self.quantizer.embedding(token_map).transpose(1, 2)
        if si != self.quantizer.num_stages - 1:
            h = h @ self.upsampling.split(self.sizes)[si]
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
        residuals = []
        for si in range(self.quantizer.num_stages):
            z = self.downsample(residual, si)
            residuals.append(z.flatten(0, 1))
            tokens = self.quantizer.nearest(residuals[-1])
            hits.index_add_(0, tokens, hits.new_ones(len(tokens)))
            h = self.contribution(tokens.view(z.shape[:2]), si)
            f_hat = f_hat + h
            residual = residual - h.detach()
            loss = loss + beta * F.mse_loss(f, f_hat.detach()) + F.mse_loss(f_hat, target)
        straight_through = f + (f_hat.detach() - target)
        return Quantized(straight_through, loss / self.quantizer.num_stages, hits, torch.cat(residuals))

    @torch.no_grad()
    def teacher_forced_inputs(self, tokens: Tensor) -> Tensor:
        """`MultiScaleQuantizer.accumulate`'s second output: int64 [B, L] -> [B, L - patch_nums[0]**2, Cvae]."""
        maps = tokens.split(self.sizes, dim=1)
        f_hat, inputs = self.contribution(maps[0], 0), []
        for si in range(1, self.quantizer.num_stages):
            inputs.append(self.downsample(f_hat, si))
            f_hat = f_hat + self.contribution(maps[si], si)
        return torch.cat(inputs, dim=1)
