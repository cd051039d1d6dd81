"""VAR's facts against its graph, its parameters and what runs of it show."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from tiny_model import NUM_CLASSES, tiny_models

from nextscale.export.var.stage_graph import build_stage_graph
from nextscale.graph_passes._attention_patterns import attention_patterns
from nextscale.graph_passes.layer_facts import GELU_MINIMUM
from nextscale.graph_passes.linear_layers import linear_layers
from nextscale.models.var.layers import class_range, facts_of, linear_shapes

OPTIONS: dict[str, dict[str, Any]] = {
    "base": {},
    "shared adaLN": {"shared_aln": True},
    "mlp ratio": {"mlp_ratio": 2.5, "depth": 3},
    "no l2 norm": {"attn_l2_norm": False},
}


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS.keys())
def test_facts_are_those_of_the_stage_graph(options: dict[str, Any]) -> None:
    var, vqvae = tiny_models(**options)
    graph, facts = build_stage_graph(var, vqvae.quantize).graph, facts_of(var)
    layers = linear_layers(graph)
    shapes = {layer.name: tuple(layer.weight.const_value.shape.numpy())[::-1] for layer in layers}  # type: ignore[union-attr]
    assert list(linear_shapes(var.config).items()) == list(shapes.items())
    assert {layer.name: layer.shape for layer in facts.layers} == shapes
    assert list(facts.attentions) == [pattern.name for pattern in attention_patterns(graph)]
    assert facts.stage_input in {value.name for value in graph.inputs}
    # Layers that are said to read the same do, and no others.
    reads = {layer.name: layer.activation for layer in layers}
    for one in facts.layers:
        for other in facts.layers:
            assert (one.input == other.input) == (reads[one.name] is reads[other.name]), (one.name, other.name)


def test_what_is_behind_gelu() -> None:
    x = torch.linspace(-1, 0, 100_001, dtype=torch.float64)
    minimum = torch.nn.functional.gelu(x, approximate="tanh").min().item()
    assert GELU_MINIMUM <= minimum < GELU_MINIMUM + 1e-4
    facts = facts_of(tiny_models()[0])
    behind = [layer.name for layer in facts.layers if layer.minimum == GELU_MINIMUM]
    assert behind == ["blocks.0.ffn.fc2", "blocks.1.ffn.fc2"]


def test_class_ranges_hold_what_adaln_sees() -> None:
    var, _ = tiny_models()
    known = [layer for layer in facts_of(var).layers if layer.known is not None]
    assert [layer.name for layer in known] == ["blocks.0.ada_lin.1", "blocks.1.ada_lin.1", "head_nm.ada_lin.1"]
    activated = torch.nn.functional.silu(var.class_emb(torch.arange(NUM_CLASSES + 1)))
    found = class_range(var)
    np.testing.assert_array_equal([*found.minimum, *found.maximum], [activated.min().item(), activated.max().item()])


def test_rows_of_an_image_and_tokens_of_a_stage() -> None:
    facts = facts_of(tiny_models()[0])
    assert [layer.name for layer in facts.layers if layer.rows == 1] == ["word_embed", "head"]
    assert facts.layer("word_embed").tokens == (0, 4, 9, 16)
    assert facts.layer("head").tokens == facts.layer("blocks.1.attn.k").tokens == (1, 4, 9, 16)
    assert facts.layer("head_nm.ada_lin.1").tokens == (1, 0, 0, 0)
