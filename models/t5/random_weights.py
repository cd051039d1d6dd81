"""Random weights that behave: encoders of any size for measuring speed without a checkpoint.

Linear layers keep the variance of what they read, but for a block's last two, which divide it by the number of
branches, so that the residual stream neither explodes nor vanishes; scores have a standard deviation of about 1.5.
"""

from __future__ import annotations

import torch

from nextscale.models.t5.encoder import GatedFFN, RMSNorm, SelfAttention, T5Config, T5Encoder
from nextscale.models.t5.presets import get_preset

GATE_POWER = 0.425  # E[gelu(n)^2 m^2] of standard normal n and m
SCORE_STD = 1.5
BIAS_STD = 0.5


@torch.no_grad()
def random_t5(config: T5Config | str, seed: int = 0) -> T5Encoder:
    """An encoder with random weights, in eval mode; the same seed gives the same weights.

    Args:
        config: sizes, or the name of a preset.
        seed: of the weights.
    """
    config = get_preset(config) if isinstance(config, str) else config
    with torch.device("meta"):
        model = T5Encoder(config)
    model.to_empty(device="cpu")
    generator = torch.Generator().manual_seed(seed)
    branch_power = 1 / (2 * config.depth)

    def normal(weight: torch.Tensor, std: float, mean: float = 0.0) -> None:
        weight.normal_(mean, std, generator=generator)

    normal(model.shared.weight, 1.0)
    for module in model.modules():
        match module:
            case RMSNorm():
                normal(module.weight, 0.1, mean=1.0)
            case SelfAttention():
                # A product of two standard normal vectors has a standard deviation of d^1/2.
                std = config.embed_dim**-0.5 * (SCORE_STD**2 / config.head_dim) ** 0.25
                normal(module.q.weight, std)
                normal(module.k.weight, std)
                normal(module.v.weight, config.embed_dim**-0.5)
                normal(module.o.weight, (branch_power / config.inner_dim) ** 0.5)
                if hasattr(module, "relative_attention_bias"):
                    normal(module.relative_attention_bias.weight, BIAS_STD)
            case GatedFFN():
                normal(module.wi_0.weight, config.embed_dim**-0.5)
                normal(module.wi_1.weight, config.embed_dim**-0.5)
                normal(module.wo.weight, (branch_power / (GATE_POWER * config.hidden_dim)) ** 0.5)
    return model.eval().requires_grad_(False)
