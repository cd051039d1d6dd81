"""Scenes to pictures, on whatever device the sprites are."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from nextscale.demo.emoji.scenes import Batch
from nextscale.demo.emoji.sprites import Sprites

HALVED_BELOW = 0.6  # sprites drawn smaller are taken from a half-size copy, or bilinear sampling would skip pixels
CHUNK = 512


class Compositor:
    """The sprites on a device, and the drawing of scenes with them."""

    def __init__(self, sprites: Sprites, device: torch.device) -> None:
        """Decode all sprites; 128 x 128 x 4 bytes each, and a quarter more."""
        pixels = torch.from_numpy(sprites.pixels(range(len(sprites.webp))))
        self.full = pixels.to(device)
        halves = [F.avg_pool2d(part.float(), 2).round().to(torch.uint8) for part in self.full.split(CHUNK)]
        self.half = torch.cat(halves)

    @torch.no_grad()
    def __call__(self, batch: Batch) -> Tensor:
        """A batch on the sprites' device to pictures, float32 [B, 3, 128, 128] in [-1, 1]."""
        side = self.full.shape[-1]
        out = batch.backgrounds[:, :, None, None].expand(-1, -1, side, side)
        for i in range(batch.sprites.shape[1]):
            layer = self._layer(batch.sprites[:, i], batch.places[:, i])
            out = out * (1 - layer[:, 3:]) + layer[:, :3]
        return out.clamp(0, 1) * 2 - 1

    def _layer(self, sprites: Tensor, places: Tensor) -> Tensor:
        """One sprite a picture, RGBA multiplied by alpha, float32 [B, 4, 128, 128]; nothing where its index is -1."""
        size, x, y, mirror = places.unbind(1)
        zero = torch.zeros_like(size)
        # From the picture's [-1, 1] to the sprite's.
        across = torch.stack((mirror / size, zero, (1 - 2 * x) * mirror / size), dim=1)
        down = torch.stack((zero, 1 / size, (1 - 2 * y) / size), dim=1)
        shape = (len(sprites), 4, self.full.shape[-1], self.full.shape[-1])
        grid = F.affine_grid(torch.stack((across, down), dim=1), list(shape), align_corners=False)
        index = sprites.clamp(min=0)
        full, half = (
            F.grid_sample(bank[index].float(), grid, align_corners=False) / 255 for bank in (self.full, self.half)
        )
        layer = torch.where((size < HALVED_BELOW)[:, None, None, None], half, full)
        return layer * (sprites >= 0)[:, None, None, None]
