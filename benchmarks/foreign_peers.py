"""What a user would make a model integer with instead: each tool with its best settings, in a process of its own."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from foreign_subjects.packages import environment, run_program

import nextscale
from nextscale.measure.contender import Contender
from nextscale.runtime._outputs import atomic_folder

HERE = Path(__file__).parent
TOOLS = HERE / "foreign_tools"
# Files beside a model that a peer made: how long it took, and what its tool has to say of it, if anything.
SECONDS, NOTE = "seconds.txt", "note.txt"
# What runs in an environment of its own still reads nextscale's protocol and these programs.
SEEN = os.pathsep.join([str(HERE), str(Path(nextscale.__file__).parents[1])])
ENVIRONMENTS = {
    "openvino": ("openvino==2026.4.1", "nncf==3.4.0", "onnx==1.23.2", "onnxruntime==1.32.0"),
    # It asks for neither prettytable nor scipy, though it imports them, and was made for releases of its time.
    "neural-compressor": (
        "onnx-neural-compressor==1.0",
        "onnx==1.16.2",
        "onnxruntime==1.18.1",
        "prettytable==3.18.0",
        "scipy==1.17.1",
    ),
}


@dataclass(frozen=True)
class Peer:
    """A tool.

    Attributes:
        title: in the results.
        program: of foreign_tools, which makes the model.
        settings: of its main, beside the files and threads.
        environment: that it runs in; None is this one.
        engine: what runs the model that it makes.
    """

    title: str
    program: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    environment: str | None = None
    engine: str = "onnxruntime"


def _static(title: str, operators: list[str], layers_only: bool) -> Peer:
    settings = {"operators": operators, "layers_only": layers_only}
    return Peer(f"ONNX Runtime, quantize_static, {title}", "onnxruntime_static", settings)


PEERS = {
    "onnxruntime-dynamic": Peer("ONNX Runtime, quantize_dynamic", "onnxruntime_dynamic"),
    "onnxruntime-layers": _static("linear layers", ["MatMul"], True),
    "onnxruntime-matmul": _static("all MatMul", ["MatMul"], False),
    "onnxruntime-all": _static("all operators", [], False),
    "nncf-onnx": Peer("NNCF, in ONNX Runtime", "nncf_quantize", {"form": "onnx"}, "openvino"),
    "openvino-float": Peer("OpenVINO, float", "openvino_convert", {}, "openvino", "openvino"),
    "openvino-nncf": Peer("NNCF, in OpenVINO", "nncf_quantize", {"form": "openvino"}, "openvino", "openvino"),
    "neural-compressor": Peer("Intel Neural Compressor", "neural_compressor_quantize", {}, "neural-compressor"),
}


@dataclass(frozen=True)
class Made:
    """A model that can be run.

    Attributes:
        model: its file.
        engine: what runs it.
        python: of the engine's environment.
        seconds: that making it took.
        note: what its tool said of it.
    """

    model: Path
    engine: str = "onnxruntime"
    python: Path = Path(sys.executable)
    seconds: float = 0.0
    note: str = ""

    @property
    def bytes(self) -> int:
        """Of the file and what lies beside it under its name."""
        return sum(path.stat().st_size for path in self.model.parent.glob(f"{self.model.stem}.*"))

    def contender(self, name: str, samples: Path, threads: int) -> Contender:
        """A process that runs it on samples (`foreign_tools.feeds`)."""
        arguments = {"engine": self.engine, "model": str(self.model), "samples": str(samples), "threads": threads}
        command = (str(self.python), str(TOOLS / "worker.py"), json.dumps(arguments))
        return Contender(name, command, variables(threads))


def make(name: str, model: Path, calibration: Path, folder: Path, threads: int, work: Path) -> Made:
    """The model that a peer makes; what is in the folder already is not made again.

    Args:
        name: of PEERS.
        model: the float file.
        calibration: a folder of samples.
        folder: where it goes.
        threads: of the tool.
        work: where environments are.
    Raises:
        NextscaleError: the tool cannot be installed, or fails.
    """
    peer = PEERS[name]
    python = Path(sys.executable)
    if peer.environment is not None:
        python = environment(peer.environment, ENVIRONMENTS[peer.environment], work)
    if not folder.exists():
        files = {"model": str(model), "calibration": str(calibration), "threads": threads}
        with atomic_folder(folder) as made:
            arguments = json.dumps({**files, **peer.settings, "out": str(made)})
            begin = time.perf_counter()
            run_program([str(python), str(TOOLS / f"{peer.program}.py"), arguments], variables(threads))
            (made / SECONDS).write_text(f"{time.perf_counter() - begin:.1f}", encoding="utf-8")
    file = folder / ("model.xml" if peer.engine == "openvino" else "model.onnx")
    seconds = float((folder / SECONDS).read_text(encoding="utf-8"))
    note = folder / NOTE
    return Made(file, peer.engine, python, seconds, note.read_text(encoding="utf-8") if note.exists() else "")


def variables(threads: int) -> dict[str, str]:
    """Of a process of a tool: what it imports besides its packages, and no telemetry."""
    return {
        **os.environ,
        "PYTHONPATH": SEEN,
        "OMP_NUM_THREADS": str(threads),
        "OPENBLAS_NUM_THREADS": "1",
        "ORT_DISABLE_TELEMETRY": "1",
    }
