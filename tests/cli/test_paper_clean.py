"""`nextscale paper`: a group that loads one command, and `clean`."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from refusal import assert_refused

from nextscale.cli.main import main
from nextscale.cli.paper import COMMANDS
from nextscale.paper.store import Key, Store


@pytest.fixture
def store(tmp_path: Path) -> Path:
    """With a bundle of 1970, and maps and figures of now."""
    folder = tmp_path / "store"
    with Store(folder) as store:
        old = store.made(Key("bundle", {}, "demo-ours-w4a6"), lambda target: target.write_bytes(bytes(3 * 10**6)))
        store.made(Key("maps", {}, "demo-none-64"), lambda target: target.write_bytes(bytes(3)))
        store.partial(Key("rounding", {}, "demo-ours-w4a8"))
        (store.figures / "seen-\x1b[2J.npz").write_bytes(bytes(3))
    os.utime(old.parent / "key.json", times=(0, 0))
    return folder


def clean(store: Path, *arguments: str) -> int:
    return main(["paper", "clean", "--store", str(store), *arguments])


def test_what_there_is_is_shown(store: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert clean(store) == 0
    out = capsys.readouterr().out
    assert "\x1b" not in out
    for text in ("demo-ours-w4a6", "3.0", "1970-01-01", "demo-ours-w4a8 (begun)", "seen-\\x1b[2J.npz", "4 entries"):
        assert text in out
    assert "--all, --kind or --older-than remove" in out
    with Store(store) as there:
        assert len(there.entries()) == 4


@pytest.mark.parametrize(
    ("arguments", "removed"),
    [
        (("--all",), {"bundle", "maps", "rounding", "figures"}),
        (("--kind", "maps", "--kind", "figures"), {"maps", "figures"}),
        (("--older-than", "30d"), {"bundle"}),
        (("--older-than", "12h", "--kind", "maps"), set()),
    ],
)
def test_what_is_asked_for_is_removed(
    store: Path, capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...], removed: set[str]
) -> None:
    with Store(store) as there:
        before = {entry.kind for entry in there.entries()}
    assert clean(store, *arguments, "--dry-run") == 0
    assert "would remove" in capsys.readouterr().out
    with Store(store) as there:
        assert {entry.kind for entry in there.entries()} == before
    assert clean(store, *arguments) == 0
    shown = capsys.readouterr().out
    assert f"removed {len(removed)} ent" in shown if removed else "removed nothing" in shown
    with Store(store) as there:
        assert {entry.kind for entry in there.entries()} == before - removed


def test_what_is_used_stays(store: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with Store(store) as used:
        used.hold(Key("bundle", {}))
        assert clean(store, "--all") == 0
        assert "1 entry, 3.0 MB stay: a running command uses them" in capsys.readouterr().out
        assert used.find(Key("bundle", {})) is not None


def test_the_environment_names_the_folder(
    store: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NEXTSCALE_STORE", str(store))
    assert main(["paper", "clean"]) == 0
    assert "demo-ours-w4a6" in capsys.readouterr().out


def test_where_nothing_is_kept_nothing_is_made(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in ((), ("--all",), ("--dry-run", "--kind", "bundle")):
        assert clean(tmp_path / "none", *arguments) == 0
        assert "nothing" in capsys.readouterr().out
    assert list(tmp_path.iterdir()) == []


BAD_USAGE = {
    "all of a kind": (["--all", "--kind", "maps"], "--all does not go with --kind, --older-than"),
    "unknown kind": (["--kind", "pictures"], "'pictures' is not one of 'bundle'"),
    "no age": (["--older-than", "30"], " is not an age such as 12h, 30d or 4w"),
    "other digits": (["--older-than", "٣d"], "is not an age"),
}


@pytest.mark.parametrize(("usage", "message"), BAD_USAGE.values(), ids=BAD_USAGE.keys())
def test_bad_usage_is_one_line(store: Path, capsys: pytest.CaptureFixture[str], usage: list[str], message: str) -> None:
    assert_refused(capsys, clean(store, *usage), message)


def test_another_folder_is_left_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    assert_refused(capsys, clean(tmp_path, "--all"), "holds other files, and no store.json; choose another --store")
    assert (tmp_path / "mine.txt").exists()


@pytest.mark.parametrize("limit", ["40", "GB", "-1GB", "1e9GB", "nanGB"])
def test_a_limit_is_a_size(tmp_path: Path, capsys: pytest.CaptureFixture[str], limit: str) -> None:
    store = ("--store", str(tmp_path / "store"), "--store-limit", limit)
    assert_refused(capsys, main(["paper", "table-c", "--model", "demo", *store]), "is not a size such as 500MB or 40GB")
    assert list(tmp_path.iterdir()) == []


def test_a_limit_that_is_too_small_is_one_line(store: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ("--model", "demo", "--rows", "fp32", "--store", str(store), "--store-limit", "1MB", "--quiet")
    message = "3.0 MB are in use, and 0.0 MB more are needed, beyond the limit of 1.0 MB; give a larger --store-limit"
    with Store(store) as used:
        used.hold(Key("bundle", {}))
        assert_refused(capsys, main(["paper", "table-c", *arguments]), message)


def test_the_group_shows_its_commands_without_torch() -> None:
    code = (
        f"import sys; sys.path[:] = {sys.path!r}\n"
        "from nextscale.cli.main import main; code = main(['paper', '--help'])\n"
        "assert not {'torch', 'onnx', 'onnxruntime', 'numpy'} & set(sys.modules), sorted(sys.modules); sys.exit(code)"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (found.returncode, found.stderr) == (0, "")
    assert all(f"  {name}" in found.stdout for name in COMMANDS)


@pytest.mark.parametrize("command", [["table-c"], ["paper", "table-c"]], ids=" ".join)
def test_the_table_of_speeds_has_two_spellings(command: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*command, "--help"]) == 0
    assert "--half-width" in capsys.readouterr().out
