"""The options of the paper's tables that name a VAR; where none is given, the demo model is measured."""

from __future__ import annotations

import functools
from collections.abc import Callable

import click

from nextscale.cli.model_options import UNTOLD, VAROptions
from nextscale.cli.options import CHECKPOINT, is_given

DEMO = "demo"
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


def paper_model(command: Callable[..., None]) -> Callable[..., None]:
    """The options; the command gets them as one `VAROptions`, `model`."""

    @functools.wraps(command)
    def collected(**values: object) -> None:
        given = {
            name: values.pop(name) for name in ("var", "vae", "weights", "vae_weights", "preset", "random_weights")
        }
        named = any(is_given(name) for name in given)
        options: dict[str, object] = {**given, **dict.fromkeys(UNTOLD[:2]), "quant_resi": 0.5}
        model = VAROptions(model=None if named else DEMO, **options)  # type: ignore[arg-type]
        if named and not model.random_weights and (model.var is None or model.vae is None):
            raise click.UsageError("which model? Give --var and --vae, or neither for the demo model")
        model.check()
        command(model=model, **values)

    for option in reversed(_OPTIONS):
        collected = option(collected)
    return collected
