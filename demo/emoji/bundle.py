"""The emoji model's weights as a source of bundles, which `compiler.build.build_bundle` takes.

A user's checkpoints come from `models.infinity.sources`, which knows the sizes of the official releases alone.
"""

from __future__ import annotations

from importlib.resources import as_file
from pathlib import Path

from nextscale.demo.emoji.calibration import load_captions
from nextscale.demo.emoji.configuration import EMOJI, EmojiConfig
from nextscale.demo.emoji.weights import INFINITY, TEXT, VAE
from nextscale.models._demo_files import demo_files
from nextscale.models.infinity.pair import load_pair
from nextscale.models.infinity.sources import InfinitySource
from nextscale.models.t5.text_source import load_text_source


def emoji_source(folder: Path, name: str, config: EmojiConfig = EMOJI) -> InfinitySource:
    """The weights in a folder, as the training programs leave them there.

    Args:
        folder: with `infinity.safetensors`, `vae.safetensors` and `text/`.
        name: of the bundle.
        config: whose size the pictures have.
    Raises:
        CheckpointError: a file is missing or damaged, or the parts do not belong together.
    """
    infinity, vae = load_pair(folder / INFINITY, folder / VAE)
    text = load_text_source(folder / TEXT, infinity.config.text_channels, infinity.config.max_text)
    return InfinitySource(
        infinity,
        vae,
        (config.size,),
        name,
        "nextscale's emoji model, trained on drawings of emoji by Google, Microsoft, Twitter and Emoji One "
        "(nextscale-demo's emoji_model_card.md tells how). Prompts say "
        "a style, a thing and a colour: `glossy pizza on a mint background`.",
        licence="MIT; nextscale-demo's CREDITS.md credits the drawings that it learned from, some of them CC BY 4.0",
        text=text,
        prompts=load_captions(),
    )


def demo_source(name: str) -> InfinitySource:
    """The emoji model of the distribution `nextscale-demo`.

    Raises:
        NextscaleError: it is not installed.
    """
    with as_file(demo_files().EMOJI) as folder:
        return emoji_source(folder, name)
