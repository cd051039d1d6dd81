"""Descriptions of models that several tests count with."""

from nextscale.graph_passes.layer_facts import StageFacts
from nextscale.models.var.layers import linear_shapes, stage_facts
from nextscale.models.var.transformer import VARConfig
from nextscale.runtime._manifest import ModelInfo, Size


def squares(*sides: int) -> tuple[Size, ...]:
    """Square sizes of stages."""
    return tuple((side, side) for side in sides)


def facts_of(model: ModelInfo) -> StageFacts:
    """For counting: with an mlp_ratio of 4 and without shared_aln, as all published models for 256 px are."""
    config = VARConfig(
        depth=model.depth,
        embed_dim=model.embed_dim,
        num_heads=model.num_heads,
        patch_nums=model.patch_nums,
        vocab_size=model.vocab_size,
        z_channels=model.latent_channels,
    )
    return stage_facts(linear_shapes(config), model.patch_nums)


VAR_D16 = ModelInfo(
    num_classes=1000,
    stage_sizes=squares(1, 2, 3, 4, 5, 6, 8, 10, 13, 16),
    image_size=(256, 256),
    vocab_size=4096,
    depth=16,
    embed_dim=1024,
    num_heads=16,
    latent_channels=32,
    latent_size=(16, 16),
)
THREE_STAGES = ModelInfo(
    num_classes=10,
    stage_sizes=squares(1, 2, 4),
    image_size=(64, 64),
    vocab_size=4096,
    depth=2,
    embed_dim=256,
    num_heads=2,
    latent_channels=32,
    latent_size=(4, 4),
)
