"""The process in which a bundle is measured alone: it loads, then generates what it is asked for on stdin.

`contender` has the protocol.
"""

import json
import os
import resource
import sys
import time
from pathlib import Path
from typing import Any

from nextscale.measure.bench import FORMS, time_batch
from nextscale.runtime.errors import NextscaleError
from nextscale.runtime.machine import versions
from nextscale.runtime.next_scale_loop import Generator
from nextscale.runtime.session import SessionOptions

_STATUS = Path("/proc/self/status")


def main(arguments: dict[str, Any]) -> None:
    """Load the graphs of one form, say so, and serve requests until stdin ends."""
    try:
        if arguments["cpus"] is not None:
            os.sched_setaffinity(0, arguments["cpus"])
        begin = time.perf_counter()
        generator = Generator(arguments["bundle"], SessionOptions(**arguments["options"]))
        generator.load(*FORMS[arguments["form"]])
        _say({"ready": True, "load_seconds": time.perf_counter() - begin, "versions": versions()})
        for line in sys.stdin:
            request = json.loads(line)
            run = time_batch(generator, arguments["form"], request["batch"], request["seed"])
            _say({"seconds": run.total, "peak_memory_bytes": peak_bytes()})
    except NextscaleError as error:
        _say({"error": str(error)})
        sys.exit(1)


def _say(message: dict[str, Any]) -> None:
    print(json.dumps(message), flush=True)


def peak_bytes() -> int:
    """This process's peak resident memory.

    From VmHWM where there is one: ru_maxrss keeps the peak of the process that started this one across exec.
    """
    if _STATUS.is_file():
        for line in _STATUS.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
