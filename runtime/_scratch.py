"""Temporary folders beside what is written; none stays for good, however a run ends.

Each is locked as long as its process lives. What a killed run left is not locked, and the next run that writes into the
same folder removes it; that of a run which still goes on is left alone.
"""

import contextlib
import os
import re
import secrets
import shutil
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from nextscale.runtime._interrupts import when_interrupted

if sys.platform != "win32":
    import fcntl

_NAME = re.compile(r"\.nextscale-[0-9a-f]{8}\.partial")
_REMOVALS = 10  # attempts at a folder into which another thread may still write


@contextmanager
def scratch_folder(parent: Path) -> Iterator[Path]:
    """An empty folder in `parent`; gone after the block, with what is left in it.

    Raises:
        OSError: it cannot be made.
    """
    remove_left_scratch(parent)
    path = parent / f".nextscale-{secrets.token_hex(4)}.partial"
    with when_interrupted(lambda: _remove(path)):
        handle = None
        try:
            handle = _make_locked(path)
            yield path
        finally:
            _remove(path)
            if handle is not None:
                os.close(handle)


def remove_left_scratch(parent: Path) -> None:
    """Remove what killed runs left in a folder."""
    with contextlib.suppress(OSError):
        for left in [Path(entry) for entry in os.scandir(parent) if _NAME.fullmatch(entry.name)]:
            handle = _lock(left, wait=False)
            if handle is not None:
                if _is(left, handle):
                    shutil.rmtree(left, ignore_errors=True)
                os.close(handle)


def remove_folder(folder: Path) -> None:
    """Remove a folder, all or nothing: half of one would be taken for a damaged one.

    Raises:
        OSError: it cannot be moved.
    """
    with scratch_folder(folder.parent) as scratch:
        folder.rename(scratch / folder.name)


def _make_locked(path: Path) -> int | None:
    path.mkdir(0o700)
    handle = _lock(path, wait=True)
    # Taken for a killed run's before it was locked?
    while not (os.path.lexists(path) if handle is None else _is(path, handle)):
        if handle is not None:
            os.close(handle)
        path.mkdir(0o700)
        handle = _lock(path, wait=True)
    return handle


def _lock(folder: Path, wait: bool) -> int | None:
    """Open and lock a folder until it is closed or the process ends; None where it is locked or cannot be."""
    if sys.platform == "win32":
        return None
    try:
        handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    except OSError:
        return None
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except OSError:  # another process has it, or this file system has no locks
        os.close(handle)
        return None
    return handle


def _is(path: Path, handle: int) -> bool:
    try:
        return os.path.samestat(os.lstat(path), os.fstat(handle))
    except FileNotFoundError:
        return False


def _remove(folder: Path) -> None:
    for _ in range(_REMOVALS):
        shutil.rmtree(folder, ignore_errors=True)
        if not os.path.lexists(folder):
            break
        time.sleep(0.02)
