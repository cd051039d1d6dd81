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
from nextscale.measure.peers.peer_model import PeerModel
from nextscale.runtime._errors import NextscaleError

ENVIRONMENTS = ("openvino", "onnxruntime-openvino")  # libraries that have one of their own
_PROGRAM = "import sys; sys.path{path}; from nextscale.measure.peers.{module} import main; main({arguments!r})"
_FAILURE = "import json, sys; print(json.dumps({'error': sys.argv[1]})); sys.exit(1)"


@dataclass(frozen=True)
class PeerFolder:
    """Where the peers of one model find what they need.

    Attributes:
        work: the user's folder; environments in it serve all models.
        model: the folder in it of this model.
        family: the model's.
    """

    work: Path
    model: Path
    family: str

    @classmethod
    def of(cls, model: PeerModel, work: Path) -> PeerFolder:
        name = re.sub(r"[^A-Za-z0-9._-]+", "-", model.name).strip(".-") or "model"
        work = work.absolute()
        return cls(work, work / f"{name}-{model.digest()}", model.family)

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
    def onnxruntime_openvino_int8(self) -> Path:
        return self.model / "onnxruntime-openvino-int8"

    @property
    def torch_int8(self) -> Path:
        return self.model / "torch-compile-int8"

    @property
    def torchao(self) -> Path:
        """torchao alone: it runs on this environment's torch."""
        return self.work / "packages-torchao"

    def environment(self, library: str) -> Path:
        """That of a library in ENVIRONMENTS."""
        return self.work / f"environment-{library}"

    def python(self, library: str) -> Path:
        return self.environment(library) / "bin" / "python"

    def installed(self, library: str) -> Path:
        """Lists the packages in a library's environment, or in torchao's folder, once they are all there."""
        return (self.torchao if library == "torchao" else self.environment(library)) / "nextscale-packages.txt"

    def needs(self, name: str) -> tuple[Path, ...]:
        """What a peer needs."""
        library = name.rpartition("-")[0]
        installed = (self.installed(library),) if library in ENVIRONMENTS else ()
        models = (self.models,) if library in ("pytorch", "torch-compile") else ()
        quantized = {
            "torch-compile-int8": (self.installed("torchao"), self.torch_int8),
            "onnxruntime-int8": (self.onnxruntime_int8,),
            "onnxruntime-openvino-int8": (self.onnxruntime_openvino_int8,),
            "openvino-int8": (self.openvino_int8,),
        }
        return (*models, self.exported, *installed, *quantized.get(name, ()))

    def missing(self, name: str) -> Path | None:
        """The first of them that is not there."""
        return next((path for path in self.needs(name) if not path.exists()), None)


def checked_names(names: Sequence[str] | None, known: Sequence[str]) -> tuple[str, ...]:
    """The names asked for; None is all.

    Raises:
        NextscaleError: one is unknown.
    """
    chosen = tuple(names or known)
    for name in chosen:
        if name not in known:
            raise NextscaleError(f"no peer {name!r}; the peers are {', '.join(known)}")
    return chosen


def contender(name: str, place: PeerFolder, threads: int) -> Contender:
    """One peer's process."""
    library, _, precision = name.rpartition("-")
    missing = place.missing(name)
    if missing:
        line = f"not set up ({missing} is missing): run python -m nextscale.measure.peers.setup --work {place.work}"
        return Contender(name, (sys.executable, "-c", _FAILURE, line))
    arguments: dict[str, Any] = {
        "family": place.family,
        "threads": threads,
        "host_weights": str(place.exported / "host.npz"),
    }
    # NumPy's own threads would compete with the library's; idle OpenMP threads should not spin for long, since the
    # other contenders' turns come between.
    environment = {"OPENBLAS_NUM_THREADS": "1", "GOMP_SPINCOUNT": "10000"}
    if threads:
        environment |= {"OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)}
    if name == "torch-compile-int8":
        arguments |= {"engine": "torch-int8", "folder": str(place.torch_int8)}
        environment["TORCHINDUCTOR_CACHE_DIR"] = str(place.compiled)
        return Contender(name, worker_command(arguments, more=(place.torchao,)), environment)
    if place.family == "infinity" and library == "pytorch":
        return Contender(
            name, worker_command(arguments | {"engine": "torch-infinity", "folder": str(place.models)}), environment
        )
    if library in ("pytorch", "torch-compile"):
        arguments |= {"engine": "torch", "folder": str(place.models), "bfloat16": precision == "bf16"}
        arguments["compiled"] = library == "torch-compile"
        environment["TORCHINDUCTOR_CACHE_DIR"] = str(place.compiled)
        return Contender(name, worker_command(arguments), environment)
    folders = {
        "onnxruntime-int8": place.onnxruntime_int8,
        "onnxruntime-openvino-int8": place.onnxruntime_openvino_int8,
    }
    graphs = {graph: folders.get(name, place.exported) / f"{graph}.onnx" for graph in ("condition", "step", "decoder")}
    if name == "openvino-int8":
        graphs |= {graph: place.openvino_int8 / f"{graph}.xml" for graph in ("step", "decoder")}
    arguments |= {"engine": library} | {graph: str(path) for graph, path in graphs.items()}
    if library == "onnxruntime":
        return Contender(name, worker_command(arguments), environment)
    arguments["precision"] = {"fp32": "f32", "bf16": "bf16", "int8": "auto"}[precision]
    return Contender(name, worker_command(arguments, place.python(library)), environment)


def worker_command(arguments: dict[str, Any], python: Path | None = None, more: Sequence[Path] = ()) -> tuple[str, ...]:
    """The command of a worker.

    Args:
        arguments: the worker's.
        python: of another environment, which has its own packages first; None is this one.
        more: folders of packages that this environment lacks.
    """
    code = module_code("worker", arguments, python is None, more)
    return (str(python or sys.executable), "-c", code)


def module_code(module: str, arguments: dict[str, Any], here: bool = False, more: Sequence[Path] = ()) -> str:
    """A program that calls main of a module beside this one.

    Args:
        module: its name.
        arguments: of main.
        here: look for packages where this process does; otherwise nextscale alone is added to what Python finds.
        more: folders to look for packages in when they are found nowhere else.
    """
    entries = sys.path if here else [str(Path(__file__).absolute().parents[3])]
    found = [os.path.abspath(entry) for entry in [*entries, *map(str, more)]]
    path = f"[:] = {found!r}" if here else f" += {found!r}"
    return _PROGRAM.format(path=path, module=module, arguments=arguments)
