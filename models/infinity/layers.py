"""Infinity's facts for the passes: what is known of the stage graph's linear layers without observing (`StageFacts`).

The layers are named as in the stage graph: of the text's pool scores, v and proj; text_proj_for_ca.0 and .2; adaLN's;
word_embed; of each block sa.q, sa.k, sa.v, sa.proj, ca.q, ca.k, ca.v, ca.proj, ffn.fc1 and ffn.fc2; head. What the text
alone decides is made once an image, and counts as of the first stage. Without torch, so that a bundle's layers can be
counted by what its own graph says of them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import zip_longest
from typing import TYPE_CHECKING

import onnx_ir as ir

from nextscale.graph_passes.layer_facts import (
    ADA_LN,
    BLOCKS,
    GELU_MINIMUM,
    GUIDED_AXIS,
    HEAD,
    SIZE_INPUT,
    STAGE_INPUT,
    TEXT,
    WORD_EMBED,
    LayerFacts,
    StageFacts,
)
from nextscale.graph_passes.linear_layers import linear_layer_shapes
from nextscale.models.infinity.schedules import Size
from nextscale.runtime._bundle import Bundle

if TYPE_CHECKING:
    from nextscale.models.infinity.transformer import InfinityConfig

Shape = tuple[int, int]  # [out, in]
SHARED_ADA_LIN, HEAD_ADA_LIN = "shared_ada_lin.1", "head_nm.ada_lin.1"
TEXT_IN, TEXT_OUT = "text_proj_for_ca.0", "text_proj_for_ca.2"
POOL = "text_proj_for_sos.ca"
# What the text's own layers read, and what cross-attention's keys and values of all blocks read.
NORMED_TEXT, PROJECTED_TEXT = "normed_text", "projected_text"
# Of a prompt, where layers are only counted.
TYPICAL_TEXT_TOKENS = 64


def linear_shapes(config: InfinityConfig) -> dict[str, Shape]:
    """The shapes of the linear layers, in the stage graph's order."""
    c, text, hidden = config.embed_dim, config.text_channels, config.hidden_dim
    shapes = {f"{POOL}.scores": (config.pool_heads, text), f"{POOL}.v": (c, text), f"{POOL}.proj": (c, c)}
    shapes |= {TEXT_IN: (c, text), TEXT_OUT: (c, c)}
    shapes |= {f"blocks.{i}.ca.{part}": (c, c) for i in range(config.depth) for part in ("k", "v")}
    shapes |= {SHARED_ADA_LIN: (6 * c, c), HEAD_ADA_LIN: (2 * c, c), "word_embed": (c, config.token_bits)}
    for i in range(config.depth):
        shapes |= {f"blocks.{i}.sa.{part}": (c, c) for part in ("q", "k", "v", "proj")}
        shapes |= {f"blocks.{i}.ca.{part}": (c, c) for part in ("q", "proj")}
        shapes |= {f"blocks.{i}.ffn.fc1": (hidden, c), f"blocks.{i}.ffn.fc2": (c, hidden)}
    return {**shapes, "head": (config.token_bits, c)}


def stage_facts(
    shapes: Mapping[str, Shape], sizes: Sequence[Size], text_tokens: int = TYPICAL_TEXT_TOKENS
) -> StageFacts:
    """The facts of a stage graph.

    The pool is not listed, and stays float: its query is constant.

    Args:
        shapes: of its linear layers (`linear_shapes`).
        sizes: of the pictures.
        text_tokens: how many tokens of text are counted.
    """
    tokens = tuple(map(max, zip_longest(*(size.stage_tokens for size in sizes), fillvalue=0)))
    layers = tuple(
        _layer_facts(name, shape, tokens, text_tokens)
        for name, shape in shapes.items()
        if not name.startswith(f"{POOL}.")
    )
    attentions = tuple(name.removesuffix("q") + "mix" for name in shapes if name.endswith(".sa.q"))
    to_text = tuple(name.removesuffix("q") + "mix" for name in shapes if name.endswith(".ca.q"))
    stages = tuple(size.num_stages for size in sizes)
    return StageFacts(layers, attentions, GUIDED_AXIS, STAGE_INPUT, SIZE_INPUT, stages, to_text, text_tokens)


def facts_of_bundle(bundle: Bundle, size: int = 0, text_tokens: int = TYPICAL_TEXT_TOKENS) -> StageFacts:
    """The facts of a bundle's layers for counting, at the size of that index, from the shapes in its stage graph."""
    shapes = linear_layer_shapes(ir.load(bundle.graph_path("stage")).graph)
    return stage_facts(shapes, [Size(**vars(bundle.manifest.sizes[size]))], text_tokens)


def input_of(name: str) -> str:
    """What a layer reads, as `LayerFacts.input` calls it."""
    unit, _, part = name.rpartition(".")
    if name in (TEXT_IN, f"{POOL}.scores", f"{POOL}.v"):
        return NORMED_TEXT
    if unit.endswith(".sa") and part in ("q", "k", "v"):
        return f"{unit}.qkv"
    if unit.endswith(".ca") and part in ("k", "v"):
        return PROJECTED_TEXT
    return "cond" if name in (SHARED_ADA_LIN, HEAD_ADA_LIN) else name


def _layer_facts(name: str, shape: Shape, tokens: tuple[int, ...], text_tokens: int) -> LayerFacts:
    none_later = (0,) * (len(tokens) - 1)
    reads, of_text = input_of(name), (text_tokens, *none_later)
    unit, _, part = name.rpartition(".")
    if name == "word_embed":  # the first stage starts from the text; both rows begin with the same bits
        return LayerFacts(name, shape, (0, *tokens[1:]), WORD_EMBED, reads, rows=1)
    if name == "head":  # guidance is mixed before it
        return LayerFacts(name, shape, tokens, HEAD, reads, rows=1, equalizable=True, unit=name)
    # The texts of an image's two rows have nothing in common.
    if reads == "cond":
        return LayerFacts(name, shape, (1, *none_later), ADA_LN, reads, alike=False)
    if name == TEXT_IN:
        return LayerFacts(name, shape, of_text, TEXT, reads, alike=False)
    if name == TEXT_OUT:
        return LayerFacts(name, shape, of_text, TEXT, reads, minimum=GELU_MINIMUM, alike=False)
    if reads == PROJECTED_TEXT:
        return LayerFacts(name, shape, of_text, TEXT, reads, equalizable=True, unit=unit, alike=False)
    if part == "fc2":
        return LayerFacts(name, shape, tokens, BLOCKS, reads, minimum=GELU_MINIMUM, unit=unit)
    return LayerFacts(name, shape, tokens, BLOCKS, reads, equalizable=True, unit=unit)
