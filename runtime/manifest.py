"""manifest.json, schema 1, as frozen dataclasses; the parser trusts nothing it reads."""

import json
import math
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NoReturn, TypeVar

import numpy as np
from numpy.typing import NDArray

from nextscale import __version__
from nextscale.runtime.errors import BundleError

SCHEMA = 1
GRAPHS = ("generate", "stage", "decoder")
DTYPES = ("float32", "float16", "int64", "int32", "int8", "uint8")
REQUEST_INPUTS = {
    "class_labels": "int64",
    "uniforms": "float32",
    "forced_tokens": "int64",
    "cfg_scale": "float32",
    "top_k": "int64",
    "top_p": "float32",
}
GENERATE_OUTPUTS = {"images": "uint8", "token_maps": "int64"}
STAGE_OUTPUTS = {"tokens": "int64", "logits": "float32"}
DECODER_INPUTS = {"f_hat": "float32"}
DECODER_OUTPUTS = {"images": "uint8"}

_SHOWN = 8
# Of the state for one image; a real f_hat has 32,768 elements in four dimensions.
_STATE_DIMENSIONS = 8
_STATE_ELEMENTS = 2**28

Dimension = int | str | None
_T = TypeVar("_T")


@dataclass(frozen=True)
class ModelInfo:
    """The sizes of the model; symbols as in docs/bundle.md."""

    num_classes: int
    patch_nums: tuple[int, ...]
    image_size: int
    vocab_size: int
    depth: int
    embed_dim: int
    num_heads: int
    latent_channels: int
    latent_size: int

    @property
    def num_stages(self) -> int:
        return len(self.patch_nums)

    @property
    def num_tokens(self) -> int:
        """L, the tokens of all stages."""
        return sum(pn * pn for pn in self.patch_nums)

    @cached_property
    def stage_slices(self) -> tuple[slice, ...]:
        """Where each stage's tokens lie among the L."""
        ends = np.cumsum([pn * pn for pn in self.patch_nums]).tolist()
        return tuple(slice(end - pn * pn, end) for end, pn in zip(ends, self.patch_nums, strict=True))


@dataclass(frozen=True)
class TensorInfo:
    """A graph's input or output; a dimension is a size, a symbol such as "B", or None."""

    name: str
    dtype: str
    shape: tuple[Dimension, ...]


@dataclass(frozen=True)
class StateInfo:
    """A tensor that the host carries from one stage to the next; it starts as zeros."""

    input: str
    output: str
    dtype: str
    initial_shape: tuple[int | str, ...]

    def initial(self, batch: int) -> NDArray[Any]:
        """Zeros of initial_shape with "B" and "2B" replaced."""
        symbols = {"B": batch, "2B": 2 * batch}
        shape = [symbols[size] if isinstance(size, str) else size for size in self.initial_shape]
        return np.zeros(shape, dtype=self.dtype)


@dataclass(frozen=True)
class GraphInfo:
    """One ONNX file and its contract."""

    file: str
    inputs: tuple[TensorInfo, ...]
    outputs: tuple[TensorInfo, ...]
    state: tuple[StateInfo, ...] = ()


@dataclass(frozen=True)
class FileInfo:
    """What a file must be: its size in bytes and the sha256 of its content in hexadecimal."""

    size: int
    sha256: str


@dataclass(frozen=True)
class VerifyInfo:
    """A greedy generation made when the bundle was built; token_maps has n rows of L tokens."""

    class_labels: tuple[int, ...]
    seed: int
    cfg_scale: float
    token_maps: tuple[tuple[int, ...], ...]


@dataclass(frozen=True)
class Manifest:
    """Everything manifest.json says."""

    schema: int
    name: str
    model: ModelInfo
    recipe: Mapping[str, Any]
    class_names: tuple[str, ...] | None
    graphs: Mapping[str, GraphInfo]
    files: Mapping[str, FileInfo]
    verify: VerifyInfo
    versions: Mapping[str, Any]
    licence: str

    @property
    def size(self) -> int:
        """Bytes of all files together."""
        return sum(file.size for file in self.files.values())


def parse_manifest(text: str | bytes, where: str = "manifest.json") -> Manifest:
    """Parse and check a manifest; keys it does not know are ignored.

    Args:
        text: the file's content.
        where: how errors name the file.
    Raises:
        BundleError: not JSON, a newer schema, or a key that is missing, of another type, or at odds with another.
    """
    try:
        document = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise BundleError(f"{where}: not a JSON document ({error}); the file is damaged or not a manifest") from None
    root = _Fields(document, where, "")
    schema = root.integer("schema", 1)
    if schema > SCHEMA:
        raise BundleError(_newer_schema(where, schema, document))
    model = _model(root.fields("model"))
    files = {name: _file(root.fields("files").fields(name)) for name in root.fields("files").value}
    for name in files:
        if not is_plain_name(name):
            root.refuse("files", "plain file names inside the bundle's folder", name)
    graphs = {name: _graph(root.fields("graphs").fields(name), name, files) for name in GRAPHS}
    class_names = None if root.value.get("class_names") is None else root.items("class_names", _Fields.as_text)
    if class_names is not None and len(class_names) != model.num_classes:
        root.refuse("class_names", f"{model.num_classes} names, as model.num_classes says", len(class_names))
    return Manifest(
        schema=schema,
        name=root.text("name"),
        model=model,
        recipe={**root.fields("recipe").value, "name": root.fields("recipe").text("name")},
        class_names=class_names,
        graphs=graphs,
        files=files,
        verify=_verify(root.fields("verify"), model),
        versions=root.fields("versions").value,
        licence=root.text("licence"),
    )


