"""What result files say of where they come from."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest


@pytest.mark.skipif(shutil.which("git") is None, reason="needs git")
def test_a_machine_without_git_does_not_know_the_commit(
    program: Callable[[str], ModuleType], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    module = program("provenance")
    monkeypatch.setenv("PATH", str(tmp_path))
    assert module.commit() == "unknown"
