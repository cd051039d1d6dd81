"""The sha256 of a file."""

import hashlib
import os
from pathlib import Path

from nextscale.runtime._errors import NextscaleError
from nextscale.runtime._regular_file import require_regular

_CHUNK = 1 << 20


def file_sha256(path: str | os.PathLike[str]) -> str:
    """Of a file's content, in hexadecimal.

    Raises:
        NextscaleError: the file cannot be read.
    """
    digest = hashlib.sha256()
    require_regular(Path(path))
    try:
        with open(path, "rb") as file:
            while chunk := file.read(_CHUNK):
                digest.update(chunk)
    except OSError as error:
        raise NextscaleError(f"{os.fspath(path)}: cannot be read: {error.strerror}") from None
    return digest.hexdigest()
