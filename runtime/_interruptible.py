"""Calls into ONNX Runtime that Ctrl-C or a cancel flag ends early."""

import os
import threading
from collections.abc import Callable
from queue import SimpleQueue
from typing import Protocol, TypeVar

from nextscale.runtime._errors import Cancelled, RequestError
from nextscale.runtime._wording import shown_value

POLL_SECONDS = 0.05
T = TypeVar("T")
# Of the thread that makes the main thread's calls, once there is one. With a new thread for each call, the C library
# would spread what they allocate over several arenas and keep more of it.
_calls: list[SimpleQueue[Callable[[], None]]] = []


class CancelFlag(Protocol):
    """What `cancel` needs to be; a threading.Event is one."""

    def is_set(self) -> bool:
        """Whether to stop."""


def is_set(cancel: CancelFlag | None) -> bool:
    """Whether a flag, if there is one, says to stop.

    Raises:
        RequestError: what it says is neither true nor false, as an array.
    """
    said = None if cancel is None else cancel.is_set()
    try:
        return bool(said)
    except Exception:  # whatever a foreign __bool__ raises
        raise RequestError(f"cancel: is_set() said {shown_value(said)}; expected True or False") from None


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
    done, changing = threading.Event(), threading.Lock()
    begun = given_up = False

    def run() -> None:
        nonlocal begun
        with changing:
            if given_up:
                return
            begun = True
        try:
            results.append(call())
        except BaseException as error:
            failures.append(error)
        finally:
            done.set()

    try:
        _begin(run)
        # Not for ever: a signal that comes just before a wait begins does not end it.
        while not done.wait(POLL_SECONDS):
            if is_set(cancel):
                raise Cancelled("cancelled")
    except BaseException:
        stop()
        with changing:
            given_up = True
        if begun:
            done.wait()
        raise
    if failures:
        raise failures[0]
    return results[0]


def _begin(run: Callable[[], None]) -> None:
    """Have another thread run it; the main thread has one for all its calls."""
    try:
        if threading.current_thread() is not threading.main_thread():
            threading.Thread(target=run, name="nextscale", daemon=True).start()
            return
        if not _calls:
            calls: SimpleQueue[Callable[[], None]] = SimpleQueue()
            threading.Thread(target=_serve, args=(calls,), name="nextscale", daemon=True).start()
            _calls.append(calls)
    except RuntimeError:  # memory or a limit has no room for another thread
        run()
        return
    _calls[0].put(run)


def _serve(calls: SimpleQueue[Callable[[], None]]) -> None:
    while True:
        calls.get()()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_calls.clear)
