"""An Infinity that takes milliseconds, for tests that need no golden."""

from __future__ import annotations

from nextscale.models.infinity.schedules import first_stages
from nextscale.models.infinity.transformer import Infinity, InfinityConfig
from tests.goldens.infinity_parity import model_of_state, random_state

CONFIG = InfinityConfig(
    depth=2, embed_dim=32, num_heads=2, hidden_dim=64, token_bits=8, text_channels=16, max_text=6, pool_heads=4
)
SIZE = first_stages(4, (3, 4))


def tiny_infinity(config: InfinityConfig = CONFIG) -> Infinity:
    """A model with random weights, which depend on the configuration alone."""
    return model_of_state(config, random_state(config))
