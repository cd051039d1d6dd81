import json
import os
import re
from pathlib import Path
from typing import Any

import pytest
from fake_bundle import read_manifest, write_manifest

from nextscale.cli.main import main
from nextscale.runtime import BundleError
from nextscale.runtime import _machine as machine


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


def with_saturation(folder: Path, layers: dict[str, Any]) -> None:
    manifest = read_manifest(folder)
    manifest["recipe"]["saturation"] = {"products": 9, "can_saturate": layers}
    write_manifest(folder, manifest)


def test_inspect_lists_the_layers_that_saturate(damaged: Path, capsys: pytest.CaptureFixture[str]) -> None:
    layers = {"blocks.0.fc1": {"pairs": 0.0125, "error": 0.5}, "blocks.0.ada": {"pairs": None, "error": None}}
    with_saturation(damaged, layers)
    assert main(["inspect", str(damaged)]) == 0
    assert "2 of 9 integer layers" in capsys.readouterr().out
    assert main(["inspect", str(damaged), "--saturation"]) == 0
    out = capsys.readouterr().out
    assert [line.split()[-2:] for line in out.splitlines() if "blocks.0.fc1" in line] == [["50.00%", "│"]]
    assert "1.25%" in out
    assert "not observed" in out
    assert main(["inspect", str(damaged), "--saturation", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == layers


def test_inspect_of_a_bundle_that_never_saturates(damaged: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with_saturation(damaged, {})
    assert main(["inspect", str(damaged)]) == 0
    assert re.search("can saturate without VNNI *│ none", capsys.readouterr().out)


@pytest.mark.parametrize("found", [None, 3, {"can_saturate": [1]}, {"can_saturate": {"a": 1}}], ids=str)
def test_inspect_refuses_saturation_that_the_manifest_does_not_tell(
    damaged: Path, capsys: pytest.CaptureFixture[str], found: Any
) -> None:
    manifest = read_manifest(damaged)
    manifest["recipe"] |= {} if found is None else {"saturation": found}
    write_manifest(damaged, manifest)
    assert main(["inspect", str(damaged)]) == 0
    capsys.readouterr()
    assert main(["inspect", str(damaged), "--saturation"]) == 2
    assert "its manifest tells nothing of saturation" in capsys.readouterr().err


def test_inspect_prints_no_control_characters(damaged: Path, capsys: pytest.CaptureFixture[str]) -> None:
    manifest = read_manifest(damaged)
    manifest["recipe"]["\x1b[31mnote"] = "[bold]\x1b[2J\x7f"
    manifest["recipe"]["deep"] = {"\x7f": ["\x9b\u202e"]}
    manifest["recipe"]["kernels"] = {"stage\x1b": {"a": "Kernel\x1b[2J", "b": "Kernel\x7f"}}
    manifest["versions"]["onnx\x1b"] = "1\x7f"
    write_manifest(damaged, manifest)
    assert main(["inspect", str(damaged)]) == 0
    out = capsys.readouterr().out
    assert out.replace("\n", "").isprintable()
    assert "[bold]" in out
    assert "1 Kernel\\x1b[2J, 1 Kernel\\x7f" in out


def test_verify_prints_no_control_characters(
    fake_bundle: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of what ONNX Runtime says of a graph, whose names are its maker's."""

    def fail(*arguments: object) -> None:
        raise BundleError("node \x1b[2J\nok    tokens: all")

    monkeypatch.setattr("nextscale.runtime._verify.Generator.load", fail)
    assert main(["verify", str(fake_bundle)]) == 1
    assert capsys.readouterr().out.splitlines()[1:] == ["FAIL  contract: node \\x1b[2J\\nok    tokens: all"]


def test_verify_prints_each_check(fake_bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["verify", str(fake_bundle)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line[:13].split(":")[0] for line in lines] == [
        "ok    files",
        "ok    contract"[:13],
        "ok    logits",
        "ok    tokens",
        "ok    streami",
    ]


def test_verify_as_json(fake_bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["verify", str(fake_bundle), "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["passed"]
    assert [check["name"] for check in report["checks"]] == ["files", "contract", "logits", "tokens", "streaming"]


@pytest.mark.parametrize("card", ["A fake model for tests!\n", "A fake model for tests.\r\n", None])
def test_verify_of_a_changed_bundle_exits_with_1(
    damaged: Path, capsys: pytest.CaptureFixture[str], card: str | None
) -> None:
    (damaged / "card.md").unlink()
    if card is not None:
        (damaged / "card.md").write_text(card, newline="")
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
    assert main(arguments) == 0
    captured = capsys.readouterr()
    assert "images/s" in captured.out
    assert "decoder" in captured.out
    assert "batch 2: round 2 of 2" in captured.err
    report = json.loads(path.read_text())
    assert len(report["measurements"]) == 8
    assert report["settings"]["threads"] == 1


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ("avx2 avx_vnni", "avx2 avx_vnni: u8 x s8 products are exact"),
        ("avx2", "avx2: u8 x s8 products saturate, except in bundles built with --reduce-range"),
        ("", "no known ISA flags: whether u8 x s8 products are exact is not known"),
    ],
)
def test_bench_says_what_integer_products_are_here(
    fake_bundle: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    flags: str,
    said: str,
) -> None:
    (tmp_path / "cpuinfo").write_text(f"model name\t: A CPU\nflags\t\t: {flags}\n")
    monkeypatch.setattr(machine, "CPUINFO", tmp_path / "cpuinfo")
    arguments = ["bench", str(fake_bundle), "--form", "generate", "--threads", "1", "--repetitions", "2", "--quiet"]
    assert main(arguments) == 0
    assert said in capsys.readouterr().out


def test_bench_refuses_an_unwritable_json_before_measuring(
    fake_bundle: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["bench", str(fake_bundle), "--json", "/proc/bench.json"]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("error: cannot write /proc/bench.json: ")
