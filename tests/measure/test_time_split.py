from __future__ import annotations

from pathlib import Path

import pytest
from tiny_model import ONE_THREAD, PATCH_NUMS

from nextscale.measure.profile_events import GenerationProfile, OperatorTime
from nextscale.measure.time_split import PARTS, part_of, part_patterns, profile_bundle, split_profile
from nextscale.models.var.layers import stage_facts
from nextscale.runtime._bundle import Bundle

LAYERS = ("shared_ada_lin.1", "head_nm.ada_lin.1", "word_embed", "head")
BLOCK_LAYERS = ("ada_lin.1", "attn.q", "attn.k", "attn.v", "attn.proj", "ffn.fc1", "ffn.fc2")
FACTS = stage_facts(
    dict.fromkeys([*LAYERS, *(f"blocks.{i}.{name}" for i in range(16) for name in BLOCK_LAYERS)], (8, 8)), (1, 2)
)

NODES = {
    "stage/blocks.3.attn.q": "linear",
    "stage/blocks.3.attn.proj/quantize/Sub_node_2": "linear",
    "stage/blocks.12.ffn.fc1/integer/blocks.12.ffn.fc1.uncond": "linear",
    "stage/blocks.0.ada_lin.1": "linear",
    "stage/head_nm.ada_lin.1": "linear",
    "stage/shared_ada_lin.1/quantize": "linear",
    "stage/head": "linear",
    "stage/word_embed": "linear",
    "stage/pair/stage_scales": "linear",
    "stage/activation/stage_zero_points/split": "linear",
    "stage/blocks.0.attn.scores": "attention",
    "stage/blocks.0.attn.mix/integer/Log_node_25": "attention",
    "stage/blocks.0/attn/Softmax_node_63": "attention",
    "stage/blocks.0/attn/Concat_node_59": "attention",
    "stage/sampling/CumSum_node_409": "sampling",
    "stage/sampling/sampling.threshold.then/TopK_node_5": "sampling",
    "decoder/decoder.conv_in": "decoder",
    "stage/blocks.0/LayerNormalization_node_43": "other",
    "stage/blocks.0/Gelu_node_76": "other",
    "stage/header": "other",
    "stage/blocks.99.attn.q": "other",  # the model has no such layer
    "stage/phi": "other",
    "stages": "other",
    "": "other",
}


@pytest.mark.parametrize(("node", "part"), NODES.items(), ids=NODES.keys())
def test_names_tell_the_part(node: str, part: str) -> None:
    assert part_of(node, part_patterns(FACTS)) == part


def test_a_profile_is_split_by_names_and_place() -> None:
    operators = [
        OperatorTime("Cast_9", "Cast", 5e-6, None, decoding=False),
        OperatorTime("stage/head", "MatMul", 50e-6, 0, decoding=False),
        OperatorTime("stage/sampling/If_node_4", "If", 7e-6, 1, decoding=False),
        OperatorTime("", "", 3e-6, 1, decoding=False),
        OperatorTime("decoder/decoder.conv_in", "Conv", 600e-6, None, decoding=True),
        OperatorTime("ReorderOutput", "ReorderOutput", 20e-6, None, decoding=True),
    ]
    split = split_profile(GenerationProfile(700e-6, (60e-6, 20e-6), tuple(operators)), FACTS)
    assert split.total == pytest.approx(700e-6)
    assert split.stages == (60e-6, 20e-6)
    assert {part: round(seconds * 1e6) for part, seconds in split.parts.items()} == {
        "decoder": 620,
        "sampling": 7,
        "linear": 50,
        "attention": 0,
        "other": 8,
    }


def test_a_bundle_is_profiled(tiny_bundle: Path, tmp_path: Path) -> None:
    split = profile_bundle(Bundle.open(tiny_bundle), ONE_THREAD, tmp_path)
    assert len(split.stages) == len(PATCH_NUMS)
    assert tuple(split.parts) == PARTS
    assert min(split.parts.values()) > 0
    assert sum(split.parts.values()) == pytest.approx(split.total, rel=1e-6)
    assert list(tmp_path.iterdir()) == []
