"""Memory that was freed and that the C library keeps for later."""

import ctypes
import sys


def return_freed_memory() -> None:
    """Give freed memory back to the operating system, where the C library has a call for that (glibc's malloc_trim)."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
    if trim is not None:
        trim(0)
