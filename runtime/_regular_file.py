"""Files that are read to their end: a pipe that nobody writes to, or a terminal, would be waited for."""

import os
from pathlib import Path

from nextscale.runtime._errors import NextscaleError, UnreadableError
from nextscale.runtime._outputs import is_open_file


def require_regular(path: Path, error: type[NextscaleError] = NextscaleError, *, or_open: bool = False) -> None:
    """Refuse a pipe, a device or a socket; folders and what is missing are left to whoever opens the file.

    Args:
        path: of the file.
        error: what to raise.
        or_open: let pass what a process has open, such as /dev/stdin or a shell's <(command).
    """
    if or_open and is_open_file(path):
        return
    if os.path.exists(path) and not os.path.isfile(path) and not os.path.isdir(path):
        raise error(f"{path}: not a regular file; give the path of one")


def reading_error(path: Path, error: OSError) -> NextscaleError:
    """What to raise for it: an `UnreadableError` of what is there."""
    kind = NextscaleError if isinstance(error, FileNotFoundError) else UnreadableError
    return kind(f"{path}: cannot be read: {error.strerror or error}")


def read_regular(path: Path, limit: int, too_large: str) -> bytes:
    """The whole of a file, or of what a process has open, of at most so many bytes.

    Args:
        path: of the file.
        limit: in bytes.
        too_large: how the message for more goes on.
    Raises:
        UnreadableError: it is there, and cannot be read.
        NextscaleError: it is missing, no such file, or too large.
    """
    require_regular(path, or_open=True)
    try:
        with open(path, "rb") as file:
            content = file.read(limit + 1)
    except OSError as error:
        raise reading_error(path, error) from None
    if len(content) > limit:
        raise NextscaleError(f"{path}: larger than {limit} bytes{too_large}")
    return content
