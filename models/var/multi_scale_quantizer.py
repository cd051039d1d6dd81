"""The multi-scale residual quantizer of VAR's VQVAE (VAR, Alg. 1 and 2; `VectorQuantizer2` in the official code).

A latent is the sum over stages of phi_si(bicubic_up(codebook[token_map_si])).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Phi(nn.Conv2d):
    """phi(h) = (1 - ratio) h + ratio conv3x3(h): [B, Cvae, H, W] -> the same shape."""

    def __init__(self, channels: int, ratio: float) -> None:
        super().__init__(channels, channels, 3, padding=1)
        self.ratio = abs(ratio)

    def forward(self, h: Tensor) -> Tensor:
        return h * (1 - self.ratio) + super().forward(h) * self.ratio


class PhiShared(nn.Module):
    """One phi for all stages (`share_quant_resi=1`)."""

    def __init__(self, phis: Sequence[nn.Module]) -> None:
        super().__init__()
        (self.qresi,) = phis

    def phi(self, index: int) -> nn.Module:
        return self.qresi


class PhiPartiallyShared(nn.Module):
    """K phis for S stages (`share_quant_resi=K`)."""

    def __init__(self, phis: Sequence[nn.Module]) -> None:
        super().__init__()
        self.qresi_ls = nn.ModuleList(phis)

    def phi(self, index: int) -> nn.Module:
        return self.qresi_ls[index]


class PhiNonShared(nn.ModuleList):
    """A phi for each stage (`share_quant_resi=0`)."""

    def phi(self, index: int) -> nn.Module:
        return self[index]


def phi_index(si: int, num_stages: int, num_phis: int) -> int:
    """Which phi stage `si` uses: the nearest of num_phis ticks spread over [0, 1] to si / (num_stages - 1)."""
    margin = 1 / (3 if num_phis == 4 else 2) / num_phis
    ticks = np.linspace(margin, 1 - margin, num_phis)
    return int(np.argmin(np.abs(ticks - si / (num_stages - 1))))


class MultiScaleQuantizer(nn.Module):
    """Latent features to token maps and back.

    Args:
        vocab_size: V, entries of the codebook.
        channels: Cvae.
        patch_nums: side length of each stage's token map; the last one is the latent's.
        share_quant_resi: 0 a phi for each stage, 1 one phi, K >= 2 K phis for all stages.
        quant_resi: phi's ratio; 0 makes phi the identity.
        default_qresi_counts: number of phis when not shared; 0 means one per stage.
        using_znorm: nearest entry by cosine instead of distance.
    """

    ema_vocab_hit_SV: Tensor

    def __init__(
        self,
        vocab_size: int,
        channels: int,
        patch_nums: Sequence[int],
        *,
        share_quant_resi: int = 4,
        quant_resi: float = 0.5,
        default_qresi_counts: int = 0,
        using_znorm: bool = False,
    ) -> None:
        super().__init__()
        self.patch_nums = tuple(patch_nums)
        self.using_znorm = using_znorm
        self.embedding = nn.Embedding(vocab_size, channels)
        self.num_phis = share_quant_resi or default_qresi_counts or len(self.patch_nums)
        kind = {0: PhiNonShared, 1: PhiShared}.get(share_quant_resi, PhiPartiallyShared)
        self.quant_resi = kind(
            [Phi(channels, quant_resi) if abs(quant_resi) > 1e-6 else nn.Identity() for _ in range(self.num_phis)]
        )
        self.register_buffer("ema_vocab_hit_SV", torch.zeros(len(self.patch_nums), vocab_size))

    @property
    def num_stages(self) -> int:
        return len(self.patch_nums)

    def phi(self, si: int) -> nn.Module:
        """The phi of stage `si`: a module [B, Cvae, H, W] -> [B, Cvae, H, W]."""
        return self.quant_resi.phi(phi_index(si, self.num_stages, self.num_phis))

    def nearest(self, z: Tensor) -> Tensor:
        """The codebook entry nearest to each row: float32 [N, Cvae] -> int64 [N]."""
        codebook = self.embedding.weight
        if self.using_znorm:
            return torch.argmax(F.normalize(z, dim=-1) @ F.normalize(codebook, dim=-1).T, dim=1)
        squared = z.square().sum(1, keepdim=True) + codebook.square().sum(1)
        return torch.argmin(torch.addmm(squared, z, codebook.T, alpha=-2.0), dim=1)

    def contribution(self, token_map: Tensor, si: int) -> Tensor:
        """What stage `si` adds to f_hat: int64 [B, pn*pn] -> float32 [B, Cvae, H, W]."""
        pn, side = self.patch_nums[si], self.patch_nums[-1]
        if token_map.shape[1] != pn * pn:
            raise ValueError(f"stage {si} has {pn * pn} tokens, found a token map of {token_map.shape[1]}")
        h = self.embedding(token_map).transpose(1, 2).unflatten(2, (pn, pn))
        if si != self.num_stages - 1:
            h = F.interpolate(h, size=(side, side), mode="bicubic")
        return self.phi(si)(h)

    def next_input(self, f_hat: Tensor, si: int) -> Tensor:
        """The transformer's input at stage `si` >= 1: f_hat float32 [B, Cvae, H, W] -> [B, pn*pn, Cvae]."""
        pn = self.patch_nums[si]
        return F.interpolate(f_hat, size=(pn, pn), mode="area").flatten(2).transpose(1, 2)

    def tokenize(self, f: Tensor) -> list[Tensor]:
        """Features to token maps, greedily from coarse to fine: [B, Cvae, H, W] -> S of int64 [B, pn*pn]."""
        side = self.patch_nums[-1]
        if f.shape[2:] != (side, side):
            raise ValueError(
                f"the latent must be {side} x {side}, found {list(f.shape[2:])}; is the image of this size?"
            )
        residual = f.float()
        token_maps = []
        for si, pn in enumerate(self.patch_nums):
            z = residual if si == self.num_stages - 1 else F.interpolate(residual, size=(pn, pn), mode="area")
            token_map = self.nearest(z.flatten(2).transpose(1, 2).flatten(0, 1)).view(len(f), pn * pn)
            residual = residual - self.contribution(token_map, si)
            token_maps.append(token_map)
        return token_maps

    def accumulate(self, token_maps: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """Token maps to the latent and to the transformer's teacher-forced input.

        Args:
            token_maps: S of int64 [B, pn*pn].
        Returns:
            f_hat float32 [B, Cvae, H, W] after the last stage, and the inputs of stages 1 .. S-1,
            float32 [B, L - patch_nums[0]**2, Cvae].
        """
        side = self.patch_nums[-1]
        f_hat = self.embedding.weight.new_zeros(len(token_maps[0]), self.embedding.embedding_dim, side, side)
        inputs = []
        for si, token_map in enumerate(token_maps):
            if si:
                inputs.append(self.next_input(f_hat, si))
            f_hat = f_hat + self.contribution(token_map, si)
        return f_hat, torch.cat(inputs, dim=1)
