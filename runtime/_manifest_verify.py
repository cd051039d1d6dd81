"""Reads the stored generation of a manifest: its inputs, its texts and its token maps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from nextscale.runtime._checked_json import JsonNode
from nextscale.runtime._manifest import ModelInfo, RequestInput, VerifyInfo
from nextscale.runtime._manifest_parts import check_elements, read_token_maps
from nextscale.runtime._manifest_request import read_scalars
from nextscale.runtime._manifest_sizes import AtSize

MAX_PROMPT = 10_000  # characters
# Which of a request's inputs tell the number of images, before any tensor is looked into.
_ROWS = ("label", "text_features", "text_mask", "negative_features", "negative_mask")


def read_verify(
    node: JsonNode, request: Sequence[RequestInput], sizes: Sequence[AtSize], *, has_text_encoder: bool
) -> VerifyInfo:
    """Read it; every input is checked as far as its manifest tells."""
    inputs = node["inputs"]
    model, symbols = sizes[_read_size_index(inputs, request, len(sizes))]
    known = {item.name: item.resolved(symbols) for item in request}
    by_kind = {item.kind: item for item in known.values()}
    images: list[int] = []
    for name, value in inputs.items().items():
        if name not in known:
            value.refuse(f"an input of the request as its key: {', '.join(known)}")
        _read_input(value, known[name], model)
        if known[name].kind in _ROWS:
            images.append(len(value.elements()))
    if "label" in by_kind:
        inputs[by_kind["label"].name]
    prompts, lengths = _read_texts(node, by_kind, inputs.value, has_text_encoder)
    images += [len(texts) for texts in (prompts, lengths) if texts is not None]
    if len(set(images)) > 1:
        node.refuse("as many labels and texts as images", sorted(set(images)))
    values = by_kind["forced_tokens"].row_values
    count, of = images[0] if images else None, "labels" if "label" in by_kind else "texts"
    token_maps = read_token_maps(node["token_maps"], values, model.vocab_size, count, of)
    stored = node.get("encoded")
    encoded = None if stored is None else read_token_maps(stored, values, model.vocab_size, len(token_maps))
    return VerifyInfo(node["seed"].integer(0, 2**64 - 1), dict(inputs.value), token_maps, encoded, prompts, lengths)


def _read_size_index(inputs: JsonNode, request: Sequence[RequestInput], count: int) -> int:
    """The first size, where none is told."""
    name = next((item.name for item in request if item.kind == "size"), "")
    node = inputs.get(name)
    return 0 if node is None else node.integer(0, count - 1)


def _read_input(node: JsonNode, item: RequestInput, model: ModelInfo) -> None:
    if item.kind == "scalar":
        read_scalars(node, item)
    elif item.kind == "label":
        if not [label.integer(0, model.num_classes) for label in node.elements()]:
            node.refuse("at least one label")
    elif item.kind != "size":
        node.elements()


def _read_texts(
    node: JsonNode, by_kind: Mapping[str, RequestInput], inputs: Mapping[str, object], has_text_encoder: bool
) -> tuple[tuple[str, ...] | None, tuple[int, ...] | None]:
    """Prompts, or the lengths of texts whose features are `probe_features`: one of them where inputs tell no text."""
    prompts, lengths, features = node.get("prompts"), node.get("text_lengths"), by_kind.get("text_features")
    told = [item for item in (prompts, lengths) if item is not None]
    if features is None:
        if told:
            told[0].refuse("no text, since the request has none")
        return None, None
    if len(told) + (features.name in inputs) != 1:
        node.refuse(f"one of inputs.{features.name}, prompts and text_lengths", list(node.value))
    if prompts is not None:
        if not has_text_encoder:
            prompts.refuse("no prompts, since the bundle has no text encoder")
        found = tuple(_read_prompt(item) for item in prompts.elements())
        return found or prompts.refuse("at least one prompt"), None
    if lengths is not None:
        numbers = tuple(item.integer(1, 2**20) for item in lengths.elements())
        check_elements(lengths, (len(numbers), max(numbers, default=1), features.shape[2]))
        return None, numbers or lengths.refuse("at least one length")
    return None, None


def _read_prompt(node: JsonNode) -> str:
    prompt = node.text()
    if not 0 < len(prompt) <= MAX_PROMPT:
        node.refuse(f"1 to {MAX_PROMPT} characters")
    return prompt
