"""The peak memory of a process, as it reads it itself.

Imports the standard library alone: workers of some peers run in environments without nextscale's own requirements.
"""

from __future__ import annotations

import sys
from pathlib import Path

_STATUS = Path("/proc/self/status")


def peak_memory() -> int:
    """This process's peak resident memory in bytes.

    From VmHWM where there is one: ru_maxrss keeps the peak of the process that started this one across exec.
    """
    if _STATUS.is_file():
        for line in _STATUS.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    import resource  # Windows has none

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
