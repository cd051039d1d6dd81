from __future__ import annotations

import json
import math
import os
import subprocess
from pathlib import Path

import pytest
from fake_contenders import fake_contender as fake
from plans import files, shown_plan
from refusal import assert_refused
from tiny_model import tiny_preset, tiny_source

from nextscale.cli.main import main
from nextscale.cli.table_c import find_peers
from nextscale.measure.contender import Contender
from nextscale.measure.kernel_rates import KernelRates
from nextscale.models.var import presets
from nextscale.models.var.sources import VARSource
from nextscale.paper import table_c as measuring
from nextscale.paper.store import Store
from nextscale.runtime._cpus import physical_cpus
from nextscale.runtime._operators import OperatorLibrary

FAST = ("--repetitions", "2", "--threads", "1", "--calibration-images", "2")
FLOAT_ROW = ("--rows", "fp32")


@pytest.fixture(autouse=True)
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    """The demo model and the preset "tiny" are the tiny model; rates are not measured, which takes seconds."""
    monkeypatch.setattr(measuring, "kernel_rates", lambda options: KernelRates(1e11, 4e11))
    monkeypatch.setattr("nextscale.cli.table_c.demo_source", lambda name: tiny_source())
    monkeypatch.setattr("nextscale.cli.table_c.demo_digests", lambda: {"var": "1", "vae": "2"})
    monkeypatch.setitem(presets.PRESETS, "tiny", tiny_preset())


def run(*arguments: object) -> int:
    return main(["table-c", *map(str, (*arguments, *FAST))])


def kept(store: Path) -> list[str]:
    """What is in a store: labels without the model's name."""
    return sorted(entry.label.partition("-")[2] for entry in Store(store).entries())


def shift_recipe(folder: Path) -> Path:
    """A recipe as the paper's, with a budget that so small a model can keep."""
    path = folder / "shift.toml"
    path.write_text(
        '[weights]\nrounding = "reconstructed"\n[activations]\ngranularity = "image"\n'
        '[attention]\nproducts = "integer"\nweights = "log2"\nshift_and_sum = "residual"\nbudget = 0.5\n'
        '[calibration]\nmatching = "published"\n'
    )
    return path


def test_versions_of_the_demo_model_share_no_bundle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = tmp_path / "store"
    arguments = ("--model", "demo", *FLOAT_ROW, "--ops", "stock", "--store", store)
    for versions in (1, 2):
        monkeypatch.setattr("nextscale.cli.table_c.demo_digests", lambda var=versions: {"var": str(var), "vae": "2"})
        for _ in range(2):
            assert run(*arguments) == 0
            assert kept(store).count("fp32-speed") == versions


def test_a_quick_table_is_of_the_demo_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("nextscale.cli.table_c.QUICK_ROWS", ("fp32", "default"))
    store, found = tmp_path / "store", tmp_path / "table.json"
    arguments = ["--quick", "--threads", "1", "--ops", "stock", "--store", str(store), "--json", str(found)]
    assert main(["paper", "table-c", *arguments]) == 0
    document = json.loads(found.read_text())
    assert document["model"]["name"] == "demo"
    assert document["settings"]["repetitions"] == 3
    assert [row["name"] for row in document["rows"]] == ["fp32", "default"]
    assert {"default-speed", "fp32-speed"} <= set(kept(store))
    capsys.readouterr()
    code = main(["table-c", "--quick", "--rows", "fp32"])
    assert_refused(capsys, code, "--quick does not go with --rows")


