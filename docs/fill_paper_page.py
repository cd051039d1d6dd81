"""Fill docs/paper.md with the tables that `nextscale paper` wrote.

    python docs/fill_paper_page.py            # writes each table between its two marks
    python docs/fill_paper_page.py --check    # fails if the page has other figures than benchmarks/results/*.json

A mark is `<!-- table_1.json: made by docs/fill_paper_page.py -->`, its end `<!-- end of table_1.json -->`. Of a
file with several tables, such as table_b.json, it names one: table_b.json/costs.
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import click

from nextscale.paper.paper_table import PaperTable, markdown_rows

ROOT = Path(__file__).parents[1]
PAGE, RESULTS = ROOT / "docs" / "paper.md", ROOT / "benchmarks" / "results"
BLOCK = re.compile(
    r"(<!-- (?P<name>[\w.-]+\.json(?:/\w+)?): made by docs/fill_paper_page\.py -->\n).*?(<!-- end of (?P=name) -->\n)",
    re.DOTALL,
)


@click.command(help=__doc__)
@click.option("--check", is_flag=True)
def main(check: bool) -> None:
    page = PAGE.read_text(encoding="utf-8")
    expected = filled(page, RESULTS)
    if check:
        sys.exit(None if page == expected else f"{PAGE.name}: its tables are old; run python docs/fill_paper_page.py")
    PAGE.write_text(expected, encoding="utf-8")


def filled(page: str, results: Path) -> str:
    """The page with the tables of the results."""

    def block(match: re.Match[str]) -> str:
        name, _, part = match["name"].partition("/")
        document = json.loads((results / name).read_bytes())
        document = document[part] if part else document
        table = "\n".join(markdown_rows(PaperTable.from_json(document)))
        return f"{match[1]}\n{table}\n\n{match[3]}"

    return BLOCK.sub(block, page)


if __name__ == "__main__":
    main()
