"""Where a command shows its results."""

from pathlib import Path

from rich.console import Console

from nextscale.runtime._outputs import is_stdout


def results_console(*outputs: Path | None) -> Console:
    """Stdout, or stderr where stdout gets one of the command's files.

    Args:
        outputs: files that the command writes; None is none.
    """
    to_stderr = any(path is not None and is_stdout(path) for path in outputs)
    return Console(stderr=to_stderr, highlight=False, markup=False)
