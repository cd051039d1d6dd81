from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image
from tiny_emoji import write_tiny_emoji
from tiny_model import CLASS_NAMES, tiny_source

from nextscale.cli import demo
from nextscale.cli.main import main
from nextscale.demo.emoji.bundle import emoji_source
from nextscale.demo.emoji.configuration import TINY
from nextscale.runtime import Bundle, SessionOptions
from nextscale.runtime._variants import each_variant

FAST = ("--images", "2", "--repetitions", "2", "--calibration-images", "2", "--threads", "1")


def test_every_variant_has_its_own_speed_and_agreement(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those of the stock graphs, and of the fused ones where this machine has the operators, of both models."""
    write_tiny_emoji(tmp_path)
    sources = {"photographs": lambda name: tiny_source(), "emoji": lambda name: emoji_source(tmp_path, name, TINY)}
    monkeypatch.setattr(demo, "DEMOS", tuple(replace(one, source=sources[one.name]) for one in demo.DEMOS))
    monkeypatch.setattr(demo, "SHEET_CLASSES", CLASS_NAMES[:3])
    out, path = tmp_path / "demo", tmp_path / "demo.json"
    assert main(["demo", "--out", str(out), "--json", str(path), *FAST]) == 0
    documents, table = json.loads(path.read_text()), capsys.readouterr().out
    assert [*documents] == ["emoji", "photographs"]
    for name, document in documents.items():
        variants = [choice.ops for choice in each_variant(Bundle.open(out / name / "int8"), SessionOptions())]
        rows = ["int8", "int8 fused"][: len(variants)]
        assert [row["ops"] for row in document["measurements"]] == ["stock", *variants]
        assert list(document["agreement"]) == rows
        _, section = table.split(f"\n{name} ")
        for row, measurement in zip(rows, document["measurements"][1:], strict=True):
            [line] = [line for line in section.splitlines() if line.startswith(f" {row} ")][:1]
            assert f"({measurement['speedup']['mean']:.2f}x)" in line
            kl = document["agreement"][row]["kl"]
            assert (f" {kl / TINY.models.config.token_bits:.5f}" if name == "emoji" else f" {kl:.4f}") in line
        with Image.open(out / name / "sheet.png") as picture:
            assert picture.format == "PNG"
