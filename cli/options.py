"""Options and arguments that several commands share."""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from nextscale.runtime._cpus import default_threads
from nextscale.runtime._manifest import Manifest, ModelInfo
from nextscale.runtime._operators import OPS, Choice
from nextscale.runtime._request import DEFAULT_CFG_SCALE, DEFAULT_TOP_K, DEFAULT_TOP_P
from nextscale.runtime._sizes import Size, choose_size, nearest_ratio, sizes_of_area
from nextscale.runtime._wording import shown_value

if TYPE_CHECKING:
    from nextscale.models.var.sources import VARSource

BUNDLE = click.Path(path_type=Path)
CHECKPOINT = click.Path(path_type=Path)
# What the tensors of a checkpoint may not tell, and a preset does.
UNTOLD = ("patch_nums", "num_heads", "quant_resi")
# Which of several sets of weights in a checkpoint.
CHOSEN = ("weights", "vae_weights")

threads = click.option(
    "--threads",
    type=click.IntRange(0, 1024),
    default=0,
    metavar="N",
    help="Threads to compute with; 0 (default): one for each physical core that may be used, within the CPU quota.",
)
spinning = click.option(
    "--spinning/--no-spinning",
    default=True,
    help="Let idle threads spin, unless they are more than the CPUs: faster on an idle machine (default), slower on a "
    "busy one.",
)


def operators(command: Callable[..., object]) -> Callable[..., object]:
    """Which variant of a bundle's graphs to run: the options --ops and --ops-library."""
    command = click.option(
        "--ops-library",
        type=click.Path(),
        default="",
        metavar="FILE",
        help="The library of nextscale-ops.  [default: that of the installed package]",
    )(command)
    return click.option(
        "--ops",
        type=click.Choice(list(OPS)),
        default="auto",
        show_default=True,
        help="Which operators to run: nextscale-ops' fused ones, ONNX Runtime's own, or the fused ones where they can.",
    )(command)


cfg_scale = click.option(
    "--cfg-scale", type=float, default=DEFAULT_CFG_SCALE, show_default=True, help="Guidance; 0: none."
)
top_k = click.option(
    "--top-k",
    type=int,
    help=f"Sample from the k likeliest tokens; 0: off.  [default: {DEFAULT_TOP_K}, or V if smaller]",
)
top_p = click.option(
    "--top-p",
    type=float,
    default=DEFAULT_TOP_P,
    show_default=True,
    help="Of these, the likeliest of this total probability; 0: off.",
)
more_smooth = click.option(
    "--more-smooth",
    is_flag=True,
    help="Mix entries of the codebook, as the official code's more_smooth: for looks, not for metrics.",
)


def size(command: Callable[..., object]) -> Callable[..., object]:
    """Which of the sizes that a bundle is built for: the options --area and --ratio."""
    command = click.option(
        "--ratio",
        metavar="W:H",
        help="Width to height, such as 3:4, of a bundle of several sizes.  [default: its first]",
    )(command)
    return click.option("--area", metavar="0.25M", help="How many pixels, about, in the same way.")(command)


@dataclass(frozen=True)
class ChosenSize:
    """The size of the pictures that a command makes.

    Attributes:
        model: at that size.
        settings: of a request, and what a picture holds of them; nothing where the bundle has one size.
    """

    model: ModelInfo
    settings: dict[str, str]


def chosen_size(manifest: Manifest, area: str | None, ratio: str | None, photograph: Size | None = None) -> ChosenSize:
    """The size that the options mean.

    Args:
        manifest: of the bundle.
        area, ratio: as the command line gives them.
        photograph: whose ratio is taken, as nearly as it is built, where none is given.
    Raises:
        RequestError: it is not built.
        click.UsageError: the bundle has one size.
    """
    if not manifest.sizes:
        given = [f"--{name}" for name, value in (("area", area), ("ratio", ratio)) if value is not None]
        if given:
            height, width = manifest.model.image_size
            raise click.UsageError(f"{given[0]}: this bundle has one size, {height} x {width}")
        return ChosenSize(manifest.model, {})
    if ratio is None and photograph is not None:
        ratio = nearest_ratio(sizes_of_area(manifest.sizes, area), photograph)
    index = choose_size(manifest.sizes, area, ratio)
    found = manifest.sizes[index]
    return ChosenSize(manifest.models[index], {"area": found.area, "ratio": found.ratio_in_words})


previews = click.option(
    "--previews",
    "with_previews",
    is_flag=True,
    help="Also the pictures as they are after each stage but the last: FILE-stage-01.png and so on.",
)


