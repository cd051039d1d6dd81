from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from nextscale.demo.emoji import curves


def write(path: Path, *records: dict[str, Any]) -> None:
    path.write_text("".join(json.dumps(record) + "\n" for record in records))


def test_what_was_done_again_counts_once(tmp_path: Path) -> None:
    """Steps 100 and 150 were lost, and done again; step 100 was validated, too."""
    train = [{"step": step, "lr": 1, "loss": loss} for step, loss in ((50, 9), (100, 8), (150, 7), (100, 6), (150, 5))]
    write(tmp_path / "log", *train[:2], {"step": 100, "nats_held": 3}, *train[2:])
    found = curves.records(tmp_path / "log")
    assert curves.points(found, "loss") == ([50, 100, 150], [9, 6, 5])
    assert curves.points(found, "nats_held") == ([100], [3])


def test_a_half_written_line_is_left_out(tmp_path: Path) -> None:
    """At the end, and where the next call has gone on behind it."""
    (tmp_path / "log").write_text('{"step": 1}\n{"step": 2, "lo{"step": 3}\n{"step": 4}\n{"step": 5, "lr"')
    assert curves.records(tmp_path / "log") == [{"step": 1}, {"step": 4}]


def test_curves_are_drawn(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    write(tmp_path / "tokenizer.jsonl", {"step": 9, "psnr_held": 20.0, "psnr_seen": 21.0})
    write(
        tmp_path / "transformer.jsonl",
        {"step": 9, "lr": 1, "loss": 0.3},
        {"step": 9, "nats_held": 0.2, "nats_seen": 0.1},
    )
    curves.main.main(["--logs", str(tmp_path), "--out", str(tmp_path / "curves.png")], standalone_mode=False)
    with Image.open(tmp_path / "curves.png") as picture:
        assert picture.size == (810, 288)
