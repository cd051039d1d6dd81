"""benchmarks/without_amx.py: what it refuses, to whom, and what it leaves alone."""

from __future__ import annotations

import errno
import platform
import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = Path(__file__).parents[2] / "benchmarks" / "without_amx.py"
# Prints the error that asking for a feature's permission gives (18 are the tiles), and that of another request.
ASK = """
import ctypes
libc = ctypes.CDLL(None, use_errno=True)
for request, argument in ((0x1023, 18), (0x1022, ctypes.byref(ctypes.c_ulong()))):
    ctypes.set_errno(0)
    libc.syscall(158, request, argument)
    print(ctypes.get_errno())
"""

pytestmark = pytest.mark.skipif(
    (platform.system(), platform.machine()) != ("Linux", "x86_64"), reason="the filter is of Linux on x86-64"
)


def without_amx(*command: str) -> subprocess.CompletedProcess[str]:
    done = subprocess.run([sys.executable, PROGRAM, *command], capture_output=True, text=True, check=False)
    if "takes no filter" in done.stderr:
        pytest.skip(done.stderr.strip())
    return done


def test_tiles_are_refused_to_the_command_and_to_what_it_starts() -> None:
    again = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {ASK!r}], check=True)"
    plain = subprocess.run([sys.executable, "-c", ASK], capture_output=True, text=True, check=True).stdout.split()
    for code in (ASK, again):
        tiles, other = map(int, without_amx(sys.executable, "-c", code).stdout.split())
        assert tiles == errno.EPERM
        assert other == int(plain[1])


def test_the_exit_code_is_the_command_s() -> None:
    assert without_amx(sys.executable, "-c", "raise SystemExit(7)").returncode == 7


def test_a_command_that_is_not_there_is_one_line() -> None:
    done = without_amx("no-such-command")
    assert (done.returncode, done.stderr) == (1, "error: no-such-command: No such file or directory\n")
