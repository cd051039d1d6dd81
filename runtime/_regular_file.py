"""Files that are read to their end: a pipe that nobody writes to, or a terminal, would be waited for."""

import os
from pathlib import Path

from nextscale.runtime._errors import NextscaleError
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
