"""Infinity's facts against its parameters and its equations; a graph of it is compared with them where it is made."""

from __future__ import annotations

import torch

from nextscale.graph_passes.integer_model import IntegerModel
from nextscale.graph_passes.layer_facts import GELU_MINIMUM
from nextscale.graph_passes.recipe import load_recipe
from nextscale.models.infinity.layers import (
    POOL,
    linear_shapes,
    stage_facts,
)
from nextscale.models.infinity.schedules import first_stages
from nextscale.models.infinity.transformer import Infinity
from tests.tiny_infinity import CONFIG, SIZE

SHAPES = linear_shapes(CONFIG)
FACTS = stage_facts(SHAPES, [SIZE], text_tokens=5)


def test_all_matrices_of_the_model_are_listed() -> None:
    """But for the pool's keys, which its constant query turns into scores."""
    with torch.device("meta"):
        model = Infinity(CONFIG)
    matrices = {name: p for name, p in model.named_parameters() if p.ndim == 2 and "embed.weight" not in name}
    del matrices["cfg_uncond"]
    total = sum(p.numel() for p in matrices.values()) + model.word_embed.weight.numel()
    listed = sum(rows * columns for rows, columns in SHAPES.values())
    keys_as_scores = (CONFIG.embed_dim - CONFIG.pool_heads) * CONFIG.text_channels
    assert listed == total - keys_as_scores


def test_the_pool_and_cross_attention_stay_float() -> None:
    assert [layer.name for layer in FACTS.layers] == [name for name in SHAPES if not name.startswith(POOL)]
    assert FACTS.attentions == ("blocks.0.sa.mix", "blocks.1.sa.mix")


def test_keys_and_values_of_the_text_read_one_input() -> None:
    readers = FACTS.equalizable()
    assert readers["projected_text"] == [f"blocks.{i}.ca.{part}" for i in range(2) for part in "kv"]
    assert readers["blocks.1.sa.qkv"] == [f"blocks.1.sa.{part}" for part in "qkv"]
    alone = ("blocks.0.sa.proj", "blocks.0.ca.q", "blocks.0.ca.proj", "blocks.0.ffn.fc1", "head")
    assert all(readers[name] == [name] for name in alone)
    assert not {"blocks.0.ffn.fc2", "word_embed", "cond", "text_proj_for_ca.0", "text_proj_for_ca.2"} & readers.keys()
    assert FACTS.layer("shared_ada_lin.1").input == FACTS.layer("head_nm.ada_lin.1").input == "cond"


def test_what_is_behind_gelu() -> None:
    behind = [layer.name for layer in FACTS.layers if layer.minimum == GELU_MINIMUM]
    assert behind == ["text_proj_for_ca.2", "blocks.0.ffn.fc2", "blocks.1.ffn.fc2"]


def test_rows_and_tokens() -> None:
    assert [layer.name for layer in FACTS.layers if layer.rows == 1] == ["word_embed", "head"]
    assert FACTS.layer("head").tokens == FACTS.layer("blocks.1.ca.q").tokens == (1, 4, 12, 48)
    assert FACTS.layer("word_embed").tokens == (0, 4, 12, 48)
    assert FACTS.layer("shared_ada_lin.1").tokens == (1, 0, 0, 0)
    assert FACTS.layer("text_proj_for_ca.0").tokens == FACTS.layer("blocks.1.ca.v").tokens == (5, 0, 0, 0)


def test_of_several_sizes_the_most_tokens_of_each_stage_count() -> None:
    sizes = [first_stages(3, (1, 1)), SIZE]
    facts = stage_facts(SHAPES, sizes)
    assert facts.layer("head").tokens == (1, 4, 16, 48)
    assert (facts.size_input, facts.stages_by_size) == ("size", (3, 4))


def test_units_are_attentions_and_feed_forward_parts() -> None:
    units = {layer.unit for layer in FACTS.layers if layer.unit is not None}
    assert units == {*(f"blocks.{i}.{part}" for i in range(2) for part in ("sa", "ca", "ffn")), "head"}
    assert FACTS.layer("blocks.0.ca.k").unit == "blocks.0.ca"


def test_what_reads_the_text_alone_has_no_pairs() -> None:
    """An image's two texts are not alike; its tokens' rows are."""
    facts = stage_facts(linear_shapes(CONFIG), [SIZE])
    layers = IntegerModel.decide(load_recipe("default"), facts).layers
    stages = {name.rpartition(".")[2] for name, layer in layers.items() if layer.granularity == "stage"}
    assert {name for name, layer in layers.items() if layer.granularity == "pair" and ".ca." in name} == {
        f"blocks.{i}.ca.{part}" for i in range(CONFIG.depth) for part in ("q", "proj")
    }
    assert stages == {"0", "2", "1", "k", "v", "head"}
