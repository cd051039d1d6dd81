"""The options of the paper's tables that say how rounding is learned where there is none."""

from __future__ import annotations

import functools
from collections.abc import Callable

import click

from nextscale.cli import options
from nextscale.paper.recipe_bundles import Learning
from nextscale.simulation._device import Device, require_device
from nextscale.simulation.reconstruction_settings import ReconstructionSettings

Command = Callable[..., object]
_LEARNING = (
    click.option("--learn", is_flag=True, help="Learn the rounding that is not there, which takes hours on a CPU."),
    click.option("--iterations", type=click.IntRange(1), default=ReconstructionSettings.iterations, show_default=True,
                 help="With --learn: steps a unit."),
    click.option("--learning-batch", type=click.IntRange(1), default=ReconstructionSettings.batch_size,
                 show_default=True, help="With --learn: images per step."),
)  # fmt: skip
_SIMULATED = click.option("--simulated", is_flag=True,
                          help="Draw in torch what the bundles' graphs would, with a float decoder, on --device: "
                          "minutes on a GPU.")  # fmt: skip


def _device(told: str) -> Callable[[Command], Command]:
    return click.option("--device", type=click.Choice(["cpu", "cuda"]), default="cpu", show_default=True, help=told)


def learning_options(command: Command) -> Command:
    """--learn and what goes with it; the command gets them as `learning`, a `Learning` or None."""

    @functools.wraps(command)
    def collected(learn: bool, iterations: int, learning_batch: int, device: Device, **values: object) -> None:
        if not learn:
            options.refuse("a table without --learn", "iterations", "learning_batch", "device")
        command(learning=_learning(learn, iterations, learning_batch, device), **values)

    return _with((*_LEARNING, _device("With --learn: where to learn.")), collected)


def learning_or_simulated_options(command: Command) -> Command:
    """The same, and --simulated, which the command gets as a `Device` or None, `simulated`."""

    @functools.wraps(command)
    def collected(
        learn: bool, iterations: int, learning_batch: int, simulated: bool, device: Device, **values: object
    ) -> None:
        if not learn:
            options.refuse("a table without --learn", "iterations", "learning_batch")
        if not (learn or simulated):
            options.refuse("a table without --learn and --simulated", "device")
        if simulated:
            require_device(device)
        learning = _learning(learn, iterations, learning_batch, device)
        command(learning=learning, simulated=device if simulated else None, **values)

    device = _device("With --learn and --simulated: where to compute.")
    return _with((*_LEARNING, _SIMULATED, device), collected)


def _learning(learn: bool, iterations: int, batch: int, device: Device) -> Learning | None:
    if not learn:
        return None
    require_device(device)
    return Learning(ReconstructionSettings(iterations, batch), device)


def _with(given: tuple[Callable[[Command], Command], ...], command: Command) -> Command:
    for option in reversed(given):
        command = option(command)
    return command