class FiniteRange(click.FloatRange):
    """A number within bounds, which NaN never leaves."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        number: float = super().convert(value, param, ctx)
        if not math.isfinite(number):
            self.fail(f"{shown_value(value)} is not a finite number", param, ctx)
        return number


class IntegerList(click.ParamType):
    """Integers separated by commas: 1,4."""

    name = "integers"

    def convert(self, value: str | list[int], param: click.Parameter | None, ctx: click.Context | None) -> list[int]:
        if isinstance(value, list):
            return value
        try:
            return [int(part) for part in value.split(",")]
        except ValueError:
            self.fail(f"{shown_value(value)} is not a list of integers such as 1,4", param, ctx)


class Seed(click.ParamType):
    """An integer, or None for "random"."""

    name = "seed"

    def convert(self, value: str | int, param: click.Parameter | None, ctx: click.Context | None) -> int | None:
        if isinstance(value, str) and value.strip().casefold() == "random":
            return None
        try:
            return int(value)
        except ValueError:
            self.fail(f"{shown_value(value)} is neither an integer nor random", param, ctx)


class Grid(click.ParamType):
    """Columns, or columns x rows: 4 or 4x2."""

    name = "grid"

    def convert(
        self,
        value: str | tuple[int, int | None],
        param: click.Parameter | None,
        ctx: click.Context | None,
    ) -> tuple[int, int | None]:
        if isinstance(value, tuple):
            return value
        match = re.fullmatch(r"(\d{1,9})(?:x(\d{1,9}))?", value.lower())
        columns, rows = (None if side is None else int(side) for side in match.groups()) if match else (0, None)
        if not columns or rows == 0:
            self.fail(
                f"{shown_value(value)} is neither a number of columns (4) nor columns x rows (4x2), each at most "
                "999999999",
                param,
                ctx,
            )
        return columns, rows


def shown_threads(threads: int) -> str:
    """The threads that a session takes, for people."""
    return str(threads or default_threads() or "all")


def shown_choice(choice: Choice) -> str:
    """Which variant of the graphs runs and why, for people."""
    return f"{choice.variant} ({choice.reason})"


def refuse(what: str, *options: str) -> None:
    """Refuse those of the options that the command line gives."""
    source_of = click.get_current_context().get_parameter_source
    given = [f"--{option.replace('_', '-')}" for option in options if _is_given(source_of(option))]
    if given:
        raise click.UsageError(f"{what} does not go with {', '.join(given)}")


def _is_given(source: ParameterSource | None) -> bool:
    """An option that the command does not have is not given either."""
    return source is not None and source != ParameterSource.DEFAULT


@dataclass(frozen=True)
class ModelOptions:
    """Which model the command line names; `model_options` makes it and refuses what does not go together.

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

    def as_arguments(self) -> list[str]:
        """The same model for another command: what of it the command line gives."""
        source_of = click.get_current_context().get_parameter_source
        arguments = [self.model] if self.model else []
        for name in ("var", "vae", *CHOSEN, "preset", *UNTOLD):
            if _is_given(source_of(name)):
                value = getattr(self, name)
                text = ",".join(map(str, value)) if isinstance(value, list) else str(value)
                arguments += [f"--{name.replace('_', '-')}", text]
        return arguments

    def _check(self) -> None:
        """Raise click.UsageError unless the options name one model."""
        if self.model == "demo":
            refuse("demo", "var", "vae", *CHOSEN, *UNTOLD, "preset", "random_weights", "class_names")
        elif self.random_weights:
            if self.preset is None:
                raise click.UsageError("--random-weights needs --preset")
            refuse("--random-weights", "var", "vae", *CHOSEN, *UNTOLD)
        elif self.var is not None and self.vae is not None:
            if self.preset is not None:
                refuse("--preset", *UNTOLD)
        else:
            context = click.get_current_context()
            random = "random_weights" in context.params
            raise click.UsageError(
                f"which model? Give --var and --vae, {'or --preset with --random-weights, ' if random else ''}"
                f"or `{context.command_path} demo`"
            )


_MODEL = (
    click.argument("model", required=False, type=click.Choice(["demo"])),
    click.option("--var", type=CHECKPOINT, help="The transformer's checkpoint (.pth, .safetensors, or an index)."),
    click.option("--vae", type=CHECKPOINT, help="The VQVAE's checkpoint (the same)."),
    click.option("--weights", metavar="NAME", help="Which of several sets of weights in --var, such as ema."),
    click.option("--vae-weights", metavar="NAME", help="Which of several in --vae."),
    click.option("--preset", metavar="NAME", help="An official release: var-d16, -d20, -d24, -d30 or -d36."),
    click.option(
        "--patch-nums",
        type=IntegerList(),
        metavar="1,2,…",
        help="Side lengths of the stages, if the checkpoint does not tell.",
    ),
    click.option(
        "--num-heads", type=click.IntRange(1), help="Number of heads, if the checkpoint does not tell (no l2 norm)."
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
        help="Class names: one per line, CSV, or a list or a dictionary by ids, in JSON or as Python writes it.",
    ),
)


def model_options(*, to_build: bool = False) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """The options that name a model; the command gets them as one `ModelOptions`, `model`.

    Args:
        to_build: also those of a model that is only to be built: random weights, and names of its classes.
    """

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        @functools.wraps(command)
        def collected(**values: object) -> None:
            names = [field.name for field in fields(ModelOptions) if field.name in values]
            model = ModelOptions(**{name: values.pop(name) for name in names})  # type: ignore[arg-type]
            model._check()
            command(model=model, **values)

        for option in reversed((*_MODEL, *(_MODEL_TO_BUILD if to_build else ()))):
            collected = option(collected)
        return collected

    return decorate
