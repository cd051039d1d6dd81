"""Draw the training of the emoji model from its logs: `python -m nextscale.demo.emoji.curves --logs RUN --out PNG`."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import click

Records = list[dict[str, Any]]


def records(log: Path) -> Records:
    """A log's records by step: of a step that a call did again after one that was cut, the last.

    A line that a killed call left half-written, and what the next one wrote behind it, is left out.
    """
    found: dict[tuple[int, bool], dict[str, Any]] = {}
    for line in log.read_text(encoding="utf-8").splitlines():
        try:
            record = json.loads(line)
        except ValueError:
            continue
        found[record["step"], "lr" in record] = record
    return sorted(found.values(), key=lambda record: int(record["step"]))


def points(of: Records, key: str) -> tuple[list[int], list[float]]:
    """Steps and values of the records that have the key."""
    kept = [record for record in of if key in record]
    return [record["step"] for record in kept], [record[key] for record in kept]


@click.command(context_settings={"show_default": True})
@click.option("--logs", type=click.Path(exists=True, file_okay=False, path_type=Path), required=True)
@click.option("--out", type=click.Path(dir_okay=False, path_type=Path), required=True)
def main(logs: Path, out: Path) -> None:
    """The tokenizer's PSNR, and the transformer's nats a bit, of (concept, style) pairs seen and held out."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.2), layout="constrained")
    left, right = figure.subplots(1, 2)
    transformer = records(logs / "transformer.jsonl")
    right.plot(*points(transformer, "loss"), label="training, some bits flipped", color="tab:gray")
    both: Iterable[tuple[Any, Records, str]] = (
        (left, records(logs / "tokenizer.jsonl"), "psnr"),
        (right, transformer, "nats"),
    )
    for axes, of, what in both:
        axes.plot(*points(of, f"{what}_seen"), label="seen pairs", color="tab:blue", marker=".")
        axes.plot(*points(of, f"{what}_held"), label="held-out pairs", color="tab:orange", marker=".")
        axes.grid(alpha=0.3)
        axes.legend()
    left.set(title="tokenizer, averaged weights", xlabel="steps", ylabel="PSNR, dB")
    right.set(title="transformer", xlabel="steps", ylabel="nats per bit")
    right.set_ylim(top=min(0.4, right.get_ylim()[1]))
    figure.savefig(out, dpi=90)


if __name__ == "__main__":
    main()