def is_plain_name(name: str) -> bool:
    """Whether name is a file name without any way out of its folder, on Linux and on Windows."""
    return bool(name) and name.isprintable() and name not in (".", "..") and not set(name) & set('/\\:*?"<>|')


class _Fields:
    """A JSON object whose reads are checked; errors name the key by its full path."""

    def __init__(self, value: object, where: str, path: str) -> None:
        self.where, self.path = where, path
        self.value: dict[str, Any] = value if isinstance(value, dict) else {}
        if not isinstance(value, dict):
            raise BundleError(f"{where}: {path or 'document'}: expected a JSON object, found {_shown(value)}")

    def refuse(self, key: str, expected: str, found: object) -> NoReturn:
        """Raise the error every refusal of a value ends in."""
        path = f"{self.path}.{key}" if self.path else key
        raise BundleError(f"{self.where}: {path}: expected {expected}, found {_shown(found)}")

    def get(self, key: str) -> Any:
        if key not in self.value:
            path = f"{self.path}.{key}" if self.path else key
            raise BundleError(f'{self.where}: key "{path}" is missing; build the bundle again')
        return self.value[key]

    def fields(self, key: str) -> "_Fields":
        return _Fields(self.get(key), self.where, f"{self.path}.{key}" if self.path else key)

    def as_integer(self, key: str, value: object, minimum: int = 0, maximum: int = 2**63 - 1) -> int:
        if not isinstance(value, int) or isinstance(value, bool) or not minimum <= value <= maximum:
            limit = f"of at least {minimum}" if maximum == 2**63 - 1 else f"from {minimum} to {maximum}"
            self.refuse(key, f"an integer {limit}", value)
        return value

    def as_text(self, key: str, value: object) -> str:
        if not isinstance(value, str) or not value.isprintable():
            self.refuse(key, "a line of printable text", value)
        return value

    def as_dimension(self, key: str, value: object) -> Dimension:
        return value if value is None or isinstance(value, str) else self.as_integer(key, value)

    def integer(self, key: str, minimum: int = 0, maximum: int = 2**63 - 1) -> int:
        return self.as_integer(key, self.get(key), minimum, maximum)

    def text(self, key: str) -> str:
        return self.as_text(key, self.get(key))

    def items(self, key: str, read: Callable[["_Fields", str, Any], _T]) -> tuple[_T, ...]:
        value = self.get(key)
        if not isinstance(value, list):
            self.refuse(key, "a list", value)
        return tuple(read(self, f"{key}[{index}]", item) for index, item in enumerate(value))

    def dtype(self, key: str = "dtype") -> str:
        value = self.text(key)
        if value not in DTYPES:
            self.refuse(key, f"one of {', '.join(DTYPES)}", value)
        return value


def _model(fields: _Fields) -> ModelInfo:
    patch_nums = fields.items("patch_nums", lambda owner, key, value: owner.as_integer(key, value, 1, 4096))
    if not patch_nums or list(patch_nums) != sorted(patch_nums):
        fields.refuse("patch_nums", "side lengths in ascending order", list(patch_nums))
    model = ModelInfo(
        num_classes=fields.integer("num_classes", 1),
        patch_nums=patch_nums,
        image_size=fields.integer("image_size", 1),
        vocab_size=fields.integer("vocab_size", 1),
        depth=fields.integer("depth", 1),
        embed_dim=fields.integer("embed_dim", 1),
        num_heads=fields.integer("num_heads", 1),
        latent_channels=fields.integer("latent_channels", 1),
        latent_size=fields.integer("latent_size", 1),
    )
    if model.latent_size != patch_nums[-1]:
        fields.refuse("latent_size", f"{patch_nums[-1]}, the last of patch_nums", model.latent_size)
    return model


def _file(fields: _Fields) -> FileInfo:
    sha256 = fields.text("sha256").lower()
    if len(sha256) != 64 or set(sha256) - set("0123456789abcdef"):
        fields.refuse("sha256", "64 hexadecimal digits", sha256)
    return FileInfo(fields.integer("size"), sha256)


