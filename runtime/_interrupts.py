"""What must be done when the process is interrupted, such as removing what is half written.

Ctrl-C in a library is a KeyboardInterrupt, which undoes what it passes. It cannot be raised inside an operator of torch
or an import, so the program `nextscale` ends without one: it runs the actions that are registered here, and exits.
"""

import contextlib
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager

Action = Callable[[], object]
_actions: dict[object, Action] = {}


@contextmanager
def when_interrupted(action: Action) -> Iterator[None]:
    """Have `action` run if the process is interrupted inside the block, whether by an exception or at once.

    Args:
        action: takes no locks, writes nothing through `sys.stdout` or `sys.stderr` and may run twice: the thread that
            was interrupted may stand anywhere.
    """
    key = object()
    _actions[key] = action
    try:
        yield
    except KeyboardInterrupt:
        action()
        raise
    finally:
        del _actions[key]


def run_interrupt_actions() -> None:
    """Run the actions of all blocks that the process is in, innermost first."""
    for action in reversed([*_actions.values()]):
        with contextlib.suppress(Exception):
            action()


def tell(line: str) -> None:
    """Write a line to stderr past Python's buffers, which the interrupted thread may have locked."""
    with contextlib.suppress(OSError):
        os.write(2, f"{line}\n".encode(errors="backslashreplace"))
