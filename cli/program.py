"""The program `nextscale`: the command line, ended within a second by Ctrl-C or SIGTERM whatever it is doing.

Python raises KeyboardInterrupt only between its own instructions: not before an operator of torch has ended, and inside
an import as any other error. So a thread waits for the signal, undoes what is unfinished and ends the process. This
module imports little, so that the thread waits from the start.
"""

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from nextscale.runtime._interrupts import run_interrupt_actions, tell

INTERRUPTED = 130
SIGNALS = (signal.SIGINT, signal.SIGTERM)
_SHOW_CURSOR = b"\x1b[?25h\n"  # which a progress bar hid


def run() -> int:
    """Run the command line of this process and return its exit code."""
    _hold_closed_streams()
    with _ended_by_signals():
        from nextscale.cli.main import main

        return main()


def _hold_closed_streams() -> None:
    """Take the numbers of the standard streams that whoever started this process closed.

    Otherwise the next file to be opened would get such a number, and what a library prints. Held for reading alone, it
    is refused as an output.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDONLY)  # the lowest number that is free


@contextmanager
def _ended_by_signals() -> Iterator[None]:
    """Meanwhile a signal ends the process, unless whoever started it had that signal ignored."""
    taken = [number for number in SIGNALS if signal.getsignal(number) is not signal.SIG_IGN]
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    try:
        threading.Thread(target=_end_when_told, args=(reader,), name="signals", daemon=True).start()
    except RuntimeError:  # a limit has no room for another thread: signals are then Python's
        os.close(reader)
        os.close(writer)
        yield
        return
    signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    for number in taken:
        signal.signal(number, _wait_for_the_end)
    try:
        yield
    finally:
        # What comes while Python finalizes has nothing to undo.
        for number in taken:
            signal.signal(number, signal.SIG_DFL)
        signal.set_wakeup_fd(-1)
        os.close(writer)


def _end_when_told(reader: int) -> None:
    """Wait for a signal's number in the pipe, then end the process; or for the pipe's end."""
    while told := os.read(reader, 1):
        if told[0] in SIGNALS:
            if os.isatty(2):
                os.write(2, _SHOW_CURSOR)
            run_interrupt_actions()
            tell("error: interrupted; nothing half-written was left")
            os._exit(INTERRUPTED)
    os.close(reader)


def _wait_for_the_end(*_: object) -> None:
    """The main thread does nothing more, lest it touch what is being undone."""
    while True:
        time.sleep(1)
