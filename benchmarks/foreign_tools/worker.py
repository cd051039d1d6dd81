"""The process of one contender: runs a model when asked; speaks the protocol of `nextscale.measure.contender`.

A request's seed chooses the sample; its seconds are of one run, the mean of as many as take TURN seconds, behind one
that does not count. A request may hold "save", a folder for the outputs on all samples.
"""

from __future__ import annotations

import json
import os
import platform
import sys
import time
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from foreign_tools.feeds import Arrays, read_feeds, write_feeds

from nextscale.measure._peak_memory import peak_memory

TURN = 0.2


class Engine(Protocol):
    """A model in a library.

    Attributes:
        versions: of the library.
    """

    versions: dict[str, str]

    def __call__(self, feed: Arrays) -> Arrays:
        """Its outputs, by name."""


def main(engine: str, model: str, samples: str, threads: int) -> None:
    """Load a model and answer requests until standard input ends.

    Args:
        engine: "onnxruntime" or "openvino".
        model: its file.
        samples: a folder (`write_feeds`).
        threads: of one run.
    """
    replies = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what libraries print goes to standard error

    def reply(**message: Any) -> None:
        replies.write(json.dumps(message) + "\n")
        replies.flush()

    try:
        begin = time.perf_counter()
        feeds = read_feeds(Path(samples))
        run = _load(engine, Path(model), feeds[0], threads)
        versions = {**run.versions, "numpy": np.__version__, "python": platform.python_version()}
        reply(ready=True, load_seconds=time.perf_counter() - begin, versions=versions)
        for line in sys.stdin:
            request = json.loads(line)
            if "save" in request:
                write_feeds((run(feed) for feed in feeds), Path(request["save"]))
            seconds = _seconds(run, feeds[request["seed"] % len(feeds)])
            reply(seconds=seconds, peak_memory_bytes=peak_memory())
    except Exception as error:  # whatever a library throws is a line of the table
        reply(error=" ".join(str(error).split())[:500] or type(error).__name__)
        sys.exit(1)


def _seconds(run: Engine, feed: Arrays) -> float:
    run(feed)
    runs, begin = 0, time.perf_counter()
    while (spent := time.perf_counter() - begin) < TURN:
        run(feed)
        runs += 1
    return spent / runs


def _load(engine: str, model: Path, feed: Arrays, threads: int) -> Engine:
    """The library is imported here alone: each has an environment of its own."""
    if engine == "openvino":
        from foreign_tools.openvino_engine import OpenVinoEngine

        return OpenVinoEngine(model, feed, threads)
    from foreign_tools.onnxruntime_engine import OnnxRuntimeEngine

    return OnnxRuntimeEngine(model, threads)


if __name__ == "__main__":
    main(**json.loads(sys.argv[1]))
