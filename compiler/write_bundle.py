"""Graphs of any family into a bundle, whose stored generation is still to be made."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import onnx_ir as ir

from nextscale.compiler.family import Family
from nextscale.export._card import bundle_card
from nextscale.export.bundle_writer import BundleInfo, write_graphs, write_manifest
from nextscale.export.generate_graph import build_generate_graph
from nextscale.graph_passes._fused_nodes import has_fused
from nextscale.runtime._manifest import FUSED

# Graphs by role, as the manifest has them: "stage" and "decoder", perhaps "encoder" and "text_encoder".
Graphs = Mapping[str, ir.Model]


def write_bundle(
    family: Family,
    folder: Path,
    graphs: Graphs,
    recipe: Mapping[str, Any],
    fused: Graphs = MappingProxyType({}),
) -> None:
    """Compose the single file, write all graphs and a manifest whose stored tokens are still zeros.

    Args:
        family: the model.
        folder: empty.
        graphs: by role; their weights end up in the folder (`write_graphs`).
        recipe: for the manifest.
        fused: the same roles with fused operators, to write beside them; or nothing.
    """
    info = bundle_info(family, recipe)

    def composed(graphs: Graphs) -> dict[str, ir.Model]:
        stages, sizes = info.model.num_stages, info.sizes
        generate = build_generate_graph(graphs["stage"], graphs["decoder"], stages, info.request, sizes)
        return {"generate": generate, **graphs}

    models = composed(graphs)
    if fused:
        models |= {f"{role}.{FUSED}": graph for role, graph in composed(fused).items() if has_fused(graph)}
    write_graphs(folder, models)
    if "text_encoder" not in graphs:
        info = replace(info, tokenizer=None, tokenizer_file=None, words_file=None)
    write_manifest(folder, models, info, family.verify("text_encoder" in graphs))


def bundle_info(family: Family, recipe: Mapping[str, Any]) -> BundleInfo:
    """What a manifest says besides the graphs, with its card."""
    info = family.bundle_info(recipe)
    return replace(info, card=bundle_card(info, family.source.description))
