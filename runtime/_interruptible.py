"""Calls into ONNX Runtime that Ctrl-C or a cancel flag ends early."""

import threading
from collections.abc import Callable
from typing import Protocol, TypeVar

from nextscale.runtime._errors import Cancelled

POLL_SECONDS = 0.05
T = TypeVar("T")


class CancelFlag(Protocol):
    """What `cancel` needs to be; a threading.Event is one."""

    def is_set(self) -> bool:
        """Whether to stop."""


def call_interruptibly(call: Callable[[], T], stop: Callable[[], object], cancel: CancelFlag | None = None) -> T:
    """Make a call that holds no lock of Python's meanwhile.

    Python raises KeyboardInterrupt in the main thread alone, and not before a call into a library returns. So the main
    thread waits while another makes the call.

    Args:
        call: what to do.
        stop: makes the call return early.
        cancel: looked at all the time.
    Raises:
        Cancelled: cancel is set.
    """
    if cancel is None and threading.current_thread() is not threading.main_thread():
        return call()
    results: list[T] = []
    failures: list[BaseException] = []
    done = threading.Event()

    def run() -> None:
        try:
            results.append(call())
        except BaseException as error:
            failures.append(error)
        finally:
            done.set()

    thread = threading.Thread(target=run, name="nextscale", daemon=True)
    try:
        thread.start()
        while not done.wait(None if cancel is None else POLL_SECONDS):
            if cancel is not None and cancel.is_set():
                raise Cancelled("cancelled")
    except BaseException:
        stop()
        if thread.is_alive():
            thread.join()
        raise
    thread.join()  # a process that forks now has no thread of ours
    if failures:
        raise failures[0]
    return results[0]
