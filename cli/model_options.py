"""The options that name a model, of any family."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING

import click

from nextscale.cli.infinity_options import EMOJI, INFINITY, INFINITY_ALONE, InfinityOptions
from nextscale.cli.options import CHECKPOINT, IntegerList, is_given, option_name, refuse

if TYPE_CHECKING:
    from nextscale.graph_passes.recipe import Recipe
    from nextscale.models.var.sources import VARSource

# What the tensors of a checkpoint may not tell, and a preset does.
UNTOLD = ("patch_nums", "num_heads", "quant_resi")
# Which of several sets of weights in a checkpoint.
CHOSEN = ("weights", "vae_weights")


@dataclass(frozen=True)
class VAROptions:
    """Which VAR the command line names; `model_options` makes it and refuses what does not go together.

    Attributes:
        model: "demo", or None.
        var, vae: checkpoints.
        preset: an official release that the checkpoints are of, or that is filled with random weights.
        patch_nums, num_heads, quant_resi: what a checkpoint may not tell.
        weights, vae_weights: which of several sets of weights in a checkpoint.
        random_weights: fill the preset with them.
        class_names: a file of names.
    """

    model: str | None
    var: Path | None
    vae: Path | None
    preset: str | None
    patch_nums: list[int] | None
    num_heads: int | None
    quant_resi: float
    weights: str | None = None
    vae_weights: str | None = None
    random_weights: bool = False
    class_names: Path | None = None

    def source(self, name: str, seed: int = 0) -> VARSource:
        """Read the model, or fill it with random weights of the seed; a bundle of it is called `name`.

        Raises:
            NextscaleError: a file is damaged or missing, or does not tell what an option must.
        """
        from nextscale.models.var.sources import checkpoint_source, demo_source, random_source

        if self.model == "demo":
            return demo_source(name)
        if self.random_weights:
            assert self.preset is not None
            return random_source(name, self.preset, seed, self.class_names)
        assert self.var is not None
        assert self.vae is not None
        return checkpoint_source(
            name,
            self.var,
            self.vae,
            self.preset,
            self.patch_nums,
            self.num_heads,
            self.quant_resi,
            class_names=self.class_names,
            weights=self.weights,
            vae_weights=self.vae_weights,
        )

    def require_recipe(self, recipe: Recipe) -> None:
        """Raise NextscaleError if the recipe asks for what VAR does not have."""
        from nextscale.compiler.var_family import require_var_recipe

        require_var_recipe(recipe)

    def as_arguments(self) -> list[str]:
        """The same model for another command: what of it the command line gives."""
        arguments = [self.model] if self.model else []
        for name in ("var", "vae", *CHOSEN, "preset", *UNTOLD):
            if is_given(name):
                value = getattr(self, name)
                text = ",".join(map(str, value)) if isinstance(value, list) else str(value)
                arguments += [option_name(name), text]
        return arguments

    def check(self) -> None:
        """Raise click.UsageError unless the options name one model."""
        if self.model == "demo":
            refuse("demo", "var", "vae", *CHOSEN, *UNTOLD, "preset", "random_weights", "class_names")
            what = "demo"
        elif self.random_weights:
            if self.preset is None:
                raise click.UsageError("--random-weights needs --preset")
            refuse("--random-weights", "var", "vae", *CHOSEN, *UNTOLD)
            what = self.preset
        elif self.var is not None and self.vae is not None:
            if self.preset is not None:
                refuse("--preset", *UNTOLD)
            what = "--var"
        else:
            context = click.get_current_context()
            to_build = "random_weights" in context.params
            more = "--infinity and --vae, or --preset with --random-weights, " if to_build else ""
            demos = f"demo` or `{context.command_path} {EMOJI}" if to_build else "demo"
            raise click.UsageError(f"which model? Give --var and --vae, {more}or `{context.command_path} {demos}`")
        refuse(what, *INFINITY_ALONE)


_MODEL = (
    click.option("--var", type=CHECKPOINT, help="VAR's checkpoint (.pth, .safetensors, or an index)."),
    click.option("--vae", type=CHECKPOINT, help="The checkpoint of its VAE (the same)."),
    click.option("--weights", metavar="NAME", help="Which of several sets of weights in a transformer's checkpoint."),
    click.option("--vae-weights", metavar="NAME", help="Which of several in --vae."),
    click.option("--preset", metavar="NAME", help="An official release, such as var-d16; `nextscale build` has more."),
    click.option(
        "--patch-nums",
        type=IntegerList(),
        metavar="1,2,…",
        help="Side lengths of VAR's stages, if the checkpoint does not tell.",
    ),
    click.option(
        "--num-heads",
        type=click.IntRange(1),
        help="Number of VAR's heads, if the checkpoint does not tell (no l2 norm).",
    ),
    click.option(
        "--quant-resi",
        type=float,
        default=0.5,
        show_default=True,
        help="The VQVAE's quant_resi, which checkpoints do not contain; the official releases have the default.",
    ),
)
_MODEL_TO_BUILD = (
    click.option("--random-weights", is_flag=True, help="Fill the preset with random weights, to measure speed."),
    click.option(
        "--class-names",
        type=CHECKPOINT,
        help="VAR's class names: one per line, CSV, or a list or a dictionary by ids, in JSON or as Python writes it.",
    ),
)


def model_options(*, to_build: bool = False) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """The options that name a model; the command gets them as one `VAROptions` or `InfinityOptions`, `model`.

    Args:
        to_build: also those of a model that is only to be built: an Infinity, random weights, names of classes.
    """

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        @functools.wraps(command)
        def collected(**values: object) -> None:
            kinds = (VAROptions, InfinityOptions) if to_build else (VAROptions,)
            names = {field.name for kind in kinds for field in fields(kind) if field.name in values}
            given = {name: values.pop(name) for name in names}
            kind = InfinityOptions if to_build and _is_infinity(given) else VAROptions
            model = kind(**{field.name: given[field.name] for field in fields(kind) if field.name in given})  # type: ignore[arg-type]
            model.check()
            command(model=model, **values)

        demos = ["demo", EMOJI] if to_build else ["demo"]
        which = click.argument("model", required=False, type=click.Choice(demos))
        for option in reversed((which, *_MODEL, *((*INFINITY, *_MODEL_TO_BUILD) if to_build else ()))):
            collected = option(collected)
        return collected

    return decorate


def _is_infinity(given: dict[str, object]) -> bool:
    """Whether it is what the options name: the emoji model, by its checkpoint, or by a preset.

    Raises:
        NextscaleError: no family has such a preset.
    """
    preset = given["preset"]
    named = given["infinity"] is not None or given["model"] == EMOJI
    if named or preset is None:
        return named
    from nextscale.models._find_preset import find_preset
    from nextscale.models.infinity.presets import PRESETS as OF_INFINITY
    from nextscale.models.var.presets import PRESETS as OF_VAR

    find_preset({**OF_VAR, **OF_INFINITY}, str(preset))
    return preset in OF_INFINITY
