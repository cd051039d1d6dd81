"""Write a bundle: graphs over one shared external-data file, manifest and card, atomically (docs/bundle.md)."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime

from nextscale import __version__
from nextscale.export.generate_graph import initial_shape, state_names
from nextscale.export.graph_builder import OPSET, dimensions
from nextscale.runtime._bundle import MANIFEST_NAME as MANIFEST
from nextscale.runtime._bundle import WORDS_NAME
from nextscale.runtime._file_hash import file_sha256
from nextscale.runtime._manifest import FUSED, OPERATORS, STOCK, ModelInfo, RequestInput, TokenizerInfo
from nextscale.runtime._manifest_reader import SCHEMA
from nextscale.runtime._sizes import SizeInfo

WEIGHTS_FILE = "weights.data"
CARD = "card.md"
# Smaller tensors stay in the graph files: shapes and indices must be readable without the weights.
EXTERNAL_FROM_BYTES = 1024
# ONNX Runtime maps external data into memory page by page.
ALIGNMENT = 4096


@dataclass(frozen=True)
class BundleInfo:
    """What the manifest says besides the graphs themselves.

    Attributes:
        family: such as "var".
        model: of the first size.
        request: what the graphs take.
        sizes: those that the graphs serve; empty where they serve one.
        tokenizer: of prompts, if there is a text encoder.
        tokenizer_file: its file, which is copied into the bundle, where its kind has one.
        words_file: of the words that the model saw, which is copied, too, where there is one.
    """

    name: str
    family: str
    model: ModelInfo
    request: Sequence[RequestInput]
    recipe: Mapping[str, Any]
    class_names: Sequence[str] | None
    licence: str
    card: str
    sizes: Sequence[SizeInfo] = ()
    tokenizer: TokenizerInfo | None = None
    tokenizer_file: Path | None = None
    words_file: Path | None = None


def write_graphs(folder: Path, models: Mapping[str, ir.Model]) -> None:
    """Write `{name}.onnx` for each model, and the weights of all of them once.

    A name such as "stage.fused" is the fused variant of the role before the point.

    Equal tensors are stored once. The models' initializers end up referring to the file, so that the weights in memory
    can be freed.
    """
    by_content: dict[tuple[ir.DataType, tuple[int, ...], bytes], ir.ExternalTensor] = {}
    # Most are one object in several models, which is read once; those in here keep ids from being used again.
    written: dict[int, tuple[ir.TensorProtocol, ir.ExternalTensor]] = {}
    with (folder / WEIGHTS_FILE).open("wb") as file:
        for model in models.values():
            for value in model.graph.initializers.values():
                tensor = value.const_value
                if tensor is None or tensor.nbytes < EXTERNAL_FROM_BYTES:
                    continue
                if id(tensor) not in written:
                    content = _content(tensor)
                    key = tensor.dtype, tuple(tensor.shape.numpy()), hashlib.sha256(content).digest()
                    if key not in by_content:
                        by_content[key] = _append(file, tensor, content, folder)
                    written[id(tensor)] = tensor, by_content[key]
                _, value.const_value = written[id(tensor)]
    for name, model in models.items():
        ir.save(model, folder / f"{name}.onnx")
        onnx.checker.check_model(str(folder / f"{name}.onnx"), full_check=True)


def _content(tensor: ir.TensorProtocol) -> memoryview | bytes:
    # Four bits lie two in a byte, which only the tensor itself knows how to write.
    return np.ascontiguousarray(tensor.numpy()).data if tensor.dtype.bitwidth >= 8 else tensor.tobytes()


def _append(file: Any, tensor: ir.TensorProtocol, content: memoryview | bytes, folder: Path) -> ir.ExternalTensor:
    file.write(b"\0" * (-file.tell() % ALIGNMENT))
    offset = file.tell()
    file.write(content)
    return ir.ExternalTensor(
        WEIGHTS_FILE,
        offset,
        tensor.nbytes,
        tensor.dtype,
        shape=ir.Shape(tensor.shape.numpy()),
        name=str(tensor.name),
        base_dir=folder,
    )


def write_manifest(folder: Path, models: Mapping[str, ir.Model], info: BundleInfo, verify: Mapping[str, Any]) -> None:
    """Write card.md, the tokenizer's and the words' file and, last, manifest.json with the size and hash of all else.

    Models are as in `write_graphs`.
    """
    (folder / CARD).write_text(info.card, encoding="utf-8")
    if info.tokenizer is not None and info.tokenizer.file is not None:
        assert info.tokenizer_file is not None
        shutil.copyfile(info.tokenizer_file, folder / info.tokenizer.file)
    if info.words_file is not None:
        shutil.copyfile(info.words_file, folder / WORDS_NAME)
    manifest = {
        "schema": SCHEMA,
        "family": info.family,
        "name": info.name,
        "model": asdict(info.model),
        **({"sizes": [asdict(size) for size in info.sizes]} if info.sizes else {}),
        "recipe": dict(info.recipe),
        "class_names": None if info.class_names is None else list(info.class_names),
        "request": [_request_input(item) for item in info.request],
        "graphs": {
            name: _graph_contract(name, model, info.request) | {"variants": _variants(name, models)}
            for name, model in models.items()
            if "." not in name
        },
        **({} if info.tokenizer is None else {"tokenizer": _tokenizer(info.tokenizer)}),
        "files": {path.name: _file_info(path) for path in sorted(folder.iterdir())},
        "verify": dict(verify),
        "versions": {
            "nextscale": __version__,
            "onnx": onnx.__version__,
            "onnxruntime": onnxruntime.__version__,
            "opset": OPSET,
        },
        "licence": info.licence,
    }
    _write_json(folder / MANIFEST, manifest)


def _tokenizer(info: TokenizerInfo) -> dict[str, Any]:
    return {key: value for key, value in asdict(info).items() if value is not None}


def _graph_contract(name: str, model: ir.Model, request: Sequence[RequestInput]) -> dict[str, Any]:
    contract: dict[str, Any] = {
        "inputs": [_tensor_contract(value) for value in model.graph.inputs],
        "outputs": [_tensor_contract(value) for value in model.graph.outputs],
    }
    if name == "stage":
        inputs = {value.name: value for value in model.graph.inputs}
        contract["state"] = [
            {
                "input": source,
                "output": target,
                "dtype": _dtype(inputs[source]),
                "initial_shape": initial_shape(inputs[source]),
            }
            for source, target in state_names(model, request)
        ]
    return contract


def _variants(role: str, models: Mapping[str, ir.Model]) -> dict[str, Any]:
    """The files that a role has: of stock operators, and of further ones with their domains' versions."""
    variants: dict[str, Any] = {STOCK: {"file": f"{role}.onnx"}}
    fused = models.get(f"{role}.{FUSED}")
    if fused is not None:
        version = fused.graph.opset_imports[OPERATORS]
        variants[FUSED] = {"file": f"{role}.{FUSED}.onnx", "operators": {OPERATORS: version}}
    return variants


