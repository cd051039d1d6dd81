"""What simulated_images.py prints: its rows as the paper's Tables 1 and 4 and Fig. 5(c-d), and the list of them."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from provenance import commit

from nextscale.measure.statistics import Interval, mean_interval

Row = Mapping[str, Any]
Rows = Mapping[tuple[str, int], Row]  # by recipe and seed

BITS = ("w8a8", "w6a6", "w4a8", "w4a6", "w4a4")
METHODS = {"rtn": "nearest", "brecq": "BRECQ", "litevar": "LiteVAR", "ours": "Ours", "ours-litevar": "Ours+LiteVAR"}
DEFAULTS = {"nearest": "nearest", "default": "learned rounding"}
# Table 4: shift-and-sum, resample.
ABLATION = {"brecq": "neither", "shift-and-sum": "shift-and-sum", "resample": "resample", "ours": "both"}
# Fig. 5(c-d): the budget of extra operations, %.
BUDGETS = {
    "brecq-w4a6": 0.0,
    "budget-0.25-w4a6": 0.25,
    "budget-0.5-w4a6": 0.5,
    "ours-w4a6": 1.0,
    "budget-2-w4a6": 2.0,
    "budget-5-w4a6": 5.0,
}
# Figure, its name and its decimals.
FIGURES = {
    "kl": ("KL", 4),
    "fid_e": ("FID-E", 2),
    "fid_e_to_full_precision": ("FID-E (fp)", 2),
    "is_e": ("IS-E", 2),
}


def report(results: Sequence[Row], bundles: Mapping[str, Row]) -> list[str]:
    """The lines of results/images.md.

    Args:
        results: what simulated_images.py measured.
        bundles: results of recipes.py by recipe, to compare with; may be empty.
    """
    rows = {(row["recipe"], row["seed"]): row for row in results}
    return [
        *_head(results),
        *_section("Full precision by seed: the noise floor", _noise_floor(rows)),
        *_section("The paper's methods (Table 1), seed 0", _by_bits(rows, METHODS)),
        *_section("The low-bit defaults: weights rounded to nearest and learned, seed 0", _by_bits(rows, DEFAULTS)),
        *_section("Ours against BRECQ, by seed", _paired(rows, ("w4a6", "w4a4"), {"ours": "Ours"})),
        *_section("Parts of the method at W4A6 (Table 4)", _means(rows, {f"{m}-w4a6": ABLATION[m] for m in ABLATION})),
        *_paired(rows, ("w4a6",), {method: name for method, name in ABLATION.items() if method != "brecq"}),
        *_section("Budget of extra operations at W4A6 (Fig. 5(c-d))", _budgets(rows)),
        *_section("Simulation and bundles", _bundles(rows, bundles)),
        *_section("All rows", _list(results)),
    ]


def _head(results: Sequence[Row]) -> list[str]:
    machines = sorted({f"{row['machine']}, torch {row['torch']}" for row in results})
    counts = sorted({(row["images"], row["agreement_images"]) for row in results})
    return [
        "# Pictures of the demo model by recipe",
        "",
        "- program: `python benchmarks/simulated_images.py`: the transformer simulated in torch, a float32 decoder",
        f"- printed at commit {commit()}; measured on {'; '.join(machines)}",
        *(f"- {n} pictures per row for FID-E and IS-E, {m} token maps for KL and top-1" for n, m in counts),
        "- cfg_scale 4, top_k and top_p as by default; KL in nats per token, ± is the standard error over images",
        "- FID-E (fp) is to full precision's pictures of the same seed; in the rows fp32 to its pictures of seed 0",
        "- a seed is that of the learned rounding (W4A6 and W4A4) and of the pictures; calibration, theta and the "
        "token maps for KL are the same for all",
    ]


def _section(title: str, lines: list[str]) -> list[str]:
    return ["", f"## {title}", *lines]


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    head, *body = ("| " + " | ".join(cells) + " |" for cells in (header, *rows))
    return ["", head, "|" + "---|" * len(header), *body]


def _noise_floor(rows: Rows) -> list[str]:
    cells = [
        [recipe, str(seed), *(_figure(row, key) for key in ("fid_e", "fid_e_to_full_precision", "is_e"))]
        for (recipe, seed), row in sorted(rows.items())
        if recipe in ("fp32", "default")
    ]
    return _table(["recipe", "seed", "FID-E", "FID-E (fp)", "IS-E"], cells)


def _by_bits(rows: Rows, methods: Mapping[str, str]) -> list[str]:
    """A table a figure: a line for each setting of bits, a column for each method."""
    lines: list[str] = []
    for key, (name, _) in (*FIGURES.items(), ("top1", ("top-1", 0))):
        cells = []
        for bits in BITS:
            found = [rows.get((recipe_name(method, bits), 0)) for method in methods]
            cells.append([bits.upper(), *(_figure(row, key) if row else "" for row in found)])
        lines += _table([name, *methods.values()], cells)
    return lines


def recipe_name(method: str, bits: str) -> str:
    return "default" if (method, bits) == ("nearest", "w8a8") else f"{method}-{bits}"


def seeds_of(rows: Rows, recipe: str) -> list[int]:
    return sorted(seed for name, seed in rows if name == recipe)


def _means(rows: Rows, recipes: Mapping[str, str]) -> list[str]:
    cells = []
    for recipe, name in recipes.items():
        seeds = seeds_of(rows, recipe)
        values = [np.array([rows[recipe, seed][key] for seed in seeds]) for key in FIGURES]
        spread = [
            f"{found.mean():.{decimals}f} ± {found.std(ddof=1) if len(found) > 1 else math.nan:.{decimals}f}"
            for found, (_, decimals) in zip(values, FIGURES.values(), strict=True)
        ]
        cells.append([name, str(len(seeds)), *spread])
    lines = _table(["", "seeds", *(name for name, _ in FIGURES.values())], cells)
    return ["", "Mean ± standard deviation over seeds.", *lines]


def _paired(rows: Rows, bits: Sequence[str], methods: Mapping[str, str]) -> list[str]:
    cells = [
        [width.upper(), name, FIGURES[key][0], *_difference(rows, f"{method}-{width}", f"brecq-{width}", key)]
        for width in bits
        for method, name in methods.items()
        for key in FIGURES
    ]
    return [
        "",
        "Differences to BRECQ with the same seed, the mean and its 95% interval (Student's t over seeds).",
        *_table(["W/A", "", "figure", "by seed", "mean", "standard error", "95% interval"], cells),
    ]


def difference(rows: Rows, recipe: str, other: str, key: str) -> tuple[list[float], Interval]:
    """Differences of a figure by seed, and their mean."""
    seeds = sorted({*seeds_of(rows, recipe)} & {*seeds_of(rows, other)})
    found = [rows[recipe, seed][key] - rows[other, seed][key] for seed in seeds]
    return found, mean_interval(found)


def _difference(rows: Rows, recipe: str, other: str, key: str) -> list[str]:
    found, mean = difference(rows, recipe, other, key)
    error = np.std(found, ddof=1) / math.sqrt(len(found)) if len(found) > 1 else math.nan
    form: Callable[[float], str] = f"{{:+.{FIGURES[key][1]}f}}".format
    interval = f"[{form(mean.low)}, {form(mean.high)}]"
    return [", ".join(map(form, found)), form(mean.mean), form(float(error)).lstrip("+"), interval]


def _budgets(rows: Rows) -> list[str]:
    recipes = {"resample-w4a6": "0, with resample"} | {name: f"{budget:g}%" for name, budget in BUDGETS.items()}
    return [
        "",
        "0% is BRECQ; rows above 0% have resampled token maps. All budgets have the rounding learned at 1%.",
        *_means(rows, recipes),
    ]


def _bundles(rows: Rows, bundles: Mapping[str, Row]) -> list[str]:
    cells = []
    for name, bundle in bundles.items():
        row = rows.get((name, 0))
        if row is not None:
            simulated, real = row["kl"], bundle["kl"]
            top1 = f"{row['top1']:.1%}", f"{bundle['top1']:.1%}"
            cells.append([name, f"{simulated:.4f}", f"{real:.4f}", f"{real / simulated - 1:+.1%}", *top1])
    header = ["recipe", "KL, simulated", "KL, bundle", "difference", "top-1, simulated", "top-1, bundle"]
    return [
        "",
        "The bundles' integer graphs: results/recipes.md. They calibrate on 64 images, the simulation on the recipe's "
        "number: 64 for default*, 256 for the others.",
        *_table(header, cells),
    ]


def _list(results: Sequence[Row]) -> list[str]:
    cells = [
        [
            row["recipe"],
            str(row["seed"]),
            f"{row['kl']:.4f} ± {row['kl_stderr']:.4f}",
            f"{row['top1']:.1%}",
            f"{row['fid_e']:.2f}",
            _figure(row, "fid_e_to_full_precision"),
            f"{row['is_e']:.2f} ± {row['is_e_stderr']:.2f}",
        ]
        for row in sorted(results, key=lambda row: (row["kl"], row["seed"]))
    ]
    return [
        "",
        "Best agreement first.",
        *_table(["recipe", "seed", "KL", "top-1", "FID-E", "FID-E (fp)", "IS-E"], cells),
    ]


def _figure(row: Row, key: str) -> str:
    if key == "top1":
        return f"{row[key]:.1%}"
    if key == "fid_e_to_full_precision" and (row["recipe"], row["seed"]) == ("fp32", 0):
        return ""  # to itself
    return f"{row[key]:.{FIGURES[key][1]}f}"
