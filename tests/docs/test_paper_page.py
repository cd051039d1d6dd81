"""docs/paper.md has the figures that the paper's commands wrote."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from types import ModuleType

import pytest

from nextscale.paper.paper_table import Cell, Column, PaperTable, Row, markdown
from nextscale.runtime._machine import describe_machine

ROOT = Path(__file__).parents[2]
PAGE = """Before.

<!-- small.json: made by docs/fill_paper_page.py -->
| old |
<!-- end of small.json -->
After.
"""


@pytest.fixture(scope="module")
def program() -> ModuleType:
    spec = importlib.util.spec_from_file_location("fill_paper_page", ROOT / "docs" / "fill_paper_page.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def table() -> PaperTable:
    rows = (
        Row("fp32", "Full precision", "32/32", (Cell(6.28, 6.2, 6.36, 274.8), Cell())),
        Row("x", "a|b", "4/6", (Cell(4.0, paper=145.6), Cell(0.12345))),
    )
    columns = (Column("IS-E", "IS", 1), Column("KL", digits=4))
    empty: tuple[str, ...] = ()
    return PaperTable("1", "t", "demo", columns, rows, ("n",), empty, empty, {}, describe_machine(), {})


EXPECTED = """| method | W/A | IS-E | KL | paper: IS |
|---|---|---|---|---|
| Full precision | 32/32 | 6.3 ± 0.1 |  | 274.8 |
| a/b | 4/6 | 4.0 | 0.1235 | 145.6 |
"""


def test_a_table_is_filled_in(program: ModuleType, tmp_path: Path) -> None:
    (tmp_path / "small.json").write_text(json.dumps(table().to_json()))
    found = program.filled(PAGE, tmp_path)
    assert found == PAGE.replace("| old |\n", f"\n{EXPECTED}\n")
    assert program.filled(found, tmp_path) == found
    assert EXPECTED in markdown(table())


def test_one_of_several_tables_is_filled_in(program: ModuleType, tmp_path: Path) -> None:
    page = PAGE.replace("small.json", "both.json/second")
    (tmp_path / "both.json").write_text(json.dumps({"first": None, "second": table().to_json()}))
    assert program.filled(page, tmp_path) == page.replace("| old |\n", f"\n{EXPECTED}\n")


def test_a_table_is_what_was_written() -> None:
    assert PaperTable.from_json(json.loads(json.dumps(table().to_json()))) == table()


def test_the_page_has_the_figures_of_the_results(program: ModuleType) -> None:
    page = (ROOT / "docs" / "paper.md").read_text(encoding="utf-8")
    assert program.filled(page, ROOT / "benchmarks" / "results") == page
