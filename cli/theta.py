"""`nextscale theta`: the threshold of attentive tokens, and what shift-and-sum costs with it."""

from __future__ import annotations

import importlib.util
import json
import math
import re
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import numpy as np
from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table

from nextscale.cli.options import BUNDLE, json_file, threads
from nextscale.cli.progress import show_steps
from nextscale.cli.results import results_console
from nextscale.models.bit_operations import BitWidths, Cost, model_cost
from nextscale.models.var.layers import facts_of_bundle
from nextscale.paper.paper_table import prefixed
from nextscale.paper.table_b import THETAS
from nextscale.runtime._bundle import Bundle
from nextscale.runtime._errors import NextscaleError
from nextscale.runtime._session import SessionOptions
from nextscale.runtime.image_io import Writer, require_writable, write_files

if TYPE_CHECKING:
    from nextscale.calib_data.choose_theta import Overhead, ThetaChoice


class Percentage(click.ParamType):
    """A percentage: 1% or 0.5%; as a share of 1."""

    name = "percentage"

    def convert(self, value: str | float, param: click.Parameter | None, ctx: click.Context | None) -> float:
        if isinstance(value, float):
            return value
        try:
            share = float(value.removesuffix("%")) / 100 if value.endswith("%") else math.nan
        except ValueError:
            share = math.nan
        if not 0 < share <= 1:
            self.fail(f"{value!r} is not a percentage above 0% and up to 100%, such as 1%", param, ctx)
        return share


class Bits(click.ParamType):
    """Bits of weights and activations: 4/6."""

    name = "weights/activations"

    def convert(self, value: str | BitWidths, param: click.Parameter | None, ctx: click.Context | None) -> BitWidths:
        if isinstance(value, BitWidths):
            return value
        match = re.fullmatch(r"(\d{1,2})/(\d{1,2})", value)
        bits = [int(number) for number in match.groups()] if match else []
        if not bits or not all(1 <= number <= 16 for number in bits):
            self.fail(f"{value!r} is not bits of weights and activations from 1 to 16, such as 4/6", param, ctx)
        return BitWidths(*bits)


@click.command()
@click.argument("bundle_dir", metavar="DIR", type=BUNDLE)
@click.option("--budget", type=Percentage(), default="1%", show_default=True, help="Extra operations that are allowed.")
@click.option("--bits", type=Bits(), default="4/6", show_default=True, help="Bits of weights/activations.")
@click.option("--images", type=click.IntRange(1), default=32, show_default=True)
@click.option("--seed", type=click.IntRange(0, 2**63 - 1), default=0, show_default=True)
@threads
@json_file
@click.option(
    "--plot",
    "plot_path",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="A plot of the attentive tokens as PNG.",
)
def theta(
    bundle_dir: Path,
    budget: float,
    bits: BitWidths,
    images: int,
    seed: int,
    threads: int,
    json_path: Path | None,
    plot_path: Path | None,
) -> None:
    """Choose theta for the model of the full-precision bundle DIR.

    A token is attentive if the attention that it gets, averaged over the queries, is above theta. There are two ways of
    giving such tokens more precision: 2n shifted copies (duplicate) or one extra row (residual). For each, this finds
    the smallest theta whose extra operations are within the budget.
    """
    from nextscale.calib_data.attention_scores import sampled_scores
    from nextscale.calib_data.choose_theta import FORMS, attentive_shares, choose_theta, overhead

    if plot_path is not None and plot_path.suffix.lower() != ".png":
        raise click.UsageError(f"--plot {plot_path}: the plot is written as PNG; give a name that ends in .png")
    if plot_path is not None and importlib.util.find_spec("matplotlib") is None:
        raise NextscaleError('--plot needs matplotlib, which is not installed: pip install "nextscale[eval]"')
    bundle = Bundle.open(bundle_dir)
    bundle.require_classes("theta is chosen for VAR alone")
    require_writable([path for path in (json_path, plot_path) if path is not None], bundle.paths())
    recipe = bundle.manifest.recipe["name"]
    if recipe != "fp32":
        raise NextscaleError(
            f"{bundle_dir}: recipe {recipe}, but theta is chosen from full precision: build with --precision fp32"
        )
    with show_steps() as progress:
        statistics = sampled_scores(
            bundle,
            images,
            seed,
            SessionOptions(threads=threads),
            lambda done: progress("observing attention", done, images),
        )
    facts = facts_of_bundle(bundle)
    choices = [choose_theta(statistics, bundle.model, facts, bits, budget, form) for form in FORMS]
    overheads = [
        overhead(statistics, bundle.model, facts, bits, value, choice.form)
        for choice in choices
        for value in sorted({*THETAS, choice.theta})
    ]
    thetas = sorted({found.theta for found in overheads})
    shares = attentive_shares(statistics, bundle.model, thetas)
    baseline = model_cost(bundle.model, facts, bits)
    console = results_console(json_path, plot_path)
    _print(console, bundle.manifest.name, bits, baseline, overheads, choices, thetas, shares)
    writers: dict[Path, Writer] = {}
    if json_path is not None:
        report = _report(bits, baseline, overheads, choices, thetas, shares)
        text = json.dumps({"bundle": str(bundle_dir), "images": images, "seed": seed, **report}, indent=1) + "\n"
        writers[json_path] = lambda file: file.write(text.encode())
    if plot_path is not None:
        from nextscale.calib_data.plot_theta import plot_attentive_share

        title = f"Attentive tokens of {bundle.manifest.name}, {images} images"
        writers[plot_path] = lambda file: plot_attentive_share(file, shares, thetas, title)
    write_files(writers)


