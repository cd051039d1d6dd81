"""Where each peer finds what it needs, and the command line that starts it."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nextscale.measure.contender import Contender
from nextscale.measure.peers import NAMES
from nextscale.measure.peers.stored_models import digest
from nextscale.models.sources import Source
from nextscale.runtime._errors import NextscaleError

_WORKER = "import sys; sys.path{path}; from nextscale.measure.peers.worker import main; main({arguments!r})"
_FAILURE = "import json, sys; print(json.dumps({'error': sys.argv[1]})); sys.exit(1)"


@dataclass(frozen=True)
class PeerFolder:
    """Where the peers of one model find what they need.

    Attributes:
        work: the user's folder; environments in it serve all models.
        model: the folder in it of this model.
    """

    work: Path
    model: Path

    @classmethod
    def of(cls, source: Source, work: Path) -> PeerFolder:
        name = re.sub(r"[^A-Za-z0-9._-]+", "-", source.name).strip(".-") or "model"
        work = work.absolute()
        return cls(work, work / f"{name}-{digest(source.var, source.vqvae)}")

    @property
    def models(self) -> Path:
        return self.model / "torch"

    @property
    def exported(self) -> Path:
        return self.model / "onnx"

    @property
    def compiled(self) -> Path:
        """torch.compile's cache, and a file for each peer that setup has compiled."""
        return self.model / "torch-compile"

    @property
    def onnxruntime_int8(self) -> Path:
        return self.model / "onnxruntime-int8"

    @property
    def openvino_int8(self) -> Path:
        return self.model / "openvino-int8"

    @property
    def environment(self) -> Path:
        return self.work / "environment-openvino"

    @property
    def openvino_python(self) -> Path:
        return self.environment / "bin" / "python"

    @property
    def installed(self) -> Path:
        """Lists the packages in OpenVINO's environment, once they are all there."""
        return self.environment / "nextscale-packages.txt"

    def needs(self, name: str) -> tuple[Path, ...]:
        """What a peer needs."""
        library = name.rpartition("-")[0]
        openvino = (self.installed,) if library == "openvino" else ()
        models = (self.models,) if library in ("pytorch", "torch-compile") else ()
        quantized = {"onnxruntime-int8": (self.onnxruntime_int8,), "openvino-int8": (self.openvino_int8,)}
        return (*models, self.exported, *openvino, *quantized.get(name, ()))

    def missing(self, name: str) -> Path | None:
        """The first of them that is not there."""
        return next((path for path in self.needs(name) if not path.exists()), None)


def checked_names(names: Sequence[str] | None) -> tuple[str, ...]:
    """The names asked for; None is all.

    Raises:
        NextscaleError: one is unknown.
    """
    chosen = tuple(names or NAMES)
    for name in chosen:
        if name not in NAMES:
            raise NextscaleError(f"no peer {name!r}; the peers are {', '.join(NAMES)}")
    return chosen


def contender(name: str, place: PeerFolder, threads: int) -> Contender:
    """One peer's process."""
    library, _, precision = name.rpartition("-")
    missing = place.missing(name)
    if missing:
        line = f"not set up ({missing} is missing): run python -m nextscale.measure.peers.setup --work {place.work}"
        return Contender(name, (sys.executable, "-c", _FAILURE, line))
    arguments: dict[str, Any] = {"threads": threads, "host_weights": str(place.exported / "host.npz")}
    # NumPy's own threads would compete with the library's; idle OpenMP threads should not spin for long, since the
    # other contenders' turns come between.
    environment = {"OPENBLAS_NUM_THREADS": "1", "GOMP_SPINCOUNT": "10000"}
    if threads:
        environment |= {"OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)}
    if library in ("pytorch", "torch-compile"):
        arguments |= {"engine": "torch", "folder": str(place.models), "bfloat16": precision == "bf16"}
        arguments["compiled"] = library == "torch-compile"
        environment["TORCHINDUCTOR_CACHE_DIR"] = str(place.compiled)
        return Contender(name, worker_command(arguments), environment)
    condition, step = place.exported / "condition.onnx", place.exported / "step.onnx"
    decoder = place.exported / "decoder.onnx"
    if name == "onnxruntime-int8":
        condition, step, decoder = (place.onnxruntime_int8 / path.name for path in (condition, step, decoder))
    if name == "openvino-int8":
        step, decoder = place.openvino_int8 / "step.xml", place.openvino_int8 / "decoder.xml"
    arguments |= {"engine": library, "condition": str(condition), "step": str(step), "decoder": str(decoder)}
    if library == "onnxruntime":
        return Contender(name, worker_command(arguments), environment)
    arguments["precision"] = {"fp32": "f32", "bf16": "bf16", "int8": "auto"}[precision]
    return Contender(name, worker_command(arguments, place.openvino_python), environment)


def worker_command(arguments: dict[str, Any], python: Path | None = None) -> tuple[str, ...]:
    """The command of a worker: in this environment, or in that of `python`, which has its own packages first."""
    path = f"[:] = {[os.path.abspath(entry) for entry in sys.path]!r}"
    if python is not None:
        path = f".append({str(Path(__file__).absolute().parents[3])!r})"
    return (str(python or sys.executable), "-c", _WORKER.format(path=path, arguments=arguments))
