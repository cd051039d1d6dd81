"""Read manifest.json, schema 2 (docs/bundle.md) or 1; the parser trusts nothing it reads."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from nextscale import __version__
from nextscale.runtime import _manifest_v1 as manifest_v1
from nextscale.runtime._checked_json import JsonNode
from nextscale.runtime._errors import BundleError
from nextscale.runtime._manifest import (
    BATCH,
    DTYPES,
    FLOAT32_MAX,
    FUSED,
    KINDS,
    MAX_CLASS_NAME,
    MAX_CLASS_NAMES,
    SINGLE_KINDS,
    STOCK,
    FileInfo,
    FusedGraph,
    GraphInfo,
    Manifest,
    ModelInfo,
    RequestInput,
    Size,
    VerifyInfo,
)
from nextscale.runtime._manifest_parts import check_elements, read_files, read_graph, read_token_maps
from nextscale.runtime._var_request import MAX_CFG_SCALE, schema_1_request

SCHEMA = 2
ROLES, OPTIONAL_ROLES = ("generate", "stage", "decoder", "encoder"), ("generate", "encoder")
# Integers up to here are exact in a double, which is what other languages keep scalars in.
_EXACT = 2**53
_KIND_DTYPES = {
    "label": ("int64",),
    "uniform": ("float32",),
    "smooth_uniform": ("float32",),
    "forced_tokens": ("int64",),
    "scalar": ("float32", "int64"),
}


def parse_manifest(text: str | bytes, where: str = "manifest.json") -> Manifest:
    """Parse and check a manifest; keys, roles and variants it does not know are ignored.

    Args:
        text: the file's content.
        where: how errors name the file.
    Raises:
        BundleError: not JSON, a newer schema, or a key that is missing, of another type, or at odds with another.
    """
    try:
        root = JsonNode.parse(text, where, BundleError, "; build the bundle again")
    except (ValueError, RecursionError) as error:
        raise BundleError(f"{where}: not a JSON document ({error}); the file is damaged or not a manifest") from None
    schema = root["schema"].integer(1)
    if schema > SCHEMA:
        raise BundleError(_newer_schema(where, schema, root.value))
    files = read_files(root["files"])
    if schema == 1:
        family, model = manifest_v1.FAMILY, manifest_v1.read_model(root["model"])
        request = schema_1_request(model)
        graphs = manifest_v1.read_graphs(root["graphs"], model, files)
        verify = manifest_v1.read_verify(root["verify"], model)
    else:
        family, model = root["family"].text(), _read_model(root["model"])
        request = _read_request(root["request"], model)
        graphs = _read_graphs(root["graphs"], request, files)
        verify = _read_verify(root["verify"], request, model)
    return Manifest(
        schema=schema,
        family=family,
        name=root["name"].text(),
        model=model,
        recipe={"name": root["recipe"]["name"].text(), **root["recipe"].value},
        class_names=_read_class_names(root, model),
        request=request,
        graphs=graphs,
        files=files,
        verify=verify,
        versions={name: node.value for name, node in root["versions"].items().items()},
        licence=root["licence"].text(),
    )


def _read_class_names(root: JsonNode, model: ModelInfo) -> tuple[str, ...] | None:
    names = root.get("class_names")
    if names is None:
        return None
    if isinstance(names.value, list) and len(names.value) > MAX_CLASS_NAMES:
        names.refuse(f"at most {MAX_CLASS_NAMES} names", len(names.value))
    found = tuple(_read_class_name(name) for name in names.elements())
    if len(found) != model.num_classes:
        names.refuse(f"{model.num_classes} names, as model.num_classes says", len(found))
    return found


def _read_class_name(node: JsonNode) -> str:
    name = node.text()
    if len(name.encode()) > MAX_CLASS_NAME:
        node.refuse(f"a name of at most {MAX_CLASS_NAME} bytes")
    return name


def _read_model(node: JsonNode) -> ModelInfo:
    stage_sizes = tuple(_read_size(item, 4096) for item in node["stage_sizes"].elements())
    tokens = [height * width for height, width in stage_sizes]
    if not tokens or tokens != sorted(tokens):
        node["stage_sizes"].refuse("[height, width] of each stage, by ascending number of tokens")
    return ModelInfo(
        num_classes=node["num_classes"].integer(),
        stage_sizes=stage_sizes,
        image_size=_read_size(node["image_size"]),
        vocab_size=node["vocab_size"].integer(1),
        depth=node["depth"].integer(1),
        embed_dim=node["embed_dim"].integer(1),
        num_heads=node["num_heads"].integer(1),
        latent_channels=node["latent_channels"].integer(1),
        latent_size=_read_size(node["latent_size"]),
    )


def _read_size(node: JsonNode, maximum: int = 2**31 - 1) -> Size:
    numbers = node.elements()
    if len(numbers) != 2:
        node.refuse("[height, width]")
    height, width = (number.integer(1, maximum) for number in numbers)
    return height, width


def _read_request(node: JsonNode, model: ModelInfo) -> tuple[RequestInput, ...]:
    request: list[RequestInput] = []
    for item in node.elements():
        found = _read_input(item, model)
        if found.name in {other.name for other in request}:
            item["name"].refuse("a name of its own")
        if found.kind in SINGLE_KINDS and found.kind in {other.kind for other in request}:
            item["kind"].refuse("no second input of its kind")
        if found.kind == "label" and not model.num_classes:
            item["kind"].refuse("no label, since model.num_classes is 0")
        request.append(found)
    if "forced_tokens" not in {item.kind for item in request}:
        node.refuse("an input of kind forced_tokens")
    return tuple(request)


def _read_input(node: JsonNode, model: ModelInfo) -> RequestInput:
    name, kind = node["name"].text(), node["kind"].one_of(KINDS)
    dtype = node["dtype"].one_of(_KIND_DTYPES.get(kind, DTYPES))
    shape = _read_shape(node["shape"], kind, model)
    if kind != "scalar":
        return RequestInput(name, kind, dtype, shape)
    bounds = [node.get("minimum"), node.get("maximum")]
    minimum, maximum = (None if bound is None else _read_scalar(bound, dtype) for bound in bounds)
    if name == "cfg_scale" and maximum is None:  # as bundles say that were built before there was a largest one
        maximum = MAX_CFG_SCALE
    item = RequestInput(name, kind, dtype, shape, minimum=minimum, maximum=maximum)
    return replace(item, default=_read_scalars(node["default"], item))


def _read_shape(node: JsonNode, kind: str, model: ModelInfo) -> tuple[int | str, ...]:
    shape = tuple(item.text() if isinstance(item.value, str) else item.integer(1, 2**31) for item in node.elements())
    check_elements(node, shape)
    rows = shape[:1] == (BATCH,) and len(shape) > 1 and all(isinstance(size, int) for size in shape[1:])
    noise = (BATCH, model.num_tokens, model.vocab_size)
    expected, fits = {
        "label": ('["B"]', shape == (BATCH,)),
        "uniform": ('"B" and sizes', rows),
        "smooth_uniform": (f'"B", {model.num_tokens} and {model.vocab_size}', shape == noise),
        "forced_tokens": (f'"B", {model.num_tokens} and further sizes', rows and shape[1] == model.num_tokens),
        "scalar": (f"[] or [{model.num_stages}]", shape in ((), (model.num_stages,))),
    }.get(kind, ('"B" first or nowhere', BATCH not in shape[1:]))
    if not fits:
        node.refuse(expected)
    return shape


def _read_scalars(node: JsonNode, item: RequestInput) -> tuple[float, ...]:
    """One value, or one for each stage where the input's shape says so; all within the input's limits."""
    if not item.shape or not isinstance(node.value, list):
        nodes = [node]
    else:
        nodes = node.elements()
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


def _read_graphs(
    node: JsonNode, request: tuple[RequestInput, ...], files: Mapping[str, FileInfo]
) -> dict[str, GraphInfo]:
    present, graphs = node.items().keys(), {}
    for role in ROLES:
        if role not in present and role in OPTIONAL_ROLES:
            continue
        variants = node[role]["variants"]
        graph = read_graph(role, node[role], variants[STOCK]["file"], request, files)
        fused = variants.get(FUSED)
        graphs[role] = graph if fused is None else replace(graph, fused=_read_fused(fused, files))
    return graphs


def _read_fused(node: JsonNode, files: Mapping[str, FileInfo]) -> FusedGraph:
    if node["file"].text() not in files:
        node["file"].refuse('a plain file name that "files" lists')
    operators = {domain: version.integer(1) for domain, version in node["operators"].items().items()}
    return FusedGraph(node["file"].text(), operators)


def _read_verify(node: JsonNode, request: tuple[RequestInput, ...], model: ModelInfo) -> VerifyInfo:
    known, images, inputs = {item.name: item for item in request}, None, node["inputs"]
    for name, value in inputs.items().items():
        if name not in known:
            value.refuse(f"an input of the request as its key: {', '.join(known)}")
        item = known[name]
        if item.kind == "scalar":
            _read_scalars(value, item)
        elif item.kind == "label":
            images = len([label.integer(0, model.num_classes) for label in value.elements()])
            if not images:
                value.refuse("at least one label")
        else:
            value.elements()
    label = next((item.name for item in request if item.kind == "label"), None)
    if label is not None:
        inputs[label]
    values = next(item.row_values for item in request if item.kind == "forced_tokens")
    token_maps = read_token_maps(node["token_maps"], values, model.vocab_size, images)
    stored = node.get("encoded")
    encoded = None if stored is None else read_token_maps(stored, values, model.vocab_size, len(token_maps))
    return VerifyInfo(node["seed"].integer(0, 2**64 - 1), dict(inputs.value), token_maps, encoded)


def _newer_schema(where: str, schema: int, document: dict[str, Any]) -> str:
    versions = document.get("versions")
    maker = versions.get("nextscale") if isinstance(versions, dict) else None
    known = isinstance(maker, str) and len(maker) < 40 and maker.isprintable() and maker != __version__
    need = f"install nextscale {maker} or later" if known else "install a newer nextscale"
    return f"{where}: schema {schema} is newer than schema {SCHEMA}, which nextscale {__version__} reads: {need}"
