"""How fast this machine multiplies matrices in ONNX Runtime (`measure.kernel_rates`): the scale of all figures."""

from __future__ import annotations

from dataclasses import asdict

import click
from provenance import provenance, publish

from nextscale.measure.kernel_rates import kernel_rates
from nextscale.runtime._session import SessionOptions


@click.command()
@click.option("--threads", type=int, default=2, show_default=True)
def main(threads: int) -> None:
    """Print and keep the rates."""
    rates = asdict(kernel_rates(SessionOptions(threads=threads)))
    rows = [f"| {name} | {rate / 1e9:.0f} |" for name, rate in rates.items()]
    publish(
        "kernel_rates", ["# Kernel rates", "", *provenance(threads), "", "| kernel | GFLOP/s |", "|---|---|", *rows]
    )


if __name__ == "__main__":
    main()
