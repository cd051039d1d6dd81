"""Options and arguments that several commands share."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

from nextscale.runtime._cpus import default_threads
from nextscale.runtime._manifest import Manifest, ModelInfo
from nextscale.runtime._operators import OPS, Choice
from nextscale.runtime._request import DEFAULT_CFG_SCALE, DEFAULT_TOP_K, DEFAULT_TOP_P
from nextscale.runtime._sizes import Size, nearest_ratio, sizes_of_area
from nextscale.runtime._wording import shown_value

BUNDLE = click.Path(path_type=Path)
CHECKPOINT = click.Path(path_type=Path)

threads = click.option(
    "--threads",
    type=click.IntRange(0, 1024),
    default=0,
    metavar="N",
    help="Threads to compute with; 0 (default): one for each physical core that may be used, within the CPU quota.",
)
reduce_range_option = click.option(
    "--reduce-range",
    is_flag=True,
    help="For CPUs without VNNI, where integer products saturate: slightly coarser weights with which they never do.",
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
bundle_cfg_scale = click.option("--cfg-scale", type=float, help="Guidance; 0: none.  [default: the bundle's]")
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
        index: among the bundle's sizes.
        model: at that size.
        settings: of a request, and what a picture holds of them; nothing where the bundle has one size.
    """

    index: int
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
    """
    if ratio is None and photograph is not None and manifest.sizes:
        ratio = nearest_ratio(sizes_of_area(manifest.sizes, area), photograph)
    index = manifest.choose_size(area, ratio)
    if not manifest.sizes:
        return ChosenSize(index, manifest.model, {})
    found = manifest.sizes[index]
    return ChosenSize(index, manifest.models[index], {"area": found.area, "ratio": found.ratio_in_words})


json_file = click.option(
    "--json", "json_path", type=click.Path(path_type=Path), metavar="FILE", help="All figures as JSON."
)
markdown_file = click.option(
    "--markdown", "markdown_path", type=click.Path(path_type=Path), metavar="FILE", help="As Markdown."
)
plan = click.option(
    "--plan", is_flag=True, help="Print what is left to do, about its hours and gigabytes, and stop; nothing is built."
)
calibration_images = click.option(
    "--calibration-images",
    type=click.IntRange(1),
    metavar="N",
    help="At most this many, instead of each recipe's number.",
)
roundings = click.option(
    "--roundings",
    type=click.Path(path_type=Path, file_okay=False, exists=True),
    metavar="DIR",
    help="Folder with the model's learned rounding, as RECIPE.safetensors.",
)
picture_batch = click.option(
    "--batch", type=click.IntRange(1), default=8, show_default=True, help="Pictures at a time."
)
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
    given = [option_name(option) for option in options if is_given(option)]
    if given:
        raise click.UsageError(f"{what} does not go with {', '.join(given)}")


def option_name(parameter: str) -> str:
    """Such as --vae-weights, or --json of `json_path`."""
    known = {str(option.name): option.opts[0] for option in click.get_current_context().command.params}
    return known.get(parameter, f"--{parameter.replace('_', '-')}")


def is_given(option: str) -> bool:
    """Whether the command line gives an option; one that the command does not have is not given either."""
    return click.get_current_context().get_parameter_source(option) not in (None, ParameterSource.DEFAULT)
