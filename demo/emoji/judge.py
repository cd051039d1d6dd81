"""The judge: a classifier of what is drawn, and in which style, trained on the sprites that are not held out.

It sees a square window of a picture, the whole or a half, at 64 x 64. Concepts that a style draws alike are one to it.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn

from nextscale.demo.emoji.styles import WORDS
from nextscale.models.autoencoder import Encoder

SIDE = 64
# Middle and side of the windows in which things are looked for, in the picture's side.
WINDOWS = {
    "whole": (0.5, 0.5, 1.0),
    "left": (0.25, 0.5, 0.5),
    "right": (0.75, 0.5, 0.5),
    "top": (0.5, 0.25, 0.5),
    "bottom": (0.5, 0.75, 0.5),
}


@dataclass(frozen=True)
class JudgeConfig:
    """Channels as `autoencoder.Encoder` takes them; `features` go into the linear layers."""

    ch: int = 64
    ch_mult: tuple[int, ...] = (1, 2, 3, 4)
    num_res_blocks: int = 2
    features: int = 256


TINY_JUDGE = JudgeConfig(ch=32, ch_mult=(1, 1), num_res_blocks=1, features=32)


class Judge(nn.Module):
    """The VAEs' convolutional encoder, the mean of its features, and a linear layer for each question."""

    def __init__(self, looks: int, config: JudgeConfig) -> None:
        """A judge of so many looks (`Sprites.looks`)."""
        super().__init__()
        shape = (config.ch, config.ch_mult, config.num_res_blocks, config.features)
        self.encoder = Encoder(*shape, using_sa=False, using_mid_sa=False)
        self.looks = nn.Linear(config.features, looks)
        self.style = nn.Linear(config.features, len(WORDS))

    def forward(self, windows: Tensor) -> tuple[Tensor, Tensor]:
        """Windows float32 [B, 3, 64, 64] in [-1, 1] to logits of looks [B, n] and of style [B, 7]."""
        found = F.silu(self.encoder(windows).mean((2, 3)))
        return self.looks(found), self.style(found)


def cut(pictures: Tensor, windows: Tensor) -> Tensor:
    """A square window of each picture at 64 x 64.

    Args:
        pictures: float32 [B, 3, H, W]; what is outside repeats the border.
        windows: float32 [B, 3]: x and y of the middle, and side, in the picture's side.
    Returns:
        float32 [B, 3, 64, 64].
    """
    return sampled(pictures, frames(windows))


def frames(windows: Tensor) -> Tensor:
    """Windows [B, 3] as what `affine_grid` takes: from a window's [-1, 1] to the picture's, [B, 2, 3]."""
    x, y, side = windows.unbind(1)
    zero = torch.zeros_like(side)
    return torch.stack((side, zero, 2 * x - 1, zero, side, 2 * y - 1), dim=1).unflatten(1, (2, 3))


def sampled(pictures: Tensor, frames: Tensor) -> Tensor:
    """What is in frames [B, 2, 3] of pictures [B, 3, H, W], at 64 x 64."""
    grid = F.affine_grid(frames, [len(pictures), 3, 2 * SIDE, 2 * SIDE], align_corners=False)
    return F.avg_pool2d(F.grid_sample(pictures, grid, padding_mode="border", align_corners=False), 2)


def load_judge(path: Path, looks: int, config: JudgeConfig) -> Judge:
    """A judge as `weights.save_module` wrote it, in eval mode."""
    judge = Judge(looks, config)
    judge.load_state_dict({name: tensor.float() for name, tensor in load_file(path).items()})
    return judge.eval().requires_grad_(False)
