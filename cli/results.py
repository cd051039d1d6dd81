"""Where a command shows its results."""

import json
import os
import sys
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

import click
from rich.console import Console

from nextscale.runtime._outputs import Writer, is_stdout
from nextscale.runtime._text import printable


def print_path(path: Path, *, err: bool = False) -> None:
    """Print the path of a file that was written: as it is for a program that reads it, and on a terminal so that it
    moves no cursor."""
    stream = sys.stderr if err else sys.stdout
    if stream is not None and not stream.isatty() and stream.encoding.lower() == "utf-8":
        click.echo(os.fsencode(path), err=err)
    else:
        click.echo(printable(str(path)), err=err)


def results_console(*outputs: Path | None) -> Console:
    """Stdout, or stderr where stdout gets one of the command's files.

    Args:
        outputs: files that the command writes; None is none.
    """
    to_stderr = any(path is not None and is_stdout(path) for path in outputs)
    return Console(stderr=to_stderr, highlight=False, markup=False, emoji=False)


def table_writers(
    json_path: Path | None, document: Mapping[str, Any], markdown_path: Path | None, page: str
) -> dict[Path, Writer]:
    """What --json and --markdown of a table write, where they are given."""
    texts = {json_path: json.dumps(document, indent=1, allow_nan=False) + "\n", markdown_path: page}
    return {path: partial(_write_text, text) for path, text in texts.items() if path is not None}


def _write_text(text: str, file: BinaryIO) -> None:
    file.write(text.encode())
