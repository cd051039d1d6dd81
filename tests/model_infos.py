"""Descriptions of models that several tests count with."""

from nextscale.runtime.manifest import ModelInfo, Size


def squares(*sides: int) -> tuple[Size, ...]:
    """Square sizes of stages."""
    return tuple((side, side) for side in sides)


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
