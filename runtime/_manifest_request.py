"""Reads the request that a manifest lists: its inputs, their shapes at each size, and the limits of scalars."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from nextscale.runtime._checked_json import JsonNode
from nextscale.runtime._manifest import (
    BATCH,
    DTYPES,
    FLOAT32_MAX,
    KINDS,
    MAX_TOKENS,
    PLURAL_KINDS,
    ModelInfo,
    RequestInput,
    Shape,
    resolved,
)
from nextscale.runtime._manifest_parts import check_elements
from nextscale.runtime._manifest_sizes import AtSize
from nextscale.runtime._sizes import SIZE_SYMBOLS
from nextscale.runtime._var_request import MAX_CFG_SCALE

# Integers up to here are exact in a double, which is what other languages keep scalars in.
_EXACT = 2**53
_KIND_DTYPES = {
    "label": ("int64",),
    "uniform": ("float32",),
    "smooth_uniform": ("float32",),
    "forced_tokens": ("int64",),
    "scalar": ("float32", "int64"),
    "text_features": ("float32",),
    "text_mask": ("int64",),
    "negative_features": ("float32",),
    "negative_mask": ("int64",),
    "size": ("int64",),
}
# Symbols that mean something else than the length of a text.
_NO_TEXT = (BATCH, "2B", *SIZE_SYMBOLS)
# By the kind of a mask, that of its features.
_MASKS = {"text_mask": "text_features", "negative_mask": "negative_features"}


def read_request(node: JsonNode, model: ModelInfo, sizes: Sequence[AtSize]) -> tuple[RequestInput, ...]:
    """The inputs, whose shapes must be right at each of the sizes."""
    request: list[RequestInput] = []
    nodes: dict[str, JsonNode] = {}
    for item in node.elements():
        found = _read_input(item, sizes)
        if found.name in {other.name for other in request}:
            item["name"].refuse("a name of its own")
        if found.kind not in PLURAL_KINDS and found.kind in nodes:
            item["kind"].refuse("no second input of its kind")
        if found.kind == "label" and not model.num_classes:
            item["kind"].refuse("no label, since model.num_classes is 0")
        request.append(found)
        nodes[found.kind] = item
    if "forced_tokens" not in nodes:
        node.refuse("an input of kind forced_tokens")
    several = any(symbols for _, symbols in sizes)
    if several != ("size" in nodes):
        node.refuse("an input of kind size" if several else "no input of kind size, since there is no list of sizes")
    _check_texts(nodes, {item.kind: item for item in request})
    return tuple(request)


def _check_texts(nodes: dict[str, JsonNode], by_kind: dict[str, RequestInput]) -> None:
    """Refuse masks without features, negative features without any, and shapes that differ between them."""
    for mask, features in _MASKS.items():
        if mask in nodes:
            if features not in nodes:
                nodes[mask]["kind"].refuse(f"no {mask} without {features}")
            if by_kind[mask].shape != by_kind[features].shape[:2]:
                nodes[mask]["shape"].refuse(f"the first two dimensions of {by_kind[features].name}")
    if "negative_features" in nodes:
        if "text_features" not in nodes:
            nodes["negative_features"]["kind"].refuse("no negative_features without text_features")
        text, negative = by_kind["text_features"], by_kind["negative_features"]
        if text.shape[2] != negative.shape[2] or text.shape[1] == negative.shape[1]:
            nodes["negative_features"]["shape"].refuse(f'"B", another symbol than {text.name} has, and its width')


def _read_input(node: JsonNode, sizes: Sequence[AtSize]) -> RequestInput:
    name, kind = node["name"].text(), node["kind"].one_of(KINDS)
    dtype = node["dtype"].one_of(_KIND_DTYPES.get(kind, DTYPES))
    shape = _read_shape(node["shape"], kind, sizes)
    if kind in _MASKS.values():
        most = node.get("max_tokens")
        return RequestInput(name, kind, dtype, shape, max_tokens=None if most is None else most.integer(1, MAX_TOKENS))
    if kind != "scalar":
        return RequestInput(name, kind, dtype, shape)
    bounds = [node.get("minimum"), node.get("maximum")]
    minimum, maximum = (None if bound is None else _read_scalar(bound, dtype) for bound in bounds)
    if name == "cfg_scale" and maximum is None:  # as bundles say that were built before there was a largest one
        maximum = MAX_CFG_SCALE
    item = RequestInput(name, kind, dtype, shape, minimum=minimum, maximum=maximum)
    return replace(item, default=read_scalars(node["default"], item))


def _read_shape(node: JsonNode, kind: str, sizes: Sequence[AtSize]) -> Shape:
    shape = tuple(item.text() if isinstance(item.value, str) else item.integer(1, 2**31) for item in node.elements())
    for model, symbols in sizes:
        found = resolved(shape, symbols)
        check_elements(node, found)
        expected, fits = _expected_shape(found, kind, model, '"L"' if symbols else model.num_tokens)
        if not fits:
            node.refuse(expected)
    return shape


def _expected_shape(shape: Shape, kind: str, model: ModelInfo, length: int | str) -> tuple[str, bool]:
    """What the shape of a kind is in words, L being called `length`, and whether this one is."""
    rows = shape[:1] == (BATCH,) and len(shape) > 1 and all(isinstance(size, int) for size in shape[1:])
    text = shape[:1] == (BATCH,) and len(shape) > 1 and isinstance(shape[1], str) and shape[1] not in _NO_TEXT
    noise = (BATCH, model.num_tokens, model.vocab_size)
    stages = '"S"' if isinstance(length, str) else model.num_stages
    features = ('"B", a symbol and a size', text and len(shape) == 3 and isinstance(shape[2], int))
    mask = ('"B" and a symbol', text and len(shape) == 2)
    return {
        "label": ('["B"]', shape == (BATCH,)),
        "uniform": ('"B" and sizes', rows),
        "smooth_uniform": (f'"B", {length} and {model.vocab_size}', shape == noise),
        "forced_tokens": (f'"B", {length} and further sizes', rows and shape[1] == model.num_tokens),
        "scalar": (f"[] or [{stages}]", shape in ((), (model.num_stages,))),
        "text_features": features,
        "negative_features": features,
        "text_mask": mask,
        "negative_mask": mask,
        "size": ("[]", shape == ()),
    }.get(kind, ('"B" first or nowhere', BATCH not in shape[1:]))


def read_scalars(node: JsonNode, item: RequestInput) -> tuple[float, ...]:
    """One value, or one for each stage where the input's shape says so in numbers; all within the input's limits."""
    if not item.shape or not isinstance(node.value, list):
        nodes = [node]
    else:
        nodes = node.elements()
        if isinstance(item.shape[0], str):
            node.refuse("one number, since sizes differ in their stages")
        if len(nodes) != item.shape[0]:
            node.refuse(f"one number, or {item.shape[0]}, one for each stage")
    values = tuple(_read_scalar(number, item.dtype) for number in nodes)
    for number, value in zip(nodes, values, strict=True):
        if not item.allows(value):
            number.refuse(item.limits)
    return values


def _read_scalar(node: JsonNode, dtype: str) -> float:
    if dtype == "int64":
        return node.integer(-_EXACT, _EXACT)
    value = node.number()
    if abs(value) > FLOAT32_MAX:
        node.refuse("a number of float32")
    return value
