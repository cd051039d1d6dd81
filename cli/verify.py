"""`nextscale verify`: is a bundle whole, and does it make the same tokens here?"""

import dataclasses
import json
from pathlib import Path

import click

from nextscale.cli import options
from nextscale.runtime._bundle import Bundle
from nextscale.runtime._operators import Ops
from nextscale.runtime._session import SessionOptions
from nextscale.runtime._text import printable
from nextscale.runtime._verify import Check
from nextscale.runtime._verify import verify as run_verify


@click.command()
@click.argument("bundle_dir", metavar="DIR", type=options.BUNDLE)
@options.threads
@options.operators
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def verify(bundle_dir: Path, threads: int, ops: Ops, ops_library: str, as_json: bool) -> int:
    """Check the bundle in DIR: hashes, graphs, tokens against the stored ones, streaming against one call.

    With --ops auto the stock graphs, and the fused ones where they can run.

    Exits with 1 if a check fails.
    """

    def show(check: Check) -> None:
        if not as_json:
            click.echo(f"{'ok  ' if check.passed else 'FAIL'}  {check.name}: {printable(check.detail)}")

    report = run_verify(
        Bundle.open(bundle_dir), SessionOptions(threads=threads, ops=ops, ops_library=ops_library), show
    )
    if as_json:
        click.echo(json.dumps({"passed": report.passed, **dataclasses.asdict(report)}, indent=1))
    return 0 if report.passed else 1
