"""The sizes of Infinity by name. Weights are published for 2B and 8B alone; others are for what people train."""

from __future__ import annotations

from dataclasses import dataclass

from nextscale.models._find_preset import find_preset
from nextscale.models.infinity.bsq_vae import BSQVAEConfig
from nextscale.models.infinity.transformer import InfinityConfig


@dataclass(frozen=True)
class Preset:
    """A transformer and the VAE that belongs to it."""

    name: str
    config: InfinityConfig
    vae: BSQVAEConfig


def _official(name: str, depth: int, embed_dim: int, num_heads: int, *, patchify: bool = False) -> Preset:
    """A size of the official code, with its rules for the other widths, and the VAE of 32 bits or of patches.

    Feed-forward parts are 4 times as wide, to a multiple of 256; the text's channels make a head of the pool for each
    128 of them, or 64 where the model is wider than 4096.
    """
    text_channels = InfinityConfig.text_channels
    vae = BSQVAEConfig(latent_channels=14, ch_mult=(1, 2, 4, 4), patch=2) if patchify else BSQVAEConfig()
    config = InfinityConfig(
        depth=depth,
        embed_dim=embed_dim,
        num_heads=num_heads,
        hidden_dim=round(4 * embed_dim / 256) * 256,
        token_bits=vae.token_bits,
        patchify=patchify,
        pool_heads=text_channels // (64 if embed_dim > 4096 else 128),
    )
    return Preset(f"infinity-{name}", config, vae)


PRESETS = {
    preset.name: preset
    for preset in (
        _official("125m", 12, 768, 8),
        _official("layer16", 16, 1152, 12),
        _official("1b", 24, 1536, 16),
        _official("layer32", 32, 2080, 20),
        _official("2b", 32, 2048, 16),
        _official("layer40", 40, 2688, 24),
        _official("layer48", 48, 3360, 28),
        _official("8b", 40, 3584, 28, patchify=True),
        _official("20b", 58, 4608, 36),
    )
}


def get_preset(name: str) -> Preset:
    """The preset called `name`.

    Raises:
        NextscaleError: there is none; the message suggests the nearest.
    """
    return find_preset(PRESETS, name)
