"""What killed runs left goes with the next run; what others still use stays."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from nextscale.runtime import _scratch
from nextscale.runtime._scratch import remove_folder, remove_left_scratch, scratch_folder

HOLD = """
import sys; sys.path[:] = {path!r}
from pathlib import Path
from nextscale.runtime._scratch import scratch_folder
with scratch_folder(Path({parent!r})) as folder:
    (folder / "nested").mkdir()
    (folder / "nested" / "file").touch()
    print(folder.name, flush=True)
    sys.stdin.read()
"""


def test_it_is_gone_after_the_block(tmp_path: Path) -> None:
    with scratch_folder(tmp_path) as folder:
        (folder / "file").touch()
        assert folder.parent == tmp_path
    assert not list(tmp_path.iterdir())


def test_a_killed_runs_is_removed_and_a_living_runs_is_not(tmp_path: Path) -> None:
    command = [sys.executable, "-c", HOLD.format(path=sys.path, parent=str(tmp_path))]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        name = process.stdout.readline().strip()
        with scratch_folder(tmp_path) as mine:
            assert {path.name for path in tmp_path.iterdir()} == {name, mine.name}
            remove_left_scratch(tmp_path)
            assert mine.exists()
        assert (tmp_path / name / "nested" / "file").exists()
    finally:
        process.kill()
        process.communicate()
    with scratch_folder(tmp_path) as mine:
        assert [path.name for path in tmp_path.iterdir()] == [mine.name]


def test_other_names_are_left_alone(tmp_path: Path) -> None:
    for name in (".nextscale-mine.partial", ".nextscale-0123456789.partial", "nextscale-01234567.partial"):
        (tmp_path / name).mkdir()
    (tmp_path / ".nextscale-01234567.partial").symlink_to(tmp_path)
    before = sorted(tmp_path.iterdir())
    remove_left_scratch(tmp_path)
    assert sorted(tmp_path.iterdir()) == before


def test_a_removed_folder_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "folder" / "nested").mkdir(parents=True)
    remove_folder(tmp_path / "folder")
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(sys.platform == "win32", reason="without locks")
def test_one_that_another_run_removed_before_it_was_locked_is_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lock, removed = _scratch._lock, list[Path]()

    def after_removal(folder: Path, wait: bool) -> int | None:
        if wait and not removed:
            removed.append(folder)
            remove_left_scratch(tmp_path)
            assert not folder.exists()
        return lock(folder, wait)

    monkeypatch.setattr(_scratch, "_lock", after_removal)
    with scratch_folder(tmp_path) as folder:
        assert removed == [folder]
        assert folder.is_dir()
        remove_left_scratch(tmp_path)
        assert folder.is_dir()


@pytest.mark.skipif(sys.platform == "win32", reason="without locks")
def test_runs_that_begin_at_once_keep_theirs(tmp_path: Path) -> None:
    code = (
        f"import sys; sys.path[:] = {sys.path!r}\n"
        "from pathlib import Path\n"
        "from nextscale.runtime._scratch import scratch_folder\n"
        "sys.stdin.read()\n"
        "for _ in range(200):\n"
        f"    with scratch_folder(Path({str(tmp_path)!r})) as folder: (folder / 'file').touch()\n"
    )
    runs = [subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE) for _ in range(3)]
    for run in runs:
        assert run.stdin is not None
        run.stdin.close()
    assert [run.wait() for run in runs] == [0, 0, 0]
    assert not list(tmp_path.iterdir())
