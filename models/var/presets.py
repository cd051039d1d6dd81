"""The official VAR releases by name: `var-d16` to `var-d30` make 256 px images, `var-d36` 512 px."""

from __future__ import annotations

from dataclasses import dataclass

from nextscale.models._find_preset import find_preset
from nextscale.models.var.transformer import VARConfig
from nextscale.models.var.vqvae import PATCH_NUMS_256, PATCH_NUMS_512, VQVAEConfig

PATCH_NUMS_64 = (1, 2, 3, 4, 5, 6, 8)
KNOWN_PATCH_NUMS = (PATCH_NUMS_256, PATCH_NUMS_512, PATCH_NUMS_64)


@dataclass(frozen=True)
class Preset:
    """A transformer and the VQVAE that belongs to it."""

    name: str
    var: VARConfig
    vqvae: VQVAEConfig


def _official(depth: int, patch_nums: tuple[int, ...] = PATCH_NUMS_256, *, shared_aln: bool = False) -> Preset:
    """A release of `depth` blocks: heads of 64, as many as blocks."""
    var = VARConfig(depth=depth, embed_dim=64 * depth, num_heads=depth, shared_aln=shared_aln, patch_nums=patch_nums)
    return Preset(f"var-d{depth}", var, VQVAEConfig(patch_nums=patch_nums))


PRESETS = {
    preset.name: preset
    for preset in (
        _official(16),
        _official(20),
        _official(24),
        _official(30),
        _official(36, PATCH_NUMS_512, shared_aln=True),
    )
}


def get_preset(name: str) -> Preset:
    """The preset called `name`.

    Raises:
        NextscaleError: there is none; the message suggests the nearest.
    """
    return find_preset(PRESETS, name)
