"""A table of the paper as it was measured here: our figure of every cell, and the paper's beside it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

from nextscale.measure.provenance import finite
from nextscale.measure.statistics import Interval
from nextscale.paper._table_pages import heading, markdown_table
from nextscale.runtime._errors import NextscaleError
from nextscale.runtime._machine import Machine

# 3.72, 3.72e+12, or 3.72 T.
Form = Literal["fixed", "exponent", "prefix"]


@dataclass(frozen=True)
class Column:
    """What is measured.

    Attributes:
        name: of ours.
        paper: what the paper calls its own, perhaps another measure; None where it has none.
        digits: behind the point; of a form with a prefix, of the whole number.
        scale: what figures are shown in, such as 100 for percent.
        form: how figures are written.
    """

    name: str
    paper: str | None = None
    digits: int = 2
    scale: float = 1.0
    form: Form = "fixed"


@dataclass(frozen=True)
class Cell:
    """A figure of ours and the paper's.

    Attributes:
        value: ours; None where there is none.
        low, high: ends of its 95% interval; None where it has none.
        paper: None where the paper has none.
    """

    value: float | None = None
    low: float | None = None
    high: float | None = None
    paper: float | None = None

    @classmethod
    def of(cls, interval: Interval | None, paper: float | None = None) -> Cell:
        """Of a mean."""
        if interval is None:
            return cls(paper=paper)
        low, high = (None if math.isnan(end) else end for end in (interval.low, interval.high))
        return cls(interval.mean, low, high, paper)


@dataclass(frozen=True)
class Row:
    """A method.

    Attributes:
        name: the recipe's, or what else tells it apart.
        method, bits: as the paper calls them.
        cells: one for each column.
    """

    name: str
    method: str
    bits: str
    cells: tuple[Cell, ...]


@dataclass(frozen=True)
class PaperTable:
    """What was measured, and how.

    Attributes:
        table: the paper's number of it, such as "1".
        title: what it is of.
        model: what was measured, in a word.
        columns: of each row's cells.
        rows: in the paper's order.
        notes: lines that a reader needs to read the figures right.
        left_out: lines on rows and figures that are missing.
        warnings: lines on rows whose integer products this processor does not compute exactly.
        settings: what was asked for, plain values.
        machine: the processor.
        versions: of this process.
    """

    table: str
    title: str
    model: str
    columns: tuple[Column, ...]
    rows: tuple[Row, ...]
    notes: tuple[str, ...]
    left_out: tuple[str, ...]
    warnings: tuple[str, ...]
    settings: Mapping[str, Any]
    machine: Machine
    versions: Mapping[str, str]

    def to_json(self) -> dict[str, Any]:
        """Plain values; what is not finite becomes null."""
        plain: dict[str, Any] = finite(asdict(self))
        return plain

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> PaperTable:
        """What `to_json` gave.

        Raises:
            NextscaleError: it is none.
        """
        try:
            rows = tuple(
                Row(**{**row, "cells": tuple(Cell(**cell) for cell in row["cells"])}) for row in document["rows"]
            )
            columns = tuple(Column(**column) for column in document["columns"])
            lines = {name: tuple(document[name]) for name in ("notes", "left_out", "warnings")}
            return cls(
                **{**document, **lines, "rows": rows, "columns": columns, "machine": _machine(document["machine"])}
            )
        except (TypeError, KeyError) as error:
            raise NextscaleError(f"no table of the paper: {error}") from None


def _machine(document: Mapping[str, Any]) -> Machine:
    return Machine(**{**document, "isa": tuple(document["isa"])})


def markdown(table: PaperTable) -> str:
    """The whole page."""
    title = f"Table {table.table}: {table.title}, {table.model}"
    return "\n".join([*heading(title, table, table.notes), "", *markdown_rows(table), ""])


def markdown_rows(table: PaperTable) -> list[str]:
    """The table alone."""
    return markdown_table(headers(table), shown_rows(table))


def headers(table: PaperTable) -> list[str]:
    """Ours, then the paper's."""
    of_paper = [f"paper: {column.paper}" for column in table.columns if column.paper is not None]
    return ["method", "W/A", *(column.name for column in table.columns), *of_paper]


def shown_rows(table: PaperTable) -> list[list[str]]:
    """A text for each of the `headers`."""
    return [
        [
            row.method,
            row.bits,
            *(_ours(cell, column) for cell, column in zip(row.cells, table.columns, strict=True)),
            *(
                _number(cell.paper, column)
                for cell, column in zip(row.cells, table.columns, strict=True)
                if column.paper is not None
            ),
        ]
        for row in table.rows
    ]


def _ours(cell: Cell, column: Column) -> str:
    text = _number(cell.value, column)
    if cell.low is None or cell.high is None:
        return text
    return f"{text} ± {_number((cell.high - cell.low) / 2, column)}"


def prefixed(number: float, digits: int = 3) -> str:
    """So many digits and a prefix for a unit behind it: 3.72 T."""
    for size, prefix in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if number >= size:
            return f"{number / size:.{digits}g} {prefix}"
    return f"{number:.{digits}g} "


def _number(value: float | None, column: Column) -> str:
    if value is None:
        return ""
    if column.form == "prefix":
        return prefixed(value * column.scale, column.digits).rstrip()
    return f"{value * column.scale:.{column.digits}{'e' if column.form == 'exponent' else 'f'}}"
