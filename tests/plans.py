"""What `--plan` prints, and what it leaves as it was."""

from __future__ import annotations

from pathlib import Path

import pytest


def shown_plan(capsys: pytest.CaptureFixture[str]) -> tuple[dict[str, tuple[str, str]], list[str]]:
    """What is left of each step and what its time is taken from, by name; and the lines below the table."""
    captured = capsys.readouterr()
    assert captured.err == ""
    table, total, below = captured.out.partition("in all: ")
    lines = [line.rstrip() for line in table.splitlines() if line.strip()]
    header, rows = lines[0], lines[2:]
    ends = [header.index(title) for title in ("left", "time, about", "by", "MB")]
    cells = [[line[a:b].strip() for a, b in zip([0, *ends], [*ends, None], strict=True)] for line in rows]
    for _, left, seconds, basis, size in cells:
        assert seconds
        assert bool(size) == left.startswith("build")
        assert left != "in the store" or (seconds, basis) == ("0 s", "")
    return {name: (left, basis) for name, left, _, basis, _ in cells}, (total + below).splitlines()


def files(folder: Path) -> dict[Path, int]:
    """Sizes of a folder's files, but for the locks of those who look."""
    return {path: path.stat().st_size for path in folder.rglob("*") if path.is_file() and path.parent.name != "locks"}
