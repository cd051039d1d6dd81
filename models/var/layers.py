"""VAR's facts for the passes: what is known of the stage graph's linear layers without observing (`StageFacts`).

The layers are named as in the stage graph: "word_embed", "head", adaLN's, and of each block q, k, v, proj, fc1, fc2.
Without torch, so that a bundle's layers can be counted by what its own graph says of them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir

from nextscale.graph_passes.layer_facts import (
    ADA_LN,
    BLOCKS,
    GELU_MINIMUM,
    GUIDED_AXIS,
    HEAD,
    STAGE_INPUT,
    WORD_EMBED,
    LayerFacts,
    StageFacts,
)
from nextscale.graph_passes.linear_layers import linear_layer_shapes
from nextscale.graph_passes.qparams import Range
from nextscale.runtime._bundle import Bundle

if TYPE_CHECKING:
    from nextscale.models.var.transformer import VAR, VARConfig

Shape = tuple[int, int]  # [out, in]
SHARED_ADA_LIN, HEAD_ADA_LIN = "shared_ada_lin.1", "head_nm.ada_lin.1"


def linear_shapes(config: VARConfig) -> dict[str, Shape]:
    """The shapes of the linear layers, in the stage graph's order."""
    c, hidden = config.embed_dim, config.hidden_dim
    modulations = [SHARED_ADA_LIN] if config.shared_aln else [f"blocks.{i}.ada_lin.1" for i in range(config.depth)]
    shapes = {**dict.fromkeys(modulations, (6 * c, c)), HEAD_ADA_LIN: (2 * c, c), "word_embed": (c, config.z_channels)}
    for i in range(config.depth):
        shapes |= {f"blocks.{i}.attn.{part}": (c, c) for part in ("q", "k", "v", "proj")}
        shapes |= {f"blocks.{i}.ffn.fc1": (hidden, c), f"blocks.{i}.ffn.fc2": (c, hidden)}
    return {**shapes, "head": (config.vocab_size, c)}


def stage_facts(shapes: Mapping[str, Shape], patch_nums: Sequence[int], class_range: Range | None = None) -> StageFacts:
    """The facts of a stage graph.

    Args:
        shapes: of its linear layers (`linear_shapes`).
        patch_nums: of the model.
        class_range: of adaLN's input (`class_range`); None where layers are only counted.
    """
    tokens = tuple(pn * pn for pn in patch_nums)
    layers = tuple(_layer_facts(name, shape, tokens, class_range) for name, shape in shapes.items())
    attentions = tuple(name.removesuffix("q") + "mix" for name in shapes if name.endswith(".attn.q"))
    return StageFacts(layers, attentions, GUIDED_AXIS, STAGE_INPUT)


def facts_of(var: VAR) -> StageFacts:
    """The facts of a torch model's stage graph."""
    return stage_facts(linear_shapes(var.config), var.config.patch_nums, class_range(var))


def facts_of_bundle(bundle: Bundle) -> StageFacts:
    """The facts of a bundle's layers for counting, from the shapes in its stage graph, float or integer."""
    shapes = linear_layer_shapes(ir.load(bundle.graph_path("stage")).graph)
    return stage_facts(shapes, bundle.model.patch_nums)


def class_range(var: VAR) -> Range:
    """The range of what adaLN's linear layers see: SiLU of the class embeddings, of all classes at once."""
    from torch.nn.functional import silu

    activated = silu(var.class_emb.weight.detach())
    return Range(*(np.array([extreme.item()], np.float32) for extreme in activated.aminmax()))


def _layer_facts(name: str, shape: Shape, tokens: tuple[int, ...], class_range: Range | None) -> LayerFacts:
    none_at_first = (0, *tokens[1:])  # the first stage starts from the class
    if name == "word_embed":  # both rows begin with the same token map
        return LayerFacts(name, shape, none_at_first, WORD_EMBED, name, rows=1)
    if name == "head":  # guidance is mixed before it
        return LayerFacts(name, shape, tokens, HEAD, name, rows=1, equalizable=True, unit=name)
    *prefix, unit, part = name.split(".")
    if unit in ("ada_lin", "shared_ada_lin"):  # made at the first stage, and carried
        once = (1, *[0] * (len(tokens) - 1))
        return LayerFacts(name, shape, once, ADA_LN, "class", known=class_range)
    unit = ".".join((*prefix, unit))
    if part == "fc2":
        return LayerFacts(name, shape, tokens, BLOCKS, name, minimum=GELU_MINIMUM, unit=unit)
    reads = f"{unit}.qkv" if part in ("q", "k", "v") else name
    return LayerFacts(name, shape, tokens, BLOCKS, reads, equalizable=True, unit=unit)
