"""The fresh process in which `bench` measures load time and peak memory; prints a Footprint as JSON."""

import json
import resource
import sys
import time
from pathlib import Path
from typing import Any

from nextscale.runtime.bench import FORMS, time_batch
from nextscale.runtime.next_scale_loop import Generator
from nextscale.runtime.session import SessionOptions

_STATUS = Path("/proc/self/status")


def main(arguments: dict[str, Any]) -> None:
    """Load the graphs of one form, generate one batch, print what it took."""
    begin = time.perf_counter()
    generator = Generator(arguments["bundle"], SessionOptions(**arguments["options"]))
    generator.load(*FORMS[arguments["form"]])
    load_seconds = time.perf_counter() - begin
    first = time_batch(generator, arguments["form"], arguments["batch"], seed=0)
    json.dump({"load_seconds": load_seconds, "first_seconds": first.total, "peak_bytes": peak_bytes()}, sys.stdout)


def peak_bytes() -> int:
    """This process's peak resident memory.

    From VmHWM where there is one: ru_maxrss keeps the peak of the process that started this one across exec.
    """
    if _STATUS.is_file():
        for line in _STATUS.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
