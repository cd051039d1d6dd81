import json
import os
from pathlib import Path

import pytest
from fake_bundle import read_manifest, write_manifest

from nextscale.cli.main import main


def test_inspect_shows_what_is_in_a_bundle(fake_bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", str(fake_bundle)]) == 0
    out = capsys.readouterr().out
    for text in ("fake-0", "fp32", "weights.data", "1,368", "past_key_values.0.key", "[2B, 1, 8, T]", "MIT"):
        assert text in out


def test_inspect_as_json(fake_bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", str(fake_bundle), "--json"]) == 0
    summary = json.loads(capsys.readouterr().out)
    assert (summary["name"], summary["model"]["num_classes"]) == ("fake-0", 5)
    assert summary["files"]["weights.data"]["size"] == 1368


def test_inspect_lists_the_classes(fake_bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", str(fake_bundle), "--classes"]) == 0
    assert capsys.readouterr().out.splitlines()[1] == "1\ttabby cat"


def test_inspect_prints_no_control_characters(damaged: Path, capsys: pytest.CaptureFixture[str]) -> None:
    manifest = read_manifest(damaged)
    manifest["recipe"]["\x1b[31mnote"] = "[bold]\x1b[2J"
    write_manifest(damaged, manifest)
    assert main(["inspect", str(damaged)]) == 0
    out = capsys.readouterr().out
    assert "\x1b" not in out
    assert "[bold]" in out


def test_verify_prints_each_check(fake_bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["verify", str(fake_bundle)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line[:13].split(":")[0] for line in lines] == [
        "ok    files",
        "ok    contract"[:13],
        "ok    tokens",
        "ok    streami",
    ]


def test_verify_as_json(fake_bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["verify", str(fake_bundle), "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["passed"]
    assert [check["name"] for check in report["checks"]] == ["files", "contract", "tokens", "streaming"]


def test_verify_of_a_changed_bundle_exits_with_1(damaged: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (damaged / "card.md").write_text("A fake model for tests!\n")
    assert main(["verify", str(damaged)]) == 1
    assert capsys.readouterr().out == "FAIL  files: changed since the bundle was built: card.md\n"


def test_verify_of_a_truncated_bundle_exits_with_2(damaged: Path, capsys: pytest.CaptureFixture[str]) -> None:
    os.truncate(damaged / "weights.data", 10)
    assert main(["verify", str(damaged)]) == 2
    assert "weights.data: 10 bytes, but the manifest says 1368" in capsys.readouterr().err


def test_bench_prints_a_table_and_writes_json(
    fake_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "bench.json"
    folder = str(fake_bundle)
    arguments = ["bench", folder, folder, "--batch", "1,2", "--threads", "1", "--repetitions", "2", "--json", str(path)]
    assert main([*arguments, "--no-memory"]) == 0
    captured = capsys.readouterr()
    assert "images/s" in captured.out
    assert "decoder" in captured.out
    assert "batch 2: round 2 of 2" in captured.err
    report = json.loads(path.read_text())
    assert len(report["measurements"]) == 8
    assert report["settings"]["threads"] == 1


def test_bench_refuses_an_unwritable_json_before_measuring(
    fake_bundle: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["bench", str(fake_bundle), "--json", "/proc/bench.json"]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("error: cannot write /proc/bench.json: ")