def test_rows_are_built_measured_and_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("matplotlib")
    files = {name: tmp_path / f"table.{name}" for name in ("json", "md", "png")}
    outputs = ("--json", files["json"], "--markdown", files["md"], "--plot", files["png"])
    rows = f"fp32,default,{shift_recipe(tmp_path)}"
    work = ("--ops", "stock", "--store", tmp_path / "store")
    assert run("--model", "tiny", "--rows", rows, "--batch", "2,1", "--processes", "1", *work, *outputs) == 0
    captured = capsys.readouterr()
    assert "batch 2: round 2 of 2" in captured.err
    for text in ("Full precision", "default", "images/s", "KL", "90.1%", "most images per second", "roofline"):
        assert text in captured.out
    report = json.loads(files["json"].read_text())
    assert [row["name"] for row in report["rows"]] == ["fp32", "default", "shift"]
    for row in report["rows"]:
        assert [speed["batch"] for speed in row["speeds"]] == [1, 2]
        assert all(len(speed["samples"]) == 2 for speed in row["speeds"])
        assert row["speeds"][0]["peak_memory_bytes"] > 1e6
        assert sum(row["split"]["parts"].values()) == pytest.approx(row["split"]["total"])
        assert 0 < row["roofline_share"] < 1
        assert [found["cores"] for found in row["predictions"]] == [1, 16]
    full, default, shift = report["rows"]
    assert full["speeds"][0]["ratio"]["mean"] == 1
    assert (full["paper_ratio"], default["paper_ratio"]) == (1, None)
    assert default["agreement"]["kl"] == pytest.approx(0.00604, abs=1e-5)
    assert shift["agreement"] is None
    assert shift["notes"][0] == "weights rounded to nearest"
    assert "of the demo model's attention" in shift["notes"][1]
    assert len(report["machine_speeds"]) == 2
    assert report["settings"]["batches"] == [1, 2]
    text = files["md"].read_text()
    assert "| Full precision | 32/32 |" in text
    assert "- shift: weights rounded to nearest; theta" in text
    assert "Prediction" not in text  # of the paper's model alone
    assert files["png"].read_bytes().startswith(b"\x89PNG")
    assert kept(tmp_path / "store") == ["decoder", "default-speed", "fp32-speed", "shift-speed"]

    # Again: with what is there, and nothing is built.
    assert run("--model", "tiny", "--rows", "default", *work) == 0
    assert "building graphs" not in capsys.readouterr().err


def test_a_plan_tells_what_is_left_and_builds_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """(1 + 2) rounds of 1 + 2 pictures and 2 that are profiled; no measurement is kept."""
    store = tmp_path / "store"
    work = ("--model", "tiny", "--batch", "1,2", "--ops", "stock", "--store", store, "--quiet")
    assert run(*work, "--rows", "fp32,brecq-w8a8", "--plan") == 0
    steps, lines = shown_plan(capsys)
    assert steps == dict.fromkeys(("fp32", "brecq-w8a8"), ("build, 11 pictures", "operations"))
    assert lines == [lines[0]]  # nothing is learned, or left out
    assert lines[0].startswith("in all: about 31 s, and ")  # 10 and 20, and the images' operations
    assert not store.exists()

    assert run(*work, "--rows", "fp32") == 0
    before, _ = files(store), capsys.readouterr()
    assert run(*work, "--rows", "fp32,default", "--processes", 1, "--plan") == 0
    steps, _ = shown_plan(capsys)
    assert steps == {
        "fp32": ("11 pictures", "its own batch"),
        "default": ("build, 11 pictures", "full precision's batch"),
        "default in processes": ("12 pictures", "full precision's batch"),
    }
    assert run(*work, "--rows", "fp32", "--rebuild", "--plan") == 0
    assert shown_plan(capsys)[0] == {"fp32": ("build, 11 pictures", "operations")}
    assert files(store) == before


