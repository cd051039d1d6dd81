"""The process of one peer: speaks the protocol of `nextscale.measure.contender`.

Each request may also hold what the family's loop takes, such as "top_p" and "text_tokens", and "save", the path of an
.npz for tokens, pictures and guided logits; "forced", the path of an .npy with tokens to go on with instead of those
sampled.
"""

from __future__ import annotations

import json
import os
import platform
import sys
import time
from pathlib import Path
from typing import Any, Protocol, TextIO

import numpy as np

from nextscale.measure._peak_memory import peak_memory
from nextscale.measure.peers import host_loop, infinity_loop
from nextscale.measure.peers.host_loop import Engine, Floats, Pictures


class Loop(Protocol):
    """What generates around an engine."""

    def __call__(self, engine: Engine, batch: int, seed: int, **sampling: Any) -> Pictures:
        """So many pictures."""


def main(arguments: dict[str, Any]) -> None:
    """Load an engine and answer requests until standard input ends.

    Args:
        arguments: "engine", a key of `load_engine`; "family" and "host_weights", a file; further ones are the engine's.
    """
    replies = _take_standard_output()
    try:
        begin = time.perf_counter()
        of_host = ("family", "host_weights")
        engine = load_engine(**{name: value for name, value in arguments.items() if name not in of_host})
        generate = load_host(arguments["family"], Path(arguments["host_weights"]))
        warm = set()
        if engine.compiles:
            generate(engine, 1, 0)
            warm.add(1)
        versions = {**engine.versions, "numpy": np.__version__, "python": platform.python_version()}
        _reply(replies, {"ready": True, "load_seconds": time.perf_counter() - begin, "versions": versions})
        for line in sys.stdin:
            request = json.loads(line)
            if engine.compiles and request["batch"] not in warm:
                generate(engine, request["batch"], 0)
                warm.add(request["batch"])
            _reply(replies, answer(engine, generate, **request))
    except Exception as error:  # whatever a library throws is a line of the table
        _reply(replies, {"error": one_line(error)})
        sys.exit(1)


def answer(
    engine: Engine,
    generate: Loop,
    batch: int,
    seed: int,
    save: str | None = None,
    forced: str | None = None,
    **sampling: Any,
) -> dict[str, Any]:
    """Generate one batch and time it."""
    logits: list[Floats] = []
    if save is not None:
        sampling["on_logits"] = logits.append
    if forced is not None:
        sampling["forced"] = np.load(forced)
    begin = time.perf_counter()
    pictures = generate(engine, batch, seed, **sampling)
    seconds = time.perf_counter() - begin
    if save is not None:
        np.savez(save, **pictures._asdict(), logits=np.concatenate(logits, axis=1))
    return {"seconds": seconds, "peak_memory_bytes": peak_memory()}


def load_host(family: str, path: Path) -> Loop:
    """The loop of a family around engines of one model, of whose small tensors path is the file."""
    if family == "infinity":
        of_infinity = infinity_loop.InfinityHostWeights.load(path)
        return lambda engine, batch, seed, **sampling: infinity_loop.generate(
            engine, of_infinity, batch, seed, **sampling
        )
    weights = host_loop.HostWeights.load(path)
    return lambda engine, batch, seed, **sampling: host_loop.generate(engine, weights, batch, seed, **sampling)


def load_engine(engine: str, threads: int, **options: Any) -> Engine:
    """The engine of a library, which is imported here alone.

    Args:
        engine: "torch", "torch-int8", "torch-infinity", "onnxruntime", "onnxruntime-openvino" or
            "openvino".
        threads: 0 lets the library choose.
        options: of the engine; files as texts.
    """
    if engine == "torch":
        from nextscale.measure.peers.torch_engine import TorchEngine

        return TorchEngine(Path(options.pop("folder")), threads, **options)
    if engine == "torch-int8":
        from nextscale.measure.peers.torch_int8_engine import TorchInt8Engine

        return TorchInt8Engine(Path(options.pop("folder")), threads)
    if engine == "torch-infinity":
        from nextscale.measure.peers.infinity_torch_engine import InfinityTorchEngine

        return InfinityTorchEngine(Path(options.pop("folder")), threads)
    graphs = [Path(options.pop(name)) for name in ("condition", "step", "decoder")]
    if engine == "onnxruntime":
        from nextscale.measure.peers.onnxruntime_engine import OnnxRuntimeEngine

        return OnnxRuntimeEngine(graphs, threads)
    if engine == "onnxruntime-openvino":
        from nextscale.measure.peers.onnxruntime_openvino_engine import OnnxRuntimeOpenVinoEngine

        return OnnxRuntimeOpenVinoEngine(graphs, threads, **options)
    from nextscale.measure.peers.openvino_engine import OpenVinoEngine

    return OpenVinoEngine(graphs, threads, **options)


def one_line(error: BaseException) -> str:
    """An exception's message, on one line of bearable length."""
    text = " ".join(str(error).split())
    return (text or type(error).__name__)[:500]


def _take_standard_output() -> TextIO:
    """Standard output for replies alone; what libraries print goes to standard error."""
    replies = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    return replies


def _reply(replies: TextIO, message: dict[str, Any]) -> None:
    replies.write(json.dumps(message) + "\n")
    replies.flush()
