"""Run a graph of Infinity's VAE once, in a process without torch: `infinity_vae_memory.py` starts it for each row.

    python benchmarks/infinity_vae_worker.py GRAPH SIDE THREADS [LIBRARY]

GRAPH is a decoder or an encoder, SIDE the picture's in pixels, LIBRARY that of fused operators. Prints seconds of the
run and the process's peak of resident memory in bytes, as JSON.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import numpy as np

from nextscale.measure._peak_memory import peak_memory
from nextscale.runtime._session import SessionOptions, new_session, session_settings

PIXELS = 16  # of a latent position


def main(graph: str, side: int, threads: int, library: str | None = None) -> None:
    settings = session_settings(SessionOptions(threads=threads))
    if library is not None:
        settings.register_custom_ops_library(library)
    session = new_session(Path(graph), settings)
    (source,) = session.get_inputs()
    rng = np.random.default_rng(0)
    if source.name == "images":
        x = rng.integers(0, 256, (1, side, side, 3)).astype(np.uint8)
    else:
        channels = source.shape[1]
        x = rng.standard_normal((1, channels, side // PIXELS, side // PIXELS)).astype(np.float32) / channels**0.5
    began = time.perf_counter()
    session.run(None, {source.name: x})
    print(json.dumps({"seconds": time.perf_counter() - began, "bytes": peak_memory()}))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), *sys.argv[4:])
