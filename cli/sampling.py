"""How `generate` and `edit` sample: options whose defaults are the bundle's."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any

import click

from nextscale.cli import options
from nextscale.runtime._manifest import Manifest

_OPTIONS = (
    click.option("--cfg-scale", "--cfg", type=float, help="Guidance.  [default: the bundle's]"),
    click.option("--tau", type=float, help="Temperature, where the bundle takes one.  [default: the bundle's]"),
    click.option("--top-k", type=int, help="Sample from the k likeliest tokens; 0: off.  [default: the bundle's]"),
    click.option(
        "--top-p",
        type=float,
        help="Of these, the likeliest of this total probability; 0: off.  [default: the bundle's]",
    ),
    options.more_smooth,
)


@dataclass(frozen=True)
class Sampling:
    """What the command line says of sampling; None: nothing."""

    cfg_scale: float | None
    tau: float | None
    top_k: int | None
    top_p: float | None
    more_smooth: bool

    def settings(self, manifest: Manifest) -> dict[str, Any]:
        """The settings of a request, defaults included: what a picture is to hold of how it was sampled."""
        defaults = {item.name: item.default for item in manifest.request if item.kind == "scalar"}
        found: dict[str, Any] = {}
        for name in ("cfg_scale", "tau", "top_k", "top_p"):
            value, default = getattr(self, name), defaults.get(name, ())
            if value is not None:
                found[name] = value
            elif default:
                found[name] = default[0] if len(default) == 1 else list(default)
        if self.more_smooth or manifest.input_of_kind("label") is not None:
            found["more_smooth"] = self.more_smooth
        return found


def sampling_options(command: Callable[..., object]) -> Callable[..., object]:
    """Those options; the command gets them as one `Sampling`, `sampling`."""

    @functools.wraps(command)
    def collected(**values: Any) -> object:
        sampling = Sampling(**{field.name: values.pop(field.name) for field in fields(Sampling)})
        return command(sampling=sampling, **values)

    for option in reversed(_OPTIONS):
        collected = option(collected)
    return collected
