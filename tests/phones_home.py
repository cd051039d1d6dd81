"""Run a program with an empty home and without the internet, and say what it leaves or tries there.

python phones_home.py COMMAND...    the command, killed by SIGSYS when it opens an internet socket; Linux only
"""

from __future__ import annotations

import ctypes
import os
import platform
import signal
import struct
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

SOCKET = {"x86_64": 41, "aarch64": 198}  # the number of the system call
AF_INET, AF_INET6 = 2, 10
PR_SET_NO_NEW_PRIVS, PR_SET_SECCOMP, SECCOMP_MODE_FILTER = 38, 22, 2
LOAD, JUMP_IF_EQUAL, RETURN = 0x20, 0x15, 0x06  # instructions of a socket filter
ALLOW, KILL = 0x7FFF0000, 0x80000000
NUMBER, FIRST_ARGUMENT = 0, 16  # where the filter finds them


def phones_home(command: Sequence[object], home: Path, environment: Mapping[str, str] | None = None) -> str | None:
    """What is wrong with a program that should leave nothing in its home and open no internet socket; None: nothing.

    Args:
        command: the program; it must end with exit code 0.
        home: an empty folder.
        environment: variables besides PATH and HOME. Those of a CI service stay out: they silence telemetry.
    """
    variables = {"PATH": os.environ["PATH"], "HOME": str(home), **(environment or {})}
    words = [sys.executable, __file__, *map(str, command)]
    done = subprocess.run(words, env=variables, capture_output=True, text=True, check=False)
    left = sorted(str(path.relative_to(home)) for path in home.rglob("*"))
    if left:
        return f"it left {', '.join(left)}"
    if done.returncode == -signal.SIGSYS:
        return "it opened an internet socket"
    return f"exit code {done.returncode}, stderr {done.stderr!r}" if done.returncode != 0 else None


def forbid_sockets() -> None:
    """From here on, and in whatever this process starts, an internet socket ends the process."""
    instructions = (
        (LOAD, 0, 0, NUMBER),
        (JUMP_IF_EQUAL, 0, 3, SOCKET[platform.machine()]),
        (LOAD, 0, 0, FIRST_ARGUMENT),
        (JUMP_IF_EQUAL, 2, 0, AF_INET),
        (JUMP_IF_EQUAL, 1, 0, AF_INET6),
        (RETURN, 0, 0, ALLOW),
        (RETURN, 0, 0, KILL),
    )
    code = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *item) for item in instructions))
    program = ctypes.create_string_buffer(struct.pack("HP", len(instructions), ctypes.addressof(code)))
    libc = ctypes.CDLL(None, use_errno=True)
    for arguments in ((PR_SET_NO_NEW_PRIVS, 1, 0), (PR_SET_SECCOMP, SECCOMP_MODE_FILTER, ctypes.addressof(program))):
        option, *values = map(ctypes.c_ulong, arguments)
        if libc.prctl(option, *values, ctypes.c_ulong(0), ctypes.c_ulong(0)) != 0:
            raise OSError(ctypes.get_errno(), "prctl")


if __name__ == "__main__":
    forbid_sockets()
    os.execvp(sys.argv[1], sys.argv[1:])
