"""The process in which a bundle is measured alone: it loads, then generates what it is asked for on stdin.

`contender` has the protocol, `bundle_contender` starts it.
"""

from __future__ import annotations

import json
import os
import sys
import time
from typing import Any

import numpy as np

from nextscale.measure._peak_memory import peak_memory
from nextscale.measure.bundle_contender import FORMS
from nextscale.measure.provenance import versions
from nextscale.measure.random_request import Subject, random_request
from nextscale.runtime._errors import NextscaleError
from nextscale.runtime._next_scale_loop import Generator
from nextscale.runtime._session import SessionOptions


def main(arguments: dict[str, Any]) -> None:
    """Load the graphs of one form, say so, and serve requests until stdin ends."""
    try:
        if arguments["cpus"] is not None:
            os.sched_setaffinity(0, arguments["cpus"])
        begin = time.perf_counter()
        generator = Generator(arguments["bundle"], SessionOptions(**arguments["options"]))
        generator.load(*FORMS[arguments["form"]])
        subject = Subject(**arguments["subject"])
        _say({"ready": True, "load_seconds": time.perf_counter() - begin, "versions": versions()})
        for line in sys.stdin:
            request = json.loads(line)
            times = time_batch(generator, arguments["form"], request["batch"], request["seed"], subject)
            _say({**times, "peak_memory_bytes": peak_memory()})
    except NextscaleError as error:
        _say({"error": str(error)})
        sys.exit(1)


def time_batch(generator: Generator, form: str, batch: int, seed: int, subject: Subject) -> dict[str, Any]:
    """Generate one batch of a `random_request` with the default sampling and time it.

    Returns:
        of a reply, "seconds"; where form is "streaming", also "stage_seconds" and "decoder_seconds", which sum to it.
    """
    request = random_request(generator.bundle.manifest, batch, seed, subject)
    begin = time.perf_counter()
    if form == "generate":
        generator.generate(**request)
        return {"seconds": time.perf_counter() - begin}
    marks = [begin]
    for stage in generator.stream(**request):
        marks.append(time.perf_counter())
        preview = stage.preview
    preview()
    marks.append(time.perf_counter())
    *stages, decoder = np.diff(marks).tolist()
    return {"seconds": marks[-1] - begin, "stage_seconds": stages, "decoder_seconds": decoder}


def _say(message: dict[str, Any]) -> None:
    print(json.dumps(message), flush=True)
