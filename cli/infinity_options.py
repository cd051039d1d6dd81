"""The options that name an Infinity to build: its checkpoints, its text encoder, and the sizes of its pictures."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import click

from nextscale.cli.options import CHECKPOINT, refuse
from nextscale.cli.subjects import read_prompts

if TYPE_CHECKING:
    from nextscale.graph_passes.recipe import Recipe
    from nextscale.models.infinity.sources import InfinitySource

ROPE_MODES: dict[str, Literal[0, 1, 2]] = {"0": 0, "1": 1, "2": 2}
# What leaves no trace in a checkpoint.
UNTOLD = ("patchify", "rope_mode", "level_each_chunk")
# Options of `nextscale build` that no other family has.
INFINITY_ALONE = ("infinity", "text", "area", "ratio", "prompts", "no_text_encoder", *UNTOLD)
# Options of `nextscale build` that are of VAR's checkpoints.
VAR_ALONE = ("var", "patch_nums", "num_heads", "quant_resi", "class_names")

# The emoji model, which comes along.
EMOJI = "emoji"

# Which Infinity, and in which sizes.
INFINITY_MODEL = (
    click.option("--infinity", type=CHECKPOINT, help="Infinity's checkpoint (a file, an index or a folder)."),
    click.option(
        "--text",
        metavar="DIR",
        help="The folder of its text encoder, flan-t5-xl; with random weights a name, such as flan-t5-xl.",
    ),
    click.option(
        "--area",
        "--pn",
        default="1M",
        show_default=True,
        metavar="0.25M,…",
        help="Sizes of Infinity's pictures, which the official code calls pn: 0.06M, 0.25M, 0.60M, 1M.",
    ),
    click.option(
        "--ratio",
        default="1:1",
        show_default=True,
        metavar="3:4,…",
        help="Width to height of Infinity's pictures: 1:1, 3:4 and others, each of them in every area.",
    ),
    click.option(
        "--patchify/--no-patchify",
        default=None,
        help="Whether Infinity's tokens are patches of 2 x 2.  [default: where they have 56 bits]",
    ),
    click.option(
        "--rope-mode",
        type=click.Choice(["0", "1", "2"]),
        default="2",
        show_default=True,
        help="Infinity's rope2d_normalized_by_hw.",
    ),
    click.option("--level-each-chunk", is_flag=True, help="Infinity's add_lvl_embeding_only_first_block=0."),
)
INFINITY = (
    *INFINITY_MODEL,
    click.option(
        "--prompts",
        type=click.Path(path_type=Path),
        metavar="FILE",
        help="What to draw while Infinity is observed: a prompt a line.  [default: 64 that come along with it]",
    ),
)


@dataclass(frozen=True)
class InfinityOptions:
    """Which Infinity the command line names.

    Attributes:
        model: "emoji", or None.
        infinity, vae: checkpoints.
        preset: a size that is filled with random weights.
        text: a folder, or a name of what is filled with random weights.
        area, ratio: lists with commas.
        prompts: a file.
        patchify, rope_mode, level_each_chunk: what a checkpoint does not tell.
        weights, vae_weights: which of several sets of weights in a checkpoint.
        random_weights: whether to fill the preset with them.
    """

    model: str | None
    infinity: Path | None
    vae: Path | None
    preset: str | None
    text: str | None
    area: str
    ratio: str
    prompts: Path | None
    patchify: bool | None
    rope_mode: Literal["0", "1", "2"]
    level_each_chunk: bool
    weights: str | None
    vae_weights: str | None
    random_weights: bool

    def source(self, name: str, seed: int = 0) -> InfinitySource:
        """Read the model, or fill it with random weights of the seed; a bundle of it is called `name`.

        Raises:
            NextscaleError: a file is damaged or missing, files do not go together, or there is no such size.
        """
        from nextscale.demo.emoji.bundle import demo_source
        from nextscale.models.infinity.pair import twins_warning
        from nextscale.models.infinity.prompts import PROMPTS
        from nextscale.models.infinity.sources import checkpoint_source, random_source

        prompts = PROMPTS if self.prompts is None else tuple(read_prompts(self.prompts))
        if self.model == EMOJI:
            source = demo_source(name)
            return source if self.prompts is None else replace(source, prompts=prompts)
        areas, ratios = self.area.split(","), self.ratio.split(",")
        if self.random_weights:
            assert self.preset is not None
            return random_source(name, self.preset, areas, ratios, seed, self.text, prompts)
        assert self.infinity is not None
        assert self.vae is not None
        source = checkpoint_source(
            name,
            self.infinity,
            self.vae,
            areas,
            ratios,
            None if self.text is None else Path(self.text),
            prompts,
            patchify=self.patchify,
            rope_mode=ROPE_MODES[self.rope_mode],
            level_each_chunk=self.level_each_chunk,
            weights=self.weights,
            vae_weights=self.vae_weights,
        )
        warning = twins_warning(self.infinity, self.vae, source.vae.config)
        if warning is not None:
            click.echo(warning, err=True)
        return source

    def require_recipe(self, recipe: Recipe) -> None:
        """Every recipe is for Infinity."""

    def check(self) -> None:
        """Raise click.UsageError unless the options name one model."""
        if self.model == EMOJI:
            what = EMOJI
            named = (name for name in INFINITY_ALONE if name not in ("prompts", "no_text_encoder"))
            refuse(what, *named, "vae", "preset", "random_weights", "weights", "vae_weights")
        elif self.random_weights:
            assert self.preset is not None
            what = self.preset
            refuse("--random-weights", "infinity", "vae", "weights", "vae_weights", *UNTOLD)
        elif self.infinity is None:
            raise click.UsageError(
                f"--preset {self.preset} needs --random-weights; a checkpoint tells its size: give --infinity alone"
            )
        elif self.vae is None:
            raise click.UsageError("--infinity needs --vae")
        else:
            what = "--infinity"
            refuse(what, "preset")
        if self.model not in (None, EMOJI):
            raise click.UsageError(f"{what} does not go with {self.model}")
        refuse(what, *VAR_ALONE)
        if self.text is None and self.model != EMOJI:
            refuse("a build without --text", "prompts", "no_text_encoder")
