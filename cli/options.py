"""Options and arguments that several commands share."""

from pathlib import Path

import click

BUNDLE = click.Path(path_type=Path)

threads = click.option(
    "--threads",
    type=click.IntRange(0, 1024),
    default=0,
    metavar="N",
    help="Threads of one operator; 0 (default): one for each physical core.",
)
spinning = click.option(
    "--spinning/--no-spinning",
    default=True,
    help="Let idle threads spin: faster on an idle machine (default), slower on a busy one.",
)


class IntegerList(click.ParamType):
    """Integers separated by commas: 1,4."""

    name = "integers"

    def convert(self, value: str | list[int], param: click.Parameter | None, ctx: click.Context | None) -> list[int]:
        if isinstance(value, list):
            return value
        try:
            return [int(part) for part in value.split(",")]
        except ValueError:
            self.fail(f"{value!r} is not a list of integers such as 1,4", param, ctx)


class Grid(click.ParamType):
    """Columns, or columns x rows: 4 or 4x2."""

    name = "grid"

    def convert(
        self,
        value: str | tuple[int, int | None],
        param: click.Parameter | None,
        ctx: click.Context | None,
    ) -> tuple[int, int | None]:
        if isinstance(value, tuple):
            return value
        columns, by, rows = value.lower().partition("x")
        if not columns.isdecimal() or not int(columns) or (by and (not rows.isdecimal() or not int(rows))):
            self.fail(f"{value!r} is neither a number of columns (4) nor columns x rows (4x2)", param, ctx)
        return int(columns), int(rows) if by else None
