"""Locks of files, which end with their process, however that ends."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

if sys.platform != "win32":
    import fcntl


def lock(path: Path, *, shared: bool, wait: bool = True) -> int | None:
    """Open a file, made when missing, and lock it until it is closed.

    Where a file system has no locks, it is opened alone.

    Args:
        path: of the file.
        shared: others may share the lock; or nobody.
        wait: for those who have it.
    Returns:
        The open file; None where another has the lock and it is not waited for.
    Raises:
        OSError: the file cannot be made.
    """
    handle = os.open(path, os.O_RDWR | os.O_CREAT | getattr(os, "O_CLOEXEC", 0), 0o644)
    if sys.platform != "win32":
        try:
            fcntl.flock(handle, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            os.close(handle)
            return None
        except OSError:  # this file system has none
            pass
        except BaseException:
            os.close(handle)
            raise
    return handle


def is_locked(path: Path) -> bool:
    """Whether somebody has a lock on a file, which is only looked at and need not be there.

    Raises:
        OSError: the file cannot be read.
    """
    try:
        handle = os.open(path, os.O_RDONLY | getattr(os, "O_CLOEXEC", 0))
    except FileNotFoundError:
        return False
    try:
        if sys.platform != "win32":
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:  # this file system has none
        pass
    finally:
        os.close(handle)
    return False


@contextmanager
def locked_alone(*paths: Path) -> Iterator[bool]:
    """Whether nobody else has a lock on any of these files, and then nobody has meanwhile; without waiting."""
    handles = list[int]()
    try:
        for path in paths:
            handle = lock(path, shared=False, wait=False)
            if handle is None:
                break
            handles.append(handle)
        yield len(handles) == len(paths)
    finally:
        for handle in handles:
            os.close(handle)
