"""VAR's multi-scale VQVAE, with the official release's state-dict keys."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from nextscale.models.autoencoder import Decoder, Encoder
from nextscale.models.var.multi_scale_quantizer import MultiScaleQuantizer

PATCH_NUMS_256 = (1, 2, 3, 4, 5, 6, 8, 10, 13, 16)
PATCH_NUMS_512 = (1, 2, 3, 4, 6, 9, 13, 18, 24, 32)


@dataclass(frozen=True)
class VQVAEConfig:
    """Everything that shapes a VQVAE; the defaults are those of `vae_ch160v4096z32.pth`."""

    vocab_size: int = 4096
    z_channels: int = 32
    ch: int = 160
    ch_mult: tuple[int, ...] = (1, 1, 2, 2, 4)
    num_res_blocks: int = 2
    patch_nums: tuple[int, ...] = PATCH_NUMS_256
    share_quant_resi: int = 4
    quant_resi: float = 0.5
    default_qresi_counts: int = 0
    using_znorm: bool = False
    quant_conv_ks: int = 3
    using_sa: bool = True
    using_mid_sa: bool = True

    def __post_init__(self) -> None:
        if len(self.patch_nums) < 2:
            raise ValueError(f"patch_nums needs at least two stages, found {self.patch_nums}")

    @property
    def downsample(self) -> int:
        """Pixels a latent position, along one side."""
        return int(2 ** (len(self.ch_mult) - 1))

    @property
    def image_size(self) -> int:
        return self.patch_nums[-1] * self.downsample


class VQVAE(nn.Module):
    """Images in [-1, 1] to token maps and back."""

    def __init__(self, config: VQVAEConfig) -> None:
        super().__init__()
        self.config = config
        shape = (config.ch, config.ch_mult, config.num_res_blocks, config.z_channels)
        self.encoder = Encoder(*shape, using_sa=config.using_sa, using_mid_sa=config.using_mid_sa)
        self.decoder = Decoder(*shape, using_sa=config.using_sa, using_mid_sa=config.using_mid_sa)
        self.quantize = MultiScaleQuantizer(
            config.vocab_size,
            config.z_channels,
            config.patch_nums,
            share_quant_resi=config.share_quant_resi,
            quant_resi=config.quant_resi,
            default_qresi_counts=config.default_qresi_counts,
            using_znorm=config.using_znorm,
        )
        ks = config.quant_conv_ks
        self.quant_conv = nn.Conv2d(config.z_channels, config.z_channels, ks, padding=ks // 2)
        self.post_quant_conv = nn.Conv2d(config.z_channels, config.z_channels, ks, padding=ks // 2)

    def features(self, images: Tensor) -> Tensor:
        """Images float32 [B, 3, H, W] in [-1, 1] to features before quantization, [B, Cvae, h, w]."""
        return self.quant_conv(self.encoder(images))

    @torch.no_grad()
    def encode(self, images: Tensor) -> list[Tensor]:
        """Images float32 [B, 3, H, W] in [-1, 1] to S token maps, int64 [B, pn*pn]."""
        return self.quantize.tokenize(self.features(images))

    def decode(self, f_hat: Tensor) -> Tensor:
        """f_hat float32 [B, Cvae, h, w] to images [B, 3, H, W], clipped to [-1, 1]."""
        return self.decoder(self.post_quant_conv(f_hat)).clamp(-1, 1)

    @torch.no_grad()
    def decode_tokens(self, token_maps: Sequence[Tensor]) -> Tensor:
        """S token maps, int64 [B, pn*pn], to images [B, 3, H, W] in [-1, 1]."""
        return self.decode(self.quantize.accumulate(token_maps)[0])