def _request_input(item: RequestInput) -> dict[str, Any]:
    entry: dict[str, Any] = {"name": item.name, "kind": item.kind, "dtype": item.dtype, "shape": list(item.shape)}
    if item.kind == "scalar":
        default = list(item.default) if len(item.default) > 1 else item.default[0]
        entry |= {"default": default, "minimum": item.minimum, "maximum": item.maximum}
    if item.max_tokens is not None:
        entry["max_tokens"] = item.max_tokens
    return entry


def _tensor_contract(value: ir.Value) -> dict[str, Any]:
    return {"name": value.name, "dtype": _dtype(value), "shape": dimensions(value)}


def _dtype(value: ir.Value) -> str:
    assert value.dtype is not None
    return str(value.dtype.numpy())


def _file_info(path: Path) -> dict[str, Any]:
    return {"size": path.stat().st_size, "sha256": file_sha256(path)}


def complete_manifest(
    folder: Path,
    token_maps: Sequence[Sequence[int]],
    encoded: Sequence[Sequence[int]] | None,
    recipe: Mapping[str, Any],
    card: str,
) -> None:
    """Put what was found by running the bundle into its manifest and card.

    Args:
        token_maps: of the stored generation.
        encoded: what the encoder makes of as many probe pictures; None without an encoder.
    """
    (folder / CARD).write_text(card, encoding="utf-8")
    manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    manifest["verify"]["token_maps"] = token_maps
    if encoded is not None:
        manifest["verify"]["encoded"] = encoded
    manifest["recipe"] = dict(recipe)
    manifest["files"][CARD] = _file_info(folder / CARD)
    _write_json(folder / MANIFEST, manifest)


def _write_json(path: Path, document: Any) -> None:
    path.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
