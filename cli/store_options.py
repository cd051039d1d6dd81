"""The options of the folder in which the paper's commands keep what they build."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable
from pathlib import Path

import click

from nextscale.paper.store import DEFAULT_LIMIT, Store
from nextscale.runtime._wording import shown_value

FOLDER = Path("out/paper")
UNITS = {"MB": 10**6, "GB": 10**9, "TB": 10**12}


class Size(click.ParamType):
    """Bytes: 500MB or 40GB."""

    name = "size"

    def convert(self, value: str | int, param: click.Parameter | None, ctx: click.Context | None) -> int:
        if isinstance(value, int):
            return value
        match = re.fullmatch(r"(\d{1,9}(?:\.\d{1,3})?) ?([MGT]B)", value.strip(), re.ASCII | re.IGNORECASE)
        if match is None:
            self.fail(f"{shown_value(value)} is not a size such as 500MB or 40GB", param, ctx)
        return int(float(match[1]) * UNITS[match[2].upper()])


def store_folder(command: Callable[..., object]) -> Callable[..., object]:
    """--store."""
    return click.option(
        "--store",
        "folder",
        type=click.Path(path_type=Path, file_okay=False),
        default=FOLDER,
        envvar="NEXTSCALE_STORE",
        show_default=True,
        help="Where bundles and figures of all the paper's commands are kept; the same command goes on.  [or "
        "$NEXTSCALE_STORE]",
    )(command)


def store_options(command: Callable[..., object]) -> Callable[..., object]:
    """--store and --store-limit; the command gets them as an open `Store`, `store`."""

    @functools.wraps(command)
    def with_store(folder: Path, limit: int, **values: object) -> None:
        with Store(folder, limit) as store:
            command(store=store, **values)

    return store_folder(
        click.option(
            "--store-limit",
            "limit",
            type=Size(),
            default=f"{DEFAULT_LIMIT // UNITS['GB']}GB",
            show_default=True,
            help="Of --store; what no command uses goes to keep within it, what was used longest ago first.",
        )(with_store)
    )
