"""The emoji model's shapes, and a very small one with which to try the programs.

At fp16 the three parts take 39.5 MB together, of the 40 MB that a demo may have: the transformer has what the other two
leave. A first attempt on one GPU (22 minutes) decided the sizes. Its tokenizer (5.2 M parameters) reached 29.8 dB, more
than the transformer could use, so that here the two coarse levels are narrower; its text encoder, as large as this one,
named a caption's parts without error; its transformer (17.8 M) was still learning when it stopped, and is larger than
the budget allows.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from nextscale.demo.emoji.captions import TEXT_LENGTH
from nextscale.models.infinity.bsq_vae import BSQVAEConfig
from nextscale.models.infinity.presets import Preset
from nextscale.models.infinity.schedules import Size, first_stages
from nextscale.models.infinity.transformer import InfinityConfig
from nextscale.models.t5.encoder import T5Config
from nextscale.models.t5.presets import BYT5_VOCAB_SIZE


@dataclass(frozen=True)
class EmojiConfig:
    """A transformer with its VAE, their pictures' size, and the text encoder."""

    models: Preset
    text: T5Config

    @property
    def size(self) -> Size:
        """Infinity's first seven square scales, 1 to 16 tokens a side, with this VAE's stride."""
        official = first_stages(self.models.config.num_levels, (1, 1))
        side = official.latent_size[0] * self.models.vae.downsample
        return replace(official, area=f"{side * side / 2**20:.3g}M", image_size=(side, side))


EMOJI = EmojiConfig(
    Preset(
        "infinity-emoji",
        InfinityConfig(
            depth=8,
            embed_dim=320,
            num_heads=5,
            hidden_dim=1152,
            token_bits=24,
            text_channels=256,
            max_text=TEXT_LENGTH,
            pool_heads=4,
            num_levels=7,
        ),
        BSQVAEConfig(latent_channels=24, ch=32, ch_mult=(1, 2, 3, 3)),
    ),
    T5Config(BYT5_VOCAB_SIZE, embed_dim=256, depth=4, num_heads=8, head_dim=32, hidden_dim=512),
)
TINY = EmojiConfig(
    Preset(
        "infinity-emoji-tiny",
        InfinityConfig(
            depth=1,
            embed_dim=32,
            num_heads=2,
            hidden_dim=64,
            token_bits=4,
            text_channels=32,
            max_text=TEXT_LENGTH,
            pool_heads=2,
            num_levels=7,
        ),
        BSQVAEConfig(latent_channels=4, ch=32, ch_mult=(1, 1, 1, 1), num_res_blocks=1),
    ),
    T5Config(BYT5_VOCAB_SIZE, embed_dim=32, depth=1, num_heads=2, head_dim=16, hidden_dim=32),
)
