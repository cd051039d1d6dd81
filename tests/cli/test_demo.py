from __future__ import annotations

import json
from pathlib import Path

import pytest
from tiny_model import CLASS_NAMES, tiny_source

from nextscale.cli.main import main
from nextscale.runtime import Bundle, SessionOptions
from nextscale.runtime._variants import each_variant

FAST = ("--images", "2", "--repetitions", "2", "--calibration-images", "2", "--threads", "1")


def test_every_variant_has_its_own_speed_and_agreement(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those of the stock graphs, and of the fused ones where this machine has the operators."""
    monkeypatch.setattr("nextscale.cli.demo.demo_source", lambda name: tiny_source())
    monkeypatch.setattr("nextscale.cli.demo.SHEET_CLASSES", CLASS_NAMES[:3])
    out, path = tmp_path / "demo", tmp_path / "demo.json"
    assert main(["demo", "--out", str(out), "--json", str(path), *FAST]) == 0
    variants = [choice.ops for choice in each_variant(Bundle.open(out / "int8"), SessionOptions())]
    columns = ["int8", "int8 fused"][: len(variants)]
    document = json.loads(path.read_text())
    assert [row["ops"] for row in document["measurements"]] == ["stock", *variants]
    assert list(document["agreement"]) == columns
    table = capsys.readouterr().out
    [heading] = [line for line in table.splitlines() if "full precision" in line and "int8" in line]
    assert heading.count("int8") == len(columns)
    for column, row in zip(columns, document["measurements"][1:], strict=True):
        assert f"{document['agreement'][column]['kl']:.4f}" in table
        assert f"({row['speedup']['mean']:.2f}x)" in table
    assert (out / "sheet.png").read_bytes().startswith(b"\x89PNG")
