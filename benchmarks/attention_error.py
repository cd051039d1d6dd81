"""The error of attention's product with the values, by stage and block: how much is A's, how much V's (Fig. 1, 5).

REFERENCE is the full-precision bundle, which samples the token maps; BUNDLES are quantized ones of the same model.
Those that differ in shift-and-sum alone share a panel of the plot.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import click
import numpy as np
from numpy.typing import NDArray
from provenance import RESULTS, provenance, publish

from nextscale.evaluate._noise_correlation import PAIRS
from nextscale.evaluate.attention_error import AttentionError, as_json, attention_errors, by_block, by_stage
from nextscale.evaluate.plot_attention_error import Curve, plot_attention_error
from nextscale.runtime._bundle import Bundle
from nextscale.runtime._request import DEFAULT_CFG_SCALE
from nextscale.runtime._session import SessionOptions

Array = NDArray[np.float64]


def table(head: str, count: int, rows: dict[str, Array], form: str) -> list[str]:
    """Markdown of one figure, a row a bundle, with the mean before."""
    lines = [f"| {head} | mean | {' | '.join(str(i + 1) for i in range(count))} |", "|---" * (count + 2) + "|"]
    for name, values in rows.items():
        known = values[~np.isnan(values)]
        cells = [form.format(known.mean()) if known.size else "-"]
        cells += ["-" if np.isnan(value) else form.format(value) for value in values]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return lines


def settings(recipes: dict[str, dict[str, Any]]) -> list[str]:
    """Markdown of what distinguishes the bundles."""
    lines = [
        "| bundle | A | bits of A and V | shift-and-sum | theta | integer linear layers | KL when built |",
        "|---" * 7 + "|",
    ]
    for name, recipe in recipes.items():
        attention = recipe.get("attention", {"products": "float"})
        kl = f"{recipe['agreement']['kl']:.3f}" if "agreement" in recipe else "-"
        theta = recipe["shift_and_sum"]["theta"] if "shift_and_sum" in recipe else "-"
        layers = len(recipe.get("kernels", {}).get("stage", {}))
        if attention["products"] == "float":
            lines.append(f"| {name} | float | - | - | - | {layers} | {kl} |")
        else:
            cells = (attention["weights"], recipe["activations"]["bits"], attention["shift_and_sum"], theta)
            lines.append(f"| {name} | {' | '.join(map(str, cells))} | {layers} | {kl} |")
    return lines


def correlations(found: dict[str, AttentionError]) -> list[str]:
    """Markdown of Table A."""
    lines = [
        "| bundle | noises of | of all pairs | of each stage and block: mean magnitude | largest | pairs |",
        "|---|---|---|---|---|---|",
    ]
    for name, error in found.items():
        pooled, pairs = error.pooled_correlations()
        for k, kind in enumerate(PAIRS):
            each = np.abs(error.correlations()[..., k])
            each = each[~np.isnan(each)]
            lines.append(
                f"| {name} | {kind} | {pooled[k]:.1e} | {each.mean():.1e} | {each.max():.1e} | {pairs[k]:.1e} |"
                if each.size
                else f"| {name} | {kind} | - | - | - | 0 |"
            )
    return lines


def panel_and_label(recipe: dict[str, Any]) -> tuple[str, str]:
    """Where a bundle is drawn, and how its line is called."""
    attention = recipe.get("attention", {"products": "float"})
    if attention["products"] == "float":
        return "float", "float"
    form = attention["shift_and_sum"]
    bits = recipe["activations"]["bits"]
    return f"A: {attention['weights']}, {bits} bits", "plain" if form == "off" else "shift-and-sum"


@click.command()
@click.argument("reference", type=Path)
@click.argument("bundles", type=Path, nargs=-1, required=True)
@click.option("--images", type=click.IntRange(1), default=16, show_default=True)
@click.option("--seed", type=int, default=1, show_default=True)
@click.option("--cfg-scale", type=float, default=DEFAULT_CFG_SCALE, show_default=True)
@click.option("--threads", type=int, default=2, show_default=True)
@click.option("--name", default="attention_error", show_default=True, help="Of the result files.")
def main(
    reference: Path, bundles: tuple[Path, ...], images: int, seed: int, cfg_scale: float, threads: int, name: str
) -> None:
    """Measure, print and keep the results."""
    opened = {path.name: Bundle.open(path) for path in bundles}
    if len(opened) < len(bundles):
        raise click.UsageError("two bundles have the same name")
    errors = attention_errors(
        Bundle.open(reference),
        list(opened.values()),
        SessionOptions(threads=threads),
        images=images,
        seed=seed,
        cfg_scale=cfg_scale,
        on_images=lambda done: print(f"{done}/{images * len(opened)}", file=sys.stderr),
    )
    found = dict(zip(opened, errors, strict=True))
    model = errors[0].relative.shape
    lines = [
        "# The error of attention's product with the values",
        "",
        *provenance(threads),
        f"- {images} images, token maps sampled by {reference.name} at cfg_scale {cfg_scale:g}, seed {seed}",
        "- error: the integer product of the bundle's graph less A V of the float A and V at its inputs; relative: "
        "sqrt(sum error² / sum (A V)²)",
        "- by stage: mean over blocks; by block: mean over stages",
    ]
    recipes = {n: {k: v for k, v in b.manifest.recipe.items() if k != "kernels"} for n, b in opened.items()}
    percent, small = "{:.2%}", "{:.1e}"
    sections = {
        f"Bundles (recipes: {name}.json)": settings({n: dict(b.manifest.recipe) for n, b in opened.items()}),
        "Relative error, by stage": table(
            "bundle", model[0], {n: by_stage(e.relative) for n, e in found.items()}, percent
        ),
        "The same with V exact: what shift-and-sum can reach at most": table(
            "bundle", model[0], {n: by_stage(e.relative_of_weights) for n, e in found.items()}, percent
        ),
        "The same with A exact": table(
            "bundle", model[0], {n: by_stage(e.relative_of_values) for n, e in found.items()}, percent
        ),
        "V's share of the squared error, by stage": table(
            "bundle", model[0], {n: by_stage(e.values_share) for n, e in found.items()}, "{:.0%}"
        ),
        "The two parts' squares over the error's: 1 where the split is exact": table(
            "bundle", model[0], {n: by_stage(e.explained) for n, e in found.items()}, "{:.2f}"
        ),
        "Mean squared error, by stage": table(
            "bundle", model[0], {n: by_stage(e.mean_squared) for n, e in found.items()}, small
        ),
        "Relative error, by block": table(
            "bundle", model[1], {n: by_block(e.relative) for n, e in found.items()}, percent
        ),
        "V's share of the squared error, by block": table(
            "bundle", model[1], {n: by_block(e.values_share) for n, e in found.items()}, "{:.0%}"
        ),
        "Pearson's correlation of quantization noises (Table A)": correlations(found),
    }
    for title, rows in sections.items():
        lines += ["", f"## {title}", "", *rows]
    lines += ["", f"![Relative error by stage]({name}.png)"]
    publish(name, lines)
    document = {n: {"recipe": recipes[n], **as_json(error)} for n, error in found.items()}
    (RESULTS / f"{name}.json").write_text(json.dumps(document) + "\n", encoding="utf-8")
    panels: dict[str, dict[str, Curve]] = {}
    for n, error in found.items():
        panel, label = panel_and_label(recipes[n])
        curves = panels.setdefault(panel, {})
        curves[n if label in curves else label] = Curve(by_stage(error.relative), by_stage(error.relative_of_weights))
    with (RESULTS / f"{name}.png").open("wb") as file:
        plot_attention_error(file, panels, "Error of attention's product with the values")


if __name__ == "__main__":
    main()
