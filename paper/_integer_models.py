"""A user's model by several recipes, made once and kept, each with its report."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from types import UnionType
from typing import Any, get_args

import onnx_ir as ir

from nextscale import __version__
from nextscale.evaluate._kept_figures import or_none, read_json
from nextscale.foreign.quantize_model import QuantizeOptions, quantize_model, read_model
from nextscale.foreign.samples import graph_inputs, read_samples
from nextscale.foreign.survey import Kind
from nextscale.foreign.written_model import write_model
from nextscale.graph_passes.recipe import Recipe
from nextscale.paper.store import Key, Store, reading_entry
from nextscale.runtime._checked_json import JsonNode
from nextscale.runtime._file_hash import file_sha256
from nextscale.runtime._outputs import make_folder
from nextscale.runtime._session import SessionOptions
from nextscale.runtime.image_io import write_files

REPORT = "report.json"
KINDS = ("linear layer", "attention", "convolution")  # of what becomes integer


@dataclass(frozen=True)
class IntegerModel:
    """What a recipe made of the model.

    Attributes:
        path: the file.
        report: `Report.to_json`.
    """

    path: Path
    report: Mapping[str, Any]

    def attention_errors(self) -> dict[str, float]:
        """By name of each integer attention: relative error of its output, if it alone is integer."""
        lines = [line for line in self.report["lines"] if line["kind"] == "attention" and line["refused"] is None]
        errors = {line["name"]: line["error"] for line in lines if line["error"] is not None}
        return {name: error["relative"] for name, error in errors.items() if error["relative"] is not None}


class IntegerModels:
    """One model by recipe.

    Args:
        model: the float model's file.
        calibration: samples, as `read_samples` takes them: an .npz, or a folder of such.
        store: keeps them, by what they are made from.
        options: threads and memory.
    Attributes:
        source: the float model, whose weights stay in their file.
        source_bytes: of its files.
        samples: that there are.
    Raises:
        NextscaleError: the model cannot be read, or the samples do not fit it.
    """

    def __init__(self, model: Path, calibration: Path, store: Store, options: SessionOptions) -> None:
        self._calibration, self._store, self._quantizing = calibration, store, QuantizeOptions(options, rounds=0)
        self.source, self._name = read_model(model), model.stem
        self.samples = len(read_samples(calibration, graph_inputs(self.source.graph)))
        samples = sorted(calibration.glob("*.npz")) if calibration.is_dir() else [calibration]
        files = [model, *_outside(self.source)]
        self.source_bytes = sum(path.stat().st_size for path in files)
        self._read = [file_sha256(path) for path in (*files, *samples)]

    def made(self, recipe: Recipe, progress: Callable[[str], object]) -> IntegerModel:
        """What an earlier call made, or else is made now.

        Args:
            recipe: how to quantize.
            progress: told each step.
        Raises:
            NextscaleError: see `quantize_model`; or what an earlier call made is damaged.
        """
        options, file = replace(self._quantizing, progress=progress), _file(recipe)

        def make(folder: Path) -> None:
            make_folder(folder)
            integer, report = quantize_model(self.source, self._calibration, recipe, options)
            write_model(integer, folder / file)
            text = json.dumps(report.to_json(), indent=1) + "\n"
            write_files({folder / REPORT: lambda file: file.write(text.encode())})

        waiting = "waiting: another command makes it"
        return _read_made(self._store.made(self._key(recipe), make, waiting=lambda: progress(waiting)), recipe)

    def found(self, recipe: Recipe) -> IntegerModel | None:
        """What an earlier call made.

        Raises:
            NextscaleError: it is damaged.
        """
        folder = self._store.find(self._key(recipe))
        return None if folder is None else _read_made(folder, recipe)

    def _key(self, recipe: Recipe) -> Key:
        values = {
            "version": __version__,
            "read": self._read,
            "recipe": recipe.as_dict(),
            "learning": asdict(self._quantizing.learning),
        }
        return Key("model", values, f"{self._name}-{recipe.name}")


def _file(recipe: Recipe) -> str:
    return f"{re.sub(r'[^A-Za-z0-9_.+-]+', '_', recipe.name)[:80]}.onnx"


def _read_made(folder: Path, recipe: Recipe) -> IntegerModel:
    with reading_entry(folder):
        report = read_report(folder / REPORT)
    return IntegerModel(folder / _file(recipe), report)


def read_report(path: Path) -> Mapping[str, Any]:
    """A report, `Report.to_json`, that has what a table takes of it.

    Raises:
        NextscaleError: it cannot be read, or has not.
        ValueError, RecursionError: it is no JSON.
    """
    report = read_json(path)
    report["integer_bytes"].integer()
    for text in (report["samples"], *report["notes"].elements()):
        _require(text, str, "text")
    for line in report["lines"].elements():
        _require(line["name"], str, "text")
        _require(line["refused"], str | None, "text or null")
        _require(line["is_integer"], bool, "true or false")
        line["kind"].one_of(KINDS if line["refused"].value is None else get_args(Kind))
        or_none(line["error"], lambda error: or_none(error["relative"], JsonNode.number))
    found: Mapping[str, Any] = report.value
    return found


def _require(node: JsonNode, kind: type | UnionType, expected: str) -> None:
    if not isinstance(node.value, kind):
        node.refuse(expected)


def _outside(model: ir.Model) -> list[Path]:
    """Files in which weights lie beside the model."""
    tensors = [value.const_value for value in model.graph.initializers.values()]
    return sorted({Path(tensor.path) for tensor in tensors if isinstance(tensor, ir.ExternalTensor)})
