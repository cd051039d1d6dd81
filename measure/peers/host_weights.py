"""The tensors of a model that the loop around every peer's engine needs."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from nextscale.measure.peers.host_loop import Floats, HostWeights
from nextscale.models.var.multi_scale_quantizer import Phi
from nextscale.models.var.resampling import downsampling_matrix, upsampling_matrix
from nextscale.models.var.transformer import VAR
from nextscale.models.var.vqvae import VQVAE


@torch.no_grad()
def host_weights(var: VAR, vqvae: VQVAE) -> HostWeights:
    """Take them from the models and fold phi's mix with the identity into its convolution."""
    config, quantizer = var.config, vqvae.quantize
    phis = [_folded(quantizer.phi(si), config.z_channels) for si in range(config.num_stages)]
    return HostWeights(
        patch_nums=torch.tensor(config.patch_nums).numpy(),
        class_embedding=_array(var.class_emb.weight),
        first=_array(var.pos_start[0]),
        position=_array(var.position()[0]),
        word_weight=_array(var.word_embed.weight.T),
        word_bias=_array(var.word_embed.bias),
        codebook=_array(quantizer.embedding.weight),
        up=_array(upsampling_matrix(config.patch_nums)),
        down=_array(downsampling_matrix(config.patch_nums)),
        phi_weight=_array(torch.stack([weight for weight, _ in phis])),
        phi_bias=_array(torch.stack([bias for _, bias in phis])),
    )


def _folded(phi: nn.Module, channels: int) -> tuple[Tensor, Tensor]:
    """(1 - ratio) h + ratio conv(h) as one convolution: weight [9, in, out] and bias [out]."""
    weight, bias = torch.zeros(9, channels, channels), torch.zeros(channels)
    ratio = 0.0
    if isinstance(phi, Phi):
        ratio = phi.ratio
        weight += ratio * phi.weight.permute(2, 3, 1, 0).flatten(0, 1)
        bias += ratio * phi.get_parameter("bias")
    weight[4] += (1 - ratio) * torch.eye(channels)
    return weight, bias


def _array(tensor: Tensor) -> Floats:
    array: Floats = tensor.detach().float().contiguous().numpy()
    return array
