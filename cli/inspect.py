"""`nextscale inspect`: what is in a bundle."""

import dataclasses
import json
from collections import Counter
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.table import Table

from nextscale.cli import options
from nextscale.runtime._bundle import Bundle
from nextscale.runtime._errors import NextscaleError
from nextscale.runtime._manifest import GraphInfo, Manifest, TokenizerInfo
from nextscale.runtime._memory import cache_bytes
from nextscale.runtime._operators import choose_variant
from nextscale.runtime._text import printable


@click.command()
@click.argument("bundle_dir", metavar="DIR", type=options.BUNDLE)
@click.option("--classes", is_flag=True, help="List the classes instead.")
@click.option("--saturation", is_flag=True, help="List the layers that saturate on CPUs without VNNI instead.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def inspect(bundle_dir: Path, classes: bool, saturation: bool, as_json: bool) -> None:
    """Show what is in the bundle in DIR: model, sizes, recipe, files, and the inputs and outputs of its graphs.

    Nothing is loaded. Of each size it tells what a picture takes of memory besides the files: the keys and values of
    all its tokens.
    """
    if classes and saturation:
        raise click.UsageError("--classes and --saturation exclude each other")
    bundle = Bundle.open(bundle_dir)
    manifest = bundle.manifest
    labels = range(manifest.model.num_classes if classes else 0)
    names = {label: bundle.class_name(label) for label in labels}
    if as_json:
        shown = names if classes else _saturation(bundle) if saturation else _summary(bundle)
        click.echo(json.dumps(shown, indent=1))
    elif saturation:
        Console(highlight=False, markup=False).print(_saturation_table(_saturation(bundle)))
    elif classes:
        for label, name in names.items():
            click.echo(f"{label}\t{name}")
    else:
        console = Console(highlight=False, markup=False)
        sizes = [_sizes(manifest)] if manifest.sizes else []
        graphs = [_graph(*item) for item in manifest.graphs.items()]
        for table in (_overview(bundle), *sizes, _files(manifest), *graphs):
            console.print(table)


def _summary(bundle: Bundle) -> dict[str, Any]:
    summary = dataclasses.asdict(bundle.manifest)
    del summary["verify"]
    caches = [cache_bytes(bundle.manifest.of_size(index)) for index in range(len(bundle.manifest.models))]
    for size, number in zip(summary["sizes"], caches, strict=False):
        size["cache_bytes"] = number
    return {"path": str(bundle.path), "size_bytes": bundle.manifest.size, "cache_bytes": caches[0], **summary}


def _overview(bundle: Bundle) -> Table:
    manifest, model = bundle.manifest, bundle.model
    height, width = model.image_size
    pictures = f"{height} x {width} pixels of {model.num_classes} classes"
    if manifest.input_of_kind("text_features"):
        encoder = "of prompts" if "text_encoder" in manifest.graphs else "of features of text"
        pictures = f"{height} x {width} pixels {encoder}"
    table = Table(title=manifest.name, show_header=False)
    table.add_column(style="bold")
    table.add_column(overflow="fold")
    rows = {
        "folder": _line(str(bundle.path)),
        "size": f"{manifest.size / 1e6:.1f} MB",
        "model": f"{model.depth} blocks of width {model.embed_dim}, {model.num_heads} heads, {model.vocab_size} codes",
        "pictures": pictures,
        "stages": f"{model.stages_in_words} ({model.num_tokens} tokens)",
        **_tokenizer_row(manifest.tokenizer),
        **({} if manifest.sizes else {"keys and values": f"{_megabytes(cache_bytes(manifest))} MB a picture"}),
        **{
            f"recipe: {key}": _line(value)
            for key, value in manifest.recipe.items()
            if key not in ("kernels", "saturation")
        },
        **_kernel_rows(manifest.recipe.get("kernels")),
        **_saturation_row(manifest.recipe.get("saturation")),
        "operators here": _line(options.shown_choice(choose_variant(bundle, "auto", ""))),
        **{f"version: {key}": _line(value) for key, value in manifest.versions.items()},
        "licence": manifest.licence,
    }
    for key, value in rows.items():
        table.add_row(_line(key), value)
    return table


def _tokenizer_row(info: TokenizerInfo | None) -> dict[str, str]:
    if info is None:
        return {}
    known = f"{info.kind}, at most {info.max_tokens} tokens" if info.max_tokens else f"{_line(info.kind)}, unknown here"
    return {"tokenizer": known}


def _sizes(manifest: Manifest) -> Table:
    table = Table(title=f"sizes; the files take {manifest.size / 1e6:.1f} MB, and each picture its keys and values")
    for column in ("area", "ratio", "height x width", "stages", "tokens", "keys and values, MB"):
        table.add_column(column, justify="left" if column == "area" else "right")
    for index, size in enumerate(manifest.sizes):
        sized, (height, width) = manifest.of_size(index), size.image_size
        numbers = (sized.model.num_stages, f"{sized.model.num_tokens:,}", _megabytes(cache_bytes(sized)))
        table.add_row(size.area, size.ratio_in_words, f"{height} x {width}", *map(str, numbers))
    return table


def _megabytes(number: int) -> str:
    """With three digits or more."""
    return f"{number / 1e6:,.0f}" if number >= 1e8 else f"{number / 1e6:.3g}"


def _files(manifest: Manifest) -> Table:
    table = Table(title="files")
    table.add_column("file")
    table.add_column("bytes", justify="right")
    table.add_column("sha256")
    for name, info in manifest.files.items():
        table.add_row(name, f"{info.size:,}", f"{info.sha256[:16]}...")
    return table


def _graph(name: str, graph: GraphInfo) -> Table:
    table = Table(title=f"{name} ({', '.join(graph.files)})")
    for column in ("", "name", "type", "shape"):
        table.add_column(column)
    for kind, tensors in (("input", graph.inputs), ("output", graph.outputs)):
        for tensor in tensors:
            shape = ", ".join("?" if size is None else str(size) for size in tensor.shape)
            table.add_row(kind, tensor.name, tensor.dtype, f"[{shape}]")
    return table


def _kernel_rows(kernels: Any) -> dict[str, str]:
    """How many layers of each graph got each kernel; `--json` names them all."""
    if not isinstance(kernels, dict):
        return {}
    return {
        f"kernels: {graph}": ", ".join(f"{n} {kernel}" for kernel, n in Counter(map(_line, found.values())).items())
        for graph, found in kernels.items()
        if isinstance(found, dict)
    }


def _saturation_row(found: Any) -> dict[str, str]:
    """How many layers can saturate; `--saturation` names them."""
    if not isinstance(found, dict) or not isinstance(found.get("can_saturate"), dict):
        return {}
    number = f"{len(found['can_saturate'])} of {_line(found.get('products'))}"
    return {"can saturate without VNNI": f"{number} integer layers" if found["can_saturate"] else "none"}


def _saturation(bundle: Bundle) -> dict[str, Any]:
    """What the build found, by layer.

    Raises:
        NextscaleError: the bundle has no integer layers, or its manifest does not tell.
    """
    found = bundle.manifest.recipe.get("saturation")
    layers = found.get("can_saturate") if isinstance(found, dict) else None
    if not isinstance(layers, dict) or not all(isinstance(item, dict) for item in layers.values()):
        raise NextscaleError(
            f"{bundle.path}: its manifest tells nothing of saturation: it is of full precision, or built by an older "
            "nextscale; build it again"
        )
    return layers


def _saturation_table(layers: dict[str, Any]) -> Table:
    table = Table(title="integer layers that can saturate on CPUs without VNNI")
    table.add_column("layer", overflow="fold")
    table.add_column("pairs of products that do", justify="right")
    table.add_column("change of its result", justify="right")
    for name, item in layers.items():
        shares = (item.get("pairs"), item.get("error"))
        table.add_row(_line(name), *(f"{x:.2%}" if isinstance(x, float) else "not observed" for x in shares))
    return table


def _line(value: Any) -> str:
    """Any JSON value on one line without control characters."""
    return printable(value if isinstance(value, str) else json.dumps(value, ensure_ascii=False))
