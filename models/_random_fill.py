"""Random weights that keep the variance of what a layer reads, for models of any family."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from nextscale.models.autoencoder import AttnBlock, Decoder, Downsample, Encoder, ResnetBlock, Upsample

SILU_POWER = 0.355  # E[silu(n)^2] of a standard normal n
GELU_POWER = 0.425  # E[gelu(n)^2]
ATTENTION_LOGIT_STD = 1.5
HEAD_LOGIT_STD = 2.5
MODULATION_STD = 0.15
PIXEL_STD = 0.5


class Fill:
    """Fills tensors in place from one generator, in the order of the calls."""

    def __init__(self, seed: int) -> None:
        self.generator = torch.Generator().manual_seed(seed)

    def normal(self, tensor: Tensor, std: float, mean: float = 0.0) -> None:
        tensor.normal_(mean, std, generator=self.generator)

    def linear(self, layer: nn.Module, std: float = 1.0, power: float = 1.0) -> None:
        """A linear layer or convolution whose output has this standard deviation if its input has this mean square."""
        parameters = dict(layer.named_parameters(recurse=False))
        weight = parameters.pop("weight")
        self.normal(weight, std / math.sqrt(power * weight[0].numel()))
        for bias in parameters.values():
            self.normal(bias, 0.1 * std)


@torch.no_grad()
def fill_autoencoder(fill: Fill, model: Encoder | Decoder, out_std: float) -> None:
    """Weights of an encoder or decoder whose results have the standard deviation out_std."""
    fill.linear(model.conv_in)
    for module in model.modules():
        match module:
            case nn.GroupNorm():
                fill.normal(module.weight, 0.1, mean=1.0)
                fill.normal(module.bias, 0.1)
            case ResnetBlock():
                fill.linear(module.conv1, power=SILU_POWER)
                fill.linear(module.conv2, 0.5, power=SILU_POWER)
                if isinstance(module.nin_shortcut, nn.Conv2d):
                    fill.linear(module.nin_shortcut)
            case AttnBlock():
                fill.linear(module.qkv)
                fill.linear(module.proj_out)
            case Upsample() | Downsample():
                fill.linear(module.conv)
    fill.linear(model.conv_out, out_std, power=SILU_POWER)
