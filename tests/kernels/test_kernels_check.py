"""kernels_check (kernels/tests), which compares all instruction sets of this processor on random shapes."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest


@pytest.fixture
def program(ops_library: Path) -> Path:
    path = ops_library.parent / "kernels_check"
    if not path.is_file():
        pytest.skip("this library was built elsewhere")
    return path


def test_instruction_sets_and_threads_give_the_same_bits(program: Path) -> None:
    done = subprocess.run([str(program), "--seed", "1", "--cases", "20"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, ""), done.stdout
    assert done.stdout.startswith("seed 1 on portable emulated")


def test_it_refuses_what_it_does_not_know(program: Path) -> None:
    for arguments in (["--kernel", "soothsayer"], ["--cases"], ["--speed", "3"]):
        assert subprocess.run([str(program), *arguments], capture_output=True, check=False).returncode == 2, arguments
