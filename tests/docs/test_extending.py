"""Code that a page shows is code that the project has."""

from __future__ import annotations

import re
import textwrap
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
BLOCK = re.compile(r"^( *)```python\n\1# (\S+\.py)\n(.*?)^\1```", re.MULTILINE | re.DOTALL)
BLOCKS = BLOCK.findall((ROOT / "docs" / "extending.md").read_text(encoding="utf-8"))


def test_there_are_blocks() -> None:
    assert len(BLOCKS) >= 6


@pytest.mark.parametrize(("indent", "file", "code"), BLOCKS, ids=[f"{i}-{block[1]}" for i, block in enumerate(BLOCKS)])
def test_a_block_stands_in_its_file(indent: str, file: str, code: str) -> None:
    shown = "".join(line.removeprefix(indent) for line in code.splitlines(keepends=True))
    assert textwrap.dedent(shown).strip()
    assert shown in (ROOT / file).read_text(encoding="utf-8")
