"""Readers of what the manifests of all schemas have in common: files, tensors, states and graphs."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from nextscale.runtime._checked_json import JsonNode
from nextscale.runtime._manifest import (
    DTYPES,
    Dimension,
    FileInfo,
    GraphInfo,
    RequestInput,
    Shape,
    StateInfo,
    TensorInfo,
    is_plain_name,
    resolved,
)
from nextscale.runtime._manifest_sizes import AtSize

# Of what one image needs; a real f_hat has 32,768 elements in four dimensions.
MAX_DIMENSIONS = 8
MAX_ELEMENTS = 2**28
# An input of these kinds may be for the encoder alone.
_ENCODER_KINDS = ("image", "mask")
_SHOWN = 8


def read_files(node: JsonNode) -> dict[str, FileInfo]:
    """The files by name."""
    files = {name: _read_file(item) for name, item in node.items().items()}
    for name in files:
        if not is_plain_name(name):
            node.refuse("plain file names inside the bundle's folder", name)
    return files


def _read_file(node: JsonNode) -> FileInfo:
    sha256 = node["sha256"].text().lower()
    if len(sha256) != 64 or set(sha256) - set("0123456789abcdef"):
        node["sha256"].refuse("64 hexadecimal digits")
    return FileInfo(node["size"].integer(), sha256)


def read_graph(
    role: str,
    node: JsonNode,
    file: JsonNode,
    request: tuple[RequestInput, ...],
    files: Mapping[str, FileInfo],
    sizes: Sequence[AtSize] = (),
) -> GraphInfo:
    """Read one graph; it must have the contract's inputs and outputs, or a host could not run it.

    More outputs do no harm: a bundle made for debugging has them.

    Args:
        role: "generate", "stage", "decoder", "encoder" or "text_encoder".
        node: where the graph's inputs and outputs are.
        file: the name of its file.
        request: the inputs of a request.
        files: those of the bundle.
        sizes: at each of which the states must be of a size that can be.
    """
    if file.text() not in files:
        file.refuse('a plain file name that "files" lists')
    state = tuple(_read_state(item, sizes) for item in node["state"].elements()) if role == "stage" else ()
    graph = GraphInfo(
        file.text(),
        tuple(map(_read_tensor, node["inputs"].elements())),
        tuple(map(_read_tensor, node["outputs"].elements())),
        state,
    )
    found_inputs = {tensor.name: tensor.dtype for tensor in graph.inputs}
    found_outputs = {tensor.name: tensor.dtype for tensor in graph.outputs}
    taken = {item.name: item.dtype for item in request if item.kind not in _ENCODER_KINDS or item.name in found_inputs}
    size = {item.name: item.dtype for item in request if item.kind == "size"}
    inputs, outputs = {
        "generate": (taken, {"images": "uint8", "token_maps": "int64"}),
        "stage": (
            {**taken, "stage": "int64", **{item.input: item.dtype for item in state}},
            {"tokens": "int64", "logits": "float32", **{item.output: item.dtype for item in state}},
        ),
        "decoder": ({"f_hat": "float32"}, {"images": "uint8"}),
        "encoder": ({"images": "uint8", **size}, {"token_maps": "int64"}),
        "text_encoder": ({"token_ids": "int64"}, {"text_features": "float32"}),
    }[role]
    if found_inputs != inputs:
        node["inputs"].refuse(f"the contract's, {_tensors(inputs)}", found_inputs)
    if not outputs.items() <= found_outputs.items():
        node["outputs"].refuse(f"the contract's, {_tensors(outputs)}", found_outputs)
    if role == "stage" and "f_hat" not in {item.input for item in state}:
        node["state"].refuse('an entry for "f_hat"', [item.input for item in state])
    if role == "text_encoder":
        _check_text_encoder(node, graph, request)
    return graph


def _check_text_encoder(node: JsonNode, graph: GraphInfo, request: Sequence[RequestInput]) -> None:
    """Refuse one whose features the request does not take."""
    made = next(tensor.shape for tensor in graph.outputs if tensor.name == "text_features")
    taken = next((item.shape for item in request if item.kind == "text_features"), None)
    if taken is None:
        node["outputs"].refuse("no text_encoder, since the request has no text_features")
    if len(made) != len(taken) or made[-1] != taken[-1]:
        node["outputs"].refuse(f"text_features of width {taken[-1]}, as the request has", list(made))


def _read_tensor(node: JsonNode) -> TensorInfo:
    shape = tuple(map(_dimension, node["shape"].elements()))
    return TensorInfo(node["name"].text(), node["dtype"].one_of(DTYPES), shape)


def _dimension(node: JsonNode) -> Dimension:
    return node.value if node.value is None or isinstance(node.value, str) else node.integer()


def _read_state(node: JsonNode, sizes: Sequence[AtSize]) -> StateInfo:
    every: list[Mapping[str, int]] = [symbols for _, symbols in sizes] or [{}]
    known = ("B", "2B", *every[0])
    shape = tuple(_initial_size(item, known) for item in node["initial_shape"].elements())
    for symbols in every:
        check_elements(node["initial_shape"], resolved(shape, symbols))
    return StateInfo(node["input"].text(), node["output"].text(), node["dtype"].one_of(DTYPES), shape)


def _initial_size(node: JsonNode, symbols: Sequence[str]) -> int | str:
    return str(node.value) if node.value in symbols else node.integer(0, 2**31)


def check_elements(node: JsonNode, shape: Shape) -> None:
    """Refuse a shape beyond what any model needs: sizes come from a file that nobody vouches for."""
    # Sizes of 0 count as 1: NumPy refuses a shape whose other sizes overflow, though it has no elements.
    elements = math.prod(size for size in shape if isinstance(size, int) and size)
    if len(shape) > MAX_DIMENSIONS or elements > MAX_ELEMENTS:
        node.refuse(f"at most {MAX_DIMENSIONS} dimensions of {MAX_ELEMENTS} elements in all")


def read_token_maps(
    node: JsonNode, values: int, vocab_size: int, images: int | None, of: str = "labels"
) -> tuple[tuple[int, ...], ...]:
    """Rows of as many entries as an image has.

    Args:
        node: where they are.
        values: of a row.
        vocab_size: what each is below.
        images: how many rows there must be; None: any number above 0.
        of: what tells the number of images.
    """
    rows = tuple(_token_map(row, values, vocab_size) for row in node.elements())
    if len(rows) != images if images is not None else not rows:
        node.refuse(f"one row for each of {images} {of}" if images is not None else "at least one row", len(rows))
    return rows


def _token_map(node: JsonNode, values: int, vocab_size: int) -> tuple[int, ...]:
    if not isinstance(node.value, list) or len(node.value) != values:
        node.refuse(f"a list of {values} tokens")
    if all(type(token) is int and 0 <= token < vocab_size for token in node.value):
        return tuple(node.value)
    return tuple(item.integer(0, vocab_size - 1) for item in node.elements())  # names the one that is wrong


def _tensors(expected: Mapping[str, str]) -> str:
    names = [f"{name} ({dtype})" for name, dtype in expected.items()]
    return ", ".join(names if len(names) <= _SHOWN else [*names[:_SHOWN], "..."])
