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
    FUSED,
    MAX_CLASS_NAME,
    MAX_CLASS_NAMES,
    MAX_TOKENS,
    STOCK,
    FileInfo,
    FusedGraph,
    GraphInfo,
    Manifest,
    ModelInfo,
    RequestInput,
    TokenizerInfo,
)
from nextscale.runtime._manifest_parts import read_files, read_graph
from nextscale.runtime._manifest_request import read_request
from nextscale.runtime._manifest_sizes import AtSize, at_sizes, read_size, read_sizes, read_stage_sizes
from nextscale.runtime._manifest_verify import read_verify
from nextscale.runtime._sizes import SizeInfo
from nextscale.runtime._var_request import schema_1_request

SCHEMA = 2
ROLES = ("generate", "stage", "decoder", "encoder", "text_encoder")
OPTIONAL_ROLES = ("generate", "encoder", "text_encoder")
TOKENIZERS = ("bytes", "sentencepiece")


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
    sizes: tuple[SizeInfo, ...] = ()
    tokenizer = None
    if schema == 1:
        family, model = manifest_v1.FAMILY, manifest_v1.read_model(root["model"])
        request = schema_1_request(model)
        graphs = manifest_v1.read_graphs(root["graphs"], model, files)
        verify = manifest_v1.read_verify(root["verify"], model)
    else:
        family, model = root["family"].text(), _read_model(root["model"])
        sizes = read_sizes(root.get("sizes"), model)
        each = at_sizes(model, sizes)
        request = read_request(root["request"], model, each)
        graphs = _read_graphs(root["graphs"], request, each, files)
        tokenizer = _read_tokenizer(root.get("tokenizer"), request, files)
        verify = read_verify(root["verify"], request, each, has_text_encoder="text_encoder" in graphs)
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
        sizes=sizes,
        tokenizer=tokenizer,
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
    stage_sizes = read_stage_sizes(node["stage_sizes"])
    return ModelInfo(
        num_classes=node["num_classes"].integer(),
        stage_sizes=stage_sizes,
        image_size=read_size(node["image_size"]),
        vocab_size=node["vocab_size"].integer(1),
        depth=node["depth"].integer(1),
        embed_dim=node["embed_dim"].integer(1),
        num_heads=node["num_heads"].integer(1),
        latent_channels=node["latent_channels"].integer(1),
        latent_size=read_size(node["latent_size"]),
    )


def _read_graphs(
    node: JsonNode, request: tuple[RequestInput, ...], sizes: tuple[AtSize, ...], files: Mapping[str, FileInfo]
) -> dict[str, GraphInfo]:
    present, graphs = node.items().keys(), {}
    for role in ROLES:
        if role not in present and role in OPTIONAL_ROLES:
            continue
        variants = node[role]["variants"]
        graph = read_graph(role, node[role], variants[STOCK]["file"], request, files, sizes)
        fused = variants.get(FUSED)
        graphs[role] = graph if fused is None else replace(graph, fused=_read_fused(fused, files))
    return graphs


def _read_fused(node: JsonNode, files: Mapping[str, FileInfo]) -> FusedGraph:
    if node["file"].text() not in files:
        node["file"].refuse('a plain file name that "files" lists')
    operators = {domain: version.integer(1) for domain, version in node["operators"].items().items()}
    return FusedGraph(node["file"].text(), operators)


def _read_tokenizer(
    node: JsonNode | None, request: tuple[RequestInput, ...], files: Mapping[str, FileInfo]
) -> TokenizerInfo | None:
    if node is None:
        return None
    kind = node["kind"].text()
    if kind not in TOKENIZERS:
        return TokenizerInfo(kind, 0)
    max_tokens = node["max_tokens"].integer(1, MAX_TOKENS)
    for item in request:
        if item.max_tokens is not None and item.max_tokens < max_tokens:
            node["max_tokens"].refuse(f"at most {item.max_tokens}, as {item.name} has")
    if kind == "bytes":
        return TokenizerInfo(kind, max_tokens)
    file = node["file"].text()
    if file not in files:
        node["file"].refuse('a plain file name that "files" lists')
    return TokenizerInfo(kind, max_tokens, file)


def _newer_schema(where: str, schema: int, document: dict[str, Any]) -> str:
    versions = document.get("versions")
    maker = versions.get("nextscale") if isinstance(versions, dict) else None
    known = isinstance(maker, str) and len(maker) < 40 and maker.isprintable() and maker != __version__
    need = f"install nextscale {maker} or later" if known else "install a newer nextscale"
    return f"{where}: schema {schema} is newer than schema {SCHEMA}, which nextscale {__version__} reads: {need}"
