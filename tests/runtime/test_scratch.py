"""What killed runs left goes with the next run; what others still use stays."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

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