def _tensor(owner: _Fields, key: str, value: object) -> TensorInfo:
    fields = _Fields(value, owner.where, f"{owner.path}.{key}")
    return TensorInfo(fields.text("name"), fields.dtype(), fields.items("shape", _Fields.as_dimension))


def _state(owner: _Fields, key: str, value: object) -> StateInfo:
    fields = _Fields(value, owner.where, f"{owner.path}.{key}")
    shape = fields.items("initial_shape", _initial_size)
    # Sizes of 0 count as 1: NumPy refuses a shape whose other sizes overflow, though it has no elements.
    elements = math.prod(size for size in shape if isinstance(size, int) and size)
    if len(shape) > _STATE_DIMENSIONS or elements > _STATE_ELEMENTS:
        expected = f"at most {_STATE_DIMENSIONS} dimensions of {_STATE_ELEMENTS} elements in all"
        fields.refuse("initial_shape", expected, list(shape))
    return StateInfo(fields.text("input"), fields.text("output"), fields.dtype(), shape)


def _initial_size(owner: _Fields, key: str, value: object) -> int | str:
    return str(value) if value in ("B", "2B") else owner.as_integer(key, value, 0, 2**31)


def _graph(fields: _Fields, name: str, files: Mapping[str, FileInfo]) -> GraphInfo:
    """Read one graph; it must have the contract's inputs and outputs, or a host could not run it.

    More outputs do no harm: a bundle made for debugging has them.
    """
    file = fields.text("file")
    if file not in files:
        fields.refuse("file", 'a plain file name that "files" lists', file)
    state = fields.items("state", _state) if name == "stage" else ()
    graph = GraphInfo(file, fields.items("inputs", _tensor), fields.items("outputs", _tensor), state)
    inputs, outputs = {
        "generate": (REQUEST_INPUTS, GENERATE_OUTPUTS),
        "stage": (
            {**REQUEST_INPUTS, "stage": "int64", **{item.input: item.dtype for item in state}},
            {**STAGE_OUTPUTS, **{item.output: item.dtype for item in state}},
        ),
        "decoder": (DECODER_INPUTS, DECODER_OUTPUTS),
    }[name]
    found_inputs = {tensor.name: tensor.dtype for tensor in graph.inputs}
    if found_inputs != inputs:
        fields.refuse("inputs", f"the contract's, {_tensors(inputs)}", found_inputs)
    found_outputs = {tensor.name: tensor.dtype for tensor in graph.outputs}
    if not outputs.items() <= found_outputs.items():
        fields.refuse("outputs", f"the contract's, {_tensors(outputs)}", found_outputs)
    if name == "stage" and "f_hat" not in {item.input for item in state}:
        fields.refuse("state", 'an entry for "f_hat"', [item.input for item in state])
    return graph


def _tensors(expected: Mapping[str, str]) -> str:
    names = [f"{name} ({dtype})" for name, dtype in expected.items()]
    return ", ".join(names if len(names) <= _SHOWN else [*names[:_SHOWN], "..."])


def _verify(fields: _Fields, model: ModelInfo) -> VerifyInfo:
    labels = fields.items("class_labels", lambda owner, key, value: owner.as_integer(key, value, 0, model.num_classes))
    rows = fields.items("token_maps", lambda owner, key, value: _token_map(owner, key, value, model))
    if not labels or len(rows) != len(labels):
        fields.refuse("token_maps", f"one row for each of {len(labels)} class_labels", len(rows))
    cfg_scale = fields.get("cfg_scale")
    if (
        not isinstance(cfg_scale, int | float)
        or isinstance(cfg_scale, bool)
        or not 0 <= cfg_scale <= sys.float_info.max
    ):
        fields.refuse("cfg_scale", "a number of at least 0", cfg_scale)
    return VerifyInfo(labels, fields.integer("seed", 0, 2**64 - 1), float(cfg_scale), rows)


def _token_map(owner: _Fields, key: str, value: object, model: ModelInfo) -> tuple[int, ...]:
    if not isinstance(value, list) or len(value) != model.num_tokens:
        owner.refuse(key, f"a list of {model.num_tokens} tokens", value)
    last = model.vocab_size - 1
    return tuple(owner.as_integer(f"{key}[{place}]", token, 0, last) for place, token in enumerate(value))


def _newer_schema(where: str, schema: int, document: dict[str, Any]) -> str:
    versions = document.get("versions")
    maker = versions.get("nextscale") if isinstance(versions, dict) else None
    known = isinstance(maker, str) and len(maker) < 40 and maker.isprintable()
    need = f'pip install "nextscale>={maker}"' if known else "install a newer nextscale"
    return f"{where}: schema {schema} is newer than schema {SCHEMA}, which nextscale {__version__} reads: {need}"


def _shown(value: object) -> str:
    """A value as JSON, short enough for one line."""
    text = json.dumps(value, default=str)
    return text if len(text) <= 80 else f"{text[:77]}..."
