"""The judge: a classifier of what is drawn, and in which style, trained on the sprites that are not held out.

It sees a square window of a picture, the whole or a half, at 224 x 224. Concepts that a style draws alike are one to
it. It begins as EfficientNet-Lite2, which knows photographs, and recognises 92.0% of the drawings that it never saw. A
judge that began with random weights learned drawings by heart and recognised 84%.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn

from nextscale.demo.emoji.styles import WORDS
from nextscale.evaluate.feature_network import pretrained
from nextscale.runtime._errors import NextscaleError

SIDE = 224
# Middle and side of the windows in which things are looked for, in the picture's side.
WINDOWS = {
    "whole": (0.5, 0.5, 1.0),
    "left": (0.25, 0.5, 0.5),
    "right": (0.75, 0.5, 0.5),
    "top": (0.5, 0.25, 0.5),
    "bottom": (0.5, 0.75, 0.5),
}


class Judge(nn.Module):
    """EfficientNet-Lite2's features, and a linear layer for each question.

    Normalization keeps ImageNet's statistics, so that a window's answer never depends on those beside it.
    """

    def __init__(self, looks: int) -> None:
        """A judge of so many looks (`Sprites.looks`)."""
        super().__init__()
        self.backbone: Any = pretrained(2)
        features = self.backbone._fc.in_features
        del self.backbone._fc  # of ImageNet's classes
        self.looks = nn.Linear(features, looks)
        self.style = nn.Linear(features, len(WORDS))

    def train(self, mode: bool = True) -> Judge:
        super().train(mode)
        for module in self.backbone.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.eval()
        return self

    def forward(self, windows: Tensor) -> tuple[Tensor, Tensor]:
        """Windows float32 [B, 3, 224, 224] in [-1, 1] to logits of looks [B, n] and of style [B, 7]."""
        found = self.backbone._dropout(self.backbone.extract_features(windows).mean((2, 3)))
        return self.looks(found), self.style(found)


def cut(pictures: Tensor, windows: Tensor) -> Tensor:
    """A square window of each picture at 224 x 224.

    Args:
        pictures: float32 [B, 3, H, W]; what is outside repeats the border.
        windows: float32 [B, 3]: x and y of the middle, and side, in the picture's side.
    Returns:
        float32 [B, 3, 224, 224].
    """
    return sampled(pictures, frames(windows))


def frames(windows: Tensor) -> Tensor:
    """Windows [B, 3] as what `affine_grid` takes: from a window's [-1, 1] to the picture's, [B, 2, 3]."""
    x, y, side = windows.unbind(1)
    zero = torch.zeros_like(side)
    return torch.stack((side, zero, 2 * x - 1, zero, side, 2 * y - 1), dim=1).unflatten(1, (2, 3))


def sampled(pictures: Tensor, frames: Tensor) -> Tensor:
    """What is in frames [B, 2, 3] of pictures [B, 3, H, W], at 224 x 224."""
    grid = F.affine_grid(frames, [pictures.shape[0], 3, SIDE, SIDE], align_corners=False)
    return F.grid_sample(pictures, grid, padding_mode="border", align_corners=False)


def load_judge(path: Path, looks: int) -> Judge:
    """A judge as `weights.save_module` wrote it, in eval mode.

    Raises:
        NextscaleError: it is of another form, or a package of the extra `train`, which has the normalization's
            statistics, is missing.
    """
    judge = Judge(looks)
    parameters = {name: tensor.float() for name, tensor in load_file(path).items()}
    try:
        judge.load_state_dict(dict(judge.named_buffers()) | parameters)
    except RuntimeError:
        raise NextscaleError(f"{path}: no judge of {looks} looks as this version makes it; train it again") from None
    return judge.eval().requires_grad_(False)