def test_a_plan_counts_the_rows_of_fused_operators(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    library = OperatorLibrary(tmp_path / "library.so", 1, "avx512vnni")
    monkeypatch.setattr(measuring, "installed_library", lambda: library)
    assert run("--model", "tiny", "--rows", "fp32,default", "--store", tmp_path / "store", "--quiet", "--plan") == 0
    assert shown_plan(capsys)[0] == {
        "fp32": ("build, 5 pictures", "operations"),
        "default": ("build, 10 pictures", "operations"),
    }


def test_fused_operators_are_rows_of_their_own(tmp_path: Path, ops_library: Path) -> None:
    """Those of one bundle, which is built once; their times are their own."""
    out, library = tmp_path / "table.json", ("--ops-library", ops_library)
    assert run("--model", "tiny", "--rows", "fp32,default", *library, "--store", tmp_path / "store", "--json", out) == 0
    full, stock, fused = json.loads(out.read_text())["rows"]
    assert [row["name"] for row in (full, stock, fused)] == ["fp32", "default", "default fused"]
    assert fused["speeds"][0]["samples"] != stock["speeds"][0]["samples"]
    assert fused["split"]["parts"] != stock["split"]["parts"]
    assert kept(tmp_path / "store") == ["decoder", "default-speed", "fp32-speed"]


def test_peers_stand_below_the_rows(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[object] = []

    def peers(source: VARSource, work: Path, threads: int, names: list[str] | None) -> list[Contender]:
        asked.append((source.name, work, threads, names))
        return [fake("engine", seconds=[4.0]), fake("none", first='{"error": "gone"}')]

    monkeypatch.setattr("nextscale.cli.table_c.find_peers", lambda: peers)
    store, out, folder = ("--store", tmp_path / "store"), tmp_path / "table.json", tmp_path / "peers"
    assert run("--model", "demo", *FLOAT_ROW, *store, "--peers", "--json", out) == 0
    there = ("--peers-folder", folder, "--repetitions", 2)
    assert run("--model", "demo", *FLOAT_ROW, *store, "--peers", "engine,none", *there) == 0
    assert asked == [("tiny", Path("out/table-c/peers"), 1, None), ("tiny", folder, 1, ["engine", "none"])]
    assert "left out: none: gone" in capsys.readouterr().out
    report = json.loads(out.read_text())
    assert [row["name"] for row in report["rows"]] == ["fp32", "engine"]
    assert report["rows"][1]["speeds"][0]["images_per_second"]["mean"] == 0.25
    assert report["failures"] == {"none": "none: gone"}


def test_peers_are_measured_in_groups(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def peers(source: VARSource, work: Path, threads: int, names: list[str] | None) -> list[Contender]:
        quick = [fake(name, seconds=[4.0]) for name in ("one", "two", "three")]
        return [*quick, fake("none", first='{"error": "gone"}')]

    monkeypatch.setattr("nextscale.cli.table_c.find_peers", lambda: peers)
    files = {name: tmp_path / f"table.{name}" for name in ("json", "md")}
    arguments = (
        "--model",
        "tiny",
        "--rows",
        "fp32,default",
        "--ops",
        "stock",
        "--store",
        tmp_path / "store",
        "--peers",
    )
    outputs = ("--json", files["json"], "--markdown", files["md"])
    assert (
        run(*arguments, "--peers-at-once", 2, "--half-width", 1e6, "--minutes", 9, *outputs, "--repetitions", 20) == 0
    )
    shown = capsys.readouterr()
    assert shown.err.count("loading fp32") == shown.err.count("loading default") == 3
    assert "default over three, batch 1: " in shown.out
    report = json.loads(files["json"].read_text())
    assert "rounds until each ratio is known to 100000000.0%, 9 minutes are over or 2 are done (2) after" in (
        files["md"].read_text()
    )
    assert [row["name"] for row in report["rows"]] == ["fp32", "default", "one", "two", "three"]
    assert report["failures"] == {"none": "none: gone"}
    groups = report["peer_groups"]
    assert [[speed["name"] for speed in group["peers"]] for group in groups] == [["one", "two"], ["three"]]
    for group in groups:
        assert [speed["name"] for speed in group["anchors"]] == ["fp32", "default"]
        anchor = {speed["name"]: speed for speed in group["anchors"]}["default"]
        assert len(anchor["samples"]) == 2  # what `run` asks for, fewer than half_width could end
        for lead in group["leads"]:
            assert lead["ratio"]["mean"] == pytest.approx(
                4.0 / math.exp(sum(map(math.log, anchor["samples"])) / len(anchor["samples"]))
            )
    page = files["md"].read_text()
    assert "In 2 groups, each in the same rounds as these:" in page
    assert "| 2 | default | three | 1 |" in page
    assert "rounds until each ratio is known to" in page


def test_peers_are_found_where_there_are_any(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nextscale.cli.table_c.PEERS_MODULE", "nextscale.evaluate.no_such_module")
    assert find_peers() is None
    monkeypatch.setattr("nextscale.cli.table_c.PEERS_MODULE", "nextscale.measure.contest")
    assert find_peers() is None
    monkeypatch.setattr("nextscale.measure.contest.peers", lambda source, work, threads, names: [], raising=False)
    found = find_peers()
    assert found is not None
    assert found(tiny_source(), Path("work"), 2, None) == []


BAD_USAGE = {
    "unknown model": (["--model", "var-d17"], "no preset 'var-d17'"),
    "unknown row": (["--model", "demo", "--rows", "fp32,nothing"], 'no recipe is named "nothing"'),
    "a row twice": (["--model", "demo", "--rows", "fp32,fp32"], "has a row twice"),
    "batch 0": (["--model", "demo", "--batch", "0"], "images at a time of 1 or more"),
    "one repetition": (["--model", "demo", "--repetitions", "1"], "1 is not in the range"),
    "half a checkpoint": (["--var", "var.pth"], "--var and --vae go together"),
    "demo and checkpoint": (["--model", "demo", "--var", "a", "--vae", "b"], "does not go with --var"),
    "weights of no checkpoint": (["--weights", "ema"], "a model without --var and --vae does not go with --weights"),
    "missing checkpoint": (["--var", "none.pth", "--vae", "none.pth"], "none.pth: cannot be read"),
    "a plan with files": (["--plan", "--plot", "c.png"], "--plan, which writes nothing, does not go with --plot (see"),
    "a plan of too many": (
        ["--model", "demo", "--plan", "--quiet", "--processes", "99"],
        "processes 99: expected 1 to",
    ),
    "unwritable": (["--json", "/proc/table.json"], "cannot write /proc/table.json"),
    "no store": (["--model", "demo", "--store", "/proc/store"], "cannot make /proc/store"),
}


@pytest.mark.parametrize(("usage", "message"), BAD_USAGE.values(), ids=BAD_USAGE.keys())
def test_bad_usage_is_one_line(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, usage: list[str], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["table-c", *usage]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("error: ")
    assert captured.err.count("\n") == 1
    assert message in captured.err
    assert list(tmp_path.iterdir()) == []


def test_too_many_processes_are_refused_before_the_measurement(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    many = len(physical_cpus()) + 1
    assert run("--model", "demo", *FLOAT_ROW, "--processes", f"1,{many}", "--store", tmp_path / "store") == 2
    captured = capsys.readouterr()
    assert captured.err.splitlines()[-1] == (
        f"error: processes {many}: expected 1 to {many - 1}, the cores of this machine"
    )
    assert "round" not in captured.err


def test_bundles_of_other_models_and_recipes_are_others(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store, recipe = tmp_path / "store", tmp_path / "row.toml"
    recipe.write_text("")
    arguments = ("--model", "tiny", "--rows", recipe, "--store", store)
    assert run(*arguments) == 0
    assert run(*arguments, "--seed", "1") == 0
    recipe.write_text("[weights]\nbits = 4\n")
    assert run(*arguments) == 0
    assert kept(store) == ["decoder", "decoder", "row-speed", "row-speed", "row-speed"]
    capsys.readouterr()
    for rebuild in (False, True):
        assert run(*arguments, *["--rebuild"] * rebuild) == 0
        assert ("row: building graphs" in capsys.readouterr().err) == rebuild
    assert len(kept(store)) == 5


def test_an_interruption_leaves_no_half_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*arguments: object, **options: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(measuring, "profile_bundle", interrupted)
    out = tmp_path / "table.json"
    assert run("--model", "demo", *FLOAT_ROW, "--store", tmp_path / "store", "--json", out) == 130
    assert capsys.readouterr().err.splitlines()[-1] == "error: interrupted; nothing half-written was left"
    assert {path.name for path in tmp_path.iterdir()} == {"store"}
    assert kept(tmp_path / "store") == ["decoder", "fp32-speed"]
    children = Path(f"/proc/{os.getpid()}/task/{os.getpid()}/children")
    if children.is_file():
        commands = [subprocess.run(["ps", "-o", "args=", pid], capture_output=True, text=True, check=False).stdout
                    for pid in children.read_text().split()]  # fmt: skip
        assert not any("bundle_worker" in command for command in commands)
