"""The options of the paper's tables that name a VAR; where none is given, the demo model is measured."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import TYPE_CHECKING

import click

from nextscale.cli.model_options import UNTOLD, VAROptions
from nextscale.cli.options import CHECKPOINT, is_given
from nextscale.models.sources import require_plain_name
from nextscale.runtime._input_arrays import scalar_array
from nextscale.runtime._manifest import ModelInfo
from nextscale.runtime._var_request import var_request

if TYPE_CHECKING:
    from nextscale.models.var.sources import VARSource

DEMO = "demo"
MODEL = ("var", "vae", "weights", "vae_weights", "preset", "random_weights")
RANDOM_WEIGHTS = "the weights are random: the figures tell nothing but what they take"
_OPTIONS = (
    click.option("--var", type=CHECKPOINT, help="An official VAR's checkpoint.  [default: the demo model]"),
    click.option("--vae", type=CHECKPOINT, help="The checkpoint of its VAE."),
    click.option("--weights", metavar="NAME", help="Which of several sets of weights in --var."),
    click.option("--vae-weights", metavar="NAME", help="Which of several in --vae."),
    click.option(
        "--preset", metavar="NAME", help="The release that --var is of, such as var-d16, if it does not tell."
    ),
    click.option("--random-weights", is_flag=True, help="Fill --preset with random weights, to see what it takes."),
)


def paper_model(command: Callable[..., object]) -> Callable[..., object]:
    """The options; the command gets them as one `VAROptions`, `model`."""

    @functools.wraps(command)
    def collected(**values: object) -> None:
        given = {name: values.pop(name) for name in MODEL}
        named = any(map(is_given, MODEL))
        options: dict[str, object] = {**given, **dict.fromkeys(UNTOLD[:2]), "quant_resi": 0.5}
        model = VAROptions(model=None if named else DEMO, **options)  # type: ignore[arg-type]
        if named and not model.random_weights and (model.var is None or model.vae is None):
            raise click.UsageError("which model? Give --var and --vae, or neither for the demo model")
        model.check()
        command(model=model, **values)

    decorated: Callable[..., object] = collected
    for option in reversed(_OPTIONS):
        decorated = option(decorated)
    return decorated


def source_of(model: VAROptions) -> VARSource:
    """Read the model, or fill it with random weights; its bundles have the demo's, the checkpoint's or the preset's
    name."""
    if model.model == DEMO:
        return model.source(DEMO)
    return model.source(require_plain_name(model.var.stem) if model.var is not None else str(model.preset))


def require_sampling(model: ModelInfo, **values: float | None) -> None:
    """Raise RequestError unless the model's requests may have these values of cfg_scale, top_k and top_p."""
    limits = {item.name: item for item in var_request(model)}
    for name, value in values.items():
        scalar_array(limits[name], value)