def _report(
    bits: BitWidths,
    baseline: Cost,
    overheads: Sequence[Overhead],
    choices: Sequence[ThetaChoice],
    thetas: Sequence[float],
    shares: np.ndarray,
) -> dict[str, Any]:
    return {
        "bits": asdict(bits),
        "baseline": asdict(baseline),
        "overheads": [asdict(found) for found in overheads],
        "choices": [asdict(choice) for choice in choices],
        "attentive_shares": {f"{value:g}": share.tolist() for value, share in zip(thetas, shares, strict=True)},
    }


def _print(
    console: Console,
    name: str,
    bits: BitWidths,
    baseline: Cost,
    overheads: Sequence[Overhead],
    choices: Sequence[ThetaChoice],
    thetas: Sequence[float],
    shares: np.ndarray,
) -> None:
    console.width = max(console.width, 120) if not console.is_terminal else console.width
    console.print(
        f"{name} at {bits} bits, one image and row without guidance: {prefixed(baseline.operations)} BOPs, "
        f"weights and cache {prefixed(baseline.memory)}bit"
    )
    console.print(_cost_table(overheads))
    console.print("Tokens above theta, % by stage:")
    console.print(_share_table(thetas, shares))
    for choice in choices:
        console.print(
            f"{choice.form}: theta {choice.theta:g} costs {choice.extra_share:.2%} of a budget of {choice.budget:.2%}, "
            f"orders up to {choice.max_order}; extra rows per head by stage, too few for at most {choice.overflow:.1%} "
            f"of the heads: {' '.join(map(str, choice.rows))}"
        )


def _cost_table(overheads: Sequence[Overhead]) -> Table:
    table = Table(box=SIMPLE)
    table.add_column("form", no_wrap=True)
    for header in ("theta", "max order", "Eq. 11", "duplicate & shift", "Eq. 13", "extra BOPs", "extra", "memory, bit"):
        table.add_column(header, justify="right", no_wrap=True)
    for found in overheads:
        parts = [prefixed(cost.operations) for cost in (found.scores, found.duplicate, found.aggregate, found.total)]
        table.add_row(
            found.form,
            f"{found.theta:g}",
            str(found.max_order),
            *parts,
            f"{found.share:.2%}",
            prefixed(found.total.memory),
        )
    return table


def _share_table(thetas: Sequence[float], shares: np.ndarray) -> Table:
    table = Table("theta", box=SIMPLE)
    for stage in range(shares.shape[1]):
        table.add_column(str(stage + 1), justify="right", no_wrap=True)
    for value, by_stage in zip(thetas, shares, strict=True):
        table.add_row(f"{value:g}", *(f"{100 * share:.3g}" for share in by_stage))
    return table
