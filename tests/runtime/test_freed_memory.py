"""What a process keeps after a large batch, by its resident memory."""

from __future__ import annotations

import json
import platform
import subprocess
import sys
from pathlib import Path

import pytest

from nextscale.runtime import _freed_memory

LARGE = 6000  # images in a batch

PROGRAM = """
import json, os, sys
from nextscale.runtime import Generator, SessionOptions

folder, form, options = sys.argv[1], sys.argv[2], json.loads(sys.argv[3])
generator = Generator(folder, SessionOptions(threads=1, **options))
on_stage = (lambda stage: None) if form == "streaming" else None

def resident():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")

def peak():
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) * 1024 for line in file if line.startswith("VmHWM"))

generator.generate([1], on_stage=on_stage)
before = resident()
generator.generate([1] * {large}, on_stage=on_stage)
after = resident()
print((peak() - before) // 10**6, (after - before) // 10**6)
"""


def growth(bundle: Path, form: str, options: dict[str, bool]) -> tuple[int, int]:
    """MB by which a large batch makes the process grow: at its peak, and after the call."""
    command = [sys.executable, "-c", PROGRAM.replace("{large}", str(LARGE)), str(bundle), form, json.dumps(options)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    peak, kept = map(int, done.stdout.split())
    return peak, kept


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="needs glibc's malloc_trim")
@pytest.mark.parametrize("form", ["generate", "streaming"])
def test_memory_goes_back_where_it_is_asked_for(fake_bundle: Path, form: str) -> None:
    peak, kept = growth(fake_bundle, form, {"return_memory": True})
    assert peak > 100
    assert kept < 0.4 * peak
    _, kept_by_arena = growth(fake_bundle, form, {})
    assert kept_by_arena > 0.7 * peak


@pytest.mark.parametrize("platform", ["darwin", "win32"])
def test_elsewhere_nothing_is_called(platform: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", platform)
    monkeypatch.setattr(_freed_memory.ctypes, "CDLL", None)
    _freed_memory.return_freed_memory()


def test_a_c_library_without_the_call_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_freed_memory.ctypes, "CDLL", lambda name: object())
    _freed_memory.return_freed_memory()
