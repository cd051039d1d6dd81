"""Has a bundle become slower beside full precision than the committed results say?

    python benchmarks/guard.py                    # the demo model's bundles, built where they are missing
    python benchmarks/guard.py --baseline benchmarks/results/table_c_var-d16_xeon.json --work out/table-c

Of stock graphs. Times differ from machine to machine and from hour to hour; ratios of interleaved runs hardly do. A
ratio is a regression if it is below the committed one by more than the band and both ratios' own uncertainties; then
the exit code is 1. The baseline is a JSON file of w8a8_front.py or of `nextscale table-c`; the latter's bundles must
lie in WORK, by their recipes' names.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
from progress import log
from provenance import RESULTS
from recipe_bundles import FULL_PRECISION, RecipeBundles, find_recipe
from w8a8_front import measure_speeds

from nextscale.measure.provenance import versions
from nextscale.measure.statistics import Interval
from nextscale.runtime._bundle import Bundle
from nextscale.runtime._errors import NextscaleError
from nextscale.runtime._machine import describe_machine
from nextscale.runtime._session import SessionOptions


@dataclass(frozen=True)
class Baseline:
    """Committed ratios of images per second to full precision.

    Attributes:
        ratios: by recipe.
        of_demo: whether they are the demo model's.
        batch, threads: that they were measured with.
        circumstances: the machine's ISA and the release of ONNX Runtime.
    """

    ratios: Mapping[str, Interval]
    of_demo: bool
    batch: int
    threads: int
    circumstances: tuple[str, str]


@dataclass(frozen=True)
class Verdict:
    """One recipe's ratio beside the committed one.

    Attributes:
        limit: the smallest ratio that is no regression.
    """

    recipe: str
    found: Interval
    committed: Interval
    limit: float

    @property
    def regressed(self) -> bool:
        return self.found.mean < self.limit


def read_baseline(path: Path) -> Baseline:
    """The ratios of a results file.

    Raises:
        NextscaleError: it cannot be read, or is of neither kind.
    """
    try:
        document: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise NextscaleError(f"{path}: cannot be read as JSON ({error}); give a committed results file") from None
    try:
        settings, found = document["settings"], (" ".join(document["machine"]["isa"]), document["versions"])
        circumstances = found[0], str(found[1]["onnxruntime"])
        if "recipes" in document:
            ratios = {name: Interval(**item["speedup"]) for name, item in document["recipes"].items()}
            return Baseline(ratios, True, settings["batch"], settings["threads"], circumstances)
        batch = min(settings["batches"])
        ratios = {
            row["name"]: Interval(**speed["ratio"])
            for row in document["rows"]
            for speed in row["speeds"]
            if speed["batch"] == batch and row["name"] != FULL_PRECISION
        }
        return Baseline(ratios, False, batch, settings["threads"], circumstances)
    except (KeyError, TypeError, AttributeError):
        raise NextscaleError(f"{path}: not a results file of w8a8_front.py or `nextscale table-c`") from None


def judge(committed: Mapping[str, Interval], found: Mapping[str, Interval], band: float) -> list[Verdict]:
    """Each found ratio beside the committed one of the same recipe.

    The limit is as far below the committed ratio, in logarithms, as the band and the root of the summed squares of both
    intervals' half widths: two ratios that are equal differ by more in one of 40 cases at most, whatever the band.

    Args:
        committed, found: ratios with 95% intervals.
        band: what machines of one kind differ by, as a share.
    """
    verdicts = []
    for recipe, ratio in found.items():
        half_widths = [math.log(item.high / item.low) / 2 for item in (committed[recipe], ratio)]
        limit = committed[recipe].mean * (1 - band) * math.exp(-math.hypot(*half_widths))
        verdicts.append(Verdict(recipe, ratio, committed[recipe], limit))
    return verdicts


def table(verdicts: list[Verdict]) -> list[str]:
    """As Markdown."""
    lines = ["| recipe | over full precision | committed | least allowed | |", "|---|---|---|---|---|"]
    for item in verdicts:
        lines.append(
            f"| {item.recipe} | {_shown(item.found)} | {_shown(item.committed)} | {item.limit:.3f} "
            f"| {'regressed' if item.regressed else 'ok'} |"
        )
    return lines


def _shown(ratio: Interval) -> str:
    return f"{ratio.mean:.3f} [{ratio.low:.3f}, {ratio.high:.3f}]"


def _open(baseline: Baseline, work: Path, names: list[str], options: SessionOptions) -> dict[str, Bundle]:
    """Full precision and these recipes' bundles; the demo model's are built where they are missing."""
    if baseline.of_demo:
        bundles = RecipeBundles(work, options)
        for name in (FULL_PRECISION, *names):
            bundles.build(find_recipe(name))
    return {name: Bundle.open(work / name) for name in (FULL_PRECISION, *names)}


@click.command()
@click.option(
    "--baseline",
    "path",
    type=click.Path(path_type=Path),
    default=RESULTS / "w8a8_front.json",
    help="Committed ratios.  [default: w8a8_front.json]",
)
@click.option("--recipes", default="default,static-w8a8", show_default=True, help="Names, separated by commas.")
@click.option("--work", type=click.Path(path_type=Path), default=Path("out/guard"), show_default=True)
@click.option("--rounds", type=click.IntRange(2), default=20, show_default=True)
@click.option("--band", type=click.FloatRange(0, 0.5), default=0.05, show_default=True, help="Of noise, as a share.")
def main(path: Path, recipes: str, work: Path, rounds: int, band: float) -> None:
    """Measure, compare with the committed ratios, and exit with 1 if one has regressed."""
    try:
        baseline = read_baseline(path)
        names = recipes.split(",")
        unknown = [name for name in names if name not in baseline.ratios]
        if unknown:
            raise NextscaleError(f"{path}: no ratio of {', '.join(unknown)}; it has {', '.join(baseline.ratios)}")
        work.mkdir(parents=True, exist_ok=True)
        options = SessionOptions(threads=baseline.threads, ops="stock")  # the committed ratios are of those
        speeds = measure_speeds(_open(baseline, work, names, options), options, rounds, baseline.batch)
    except NextscaleError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    here = " ".join(describe_machine().isa), versions()["onnxruntime"]
    if here != baseline.circumstances:
        log(f"the committed ratios are of another machine or release: {baseline.circumstances}, here {here}")
    verdicts = judge(baseline.ratios, {name: speeds[name].ratio_to(speeds[FULL_PRECISION]) for name in names}, band)
    print("\n".join(table(verdicts)))
    sys.exit(any(verdict.regressed for verdict in verdicts))


if __name__ == "__main__":
    main()
