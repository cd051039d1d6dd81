from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import Tensor, nn

from nextscale.models.checkpoint_file import CheckpointError
from nextscale.models.infinity.checkpoint import load_infinity, official_shapes
from nextscale.models.infinity.checkpoint_config import blocks_in_chunk, flat_name, infer_config
from nextscale.models.infinity.presets import PRESETS
from nextscale.models.infinity.transformer import InfinityConfig
from tests.goldens.infinity_parity import in_chunks, random_state
from tests.goldens.parity import CASES as VAR_CASES
from tests.goldens.parity import random_state as random_var_state
from tests.tiny_infinity import CONFIG, tiny_infinity

StateDict = dict[str, Tensor]
FOUR_BLOCKS = replace(CONFIG, depth=4)
Save = Callable[..., Path]


@pytest.fixture
def state() -> StateDict:
    """As the official code saves it, in two chunks."""
    derived = {f"blocks.{i}.{part}.zero_k_bias": torch.zeros(32) for i in range(4) for part in ("sa", "ca")}
    return in_chunks(random_state(FOUR_BLOCKS) | derived, 2)


def assert_same(model: nn.Module, expected: nn.Module) -> None:
    theirs = expected.state_dict()
    assert model.state_dict().keys() == theirs.keys()
    for name, tensor in model.state_dict().items():
        assert tensor.dtype == torch.float32
        assert torch.equal(tensor, theirs[name]), name
    assert not model.training
    assert not any(parameter.requires_grad for parameter in model.parameters())


# Reading


@pytest.mark.parametrize("form", ["zip", "safetensors", "torch shards", "safetensors shards"])
def test_every_form_of_file_loads(tmp_path: Path, state: StateDict, form: str) -> None:
    suffix, write = ("safetensors", safetensors.torch.save_file) if "safe" in form else ("bin", torch.save)
    if "shards" in form:
        files = {name: f"model-0000{i % 3}.{suffix}" for i, name in enumerate(state)}
        for file in set(files.values()):
            write({name: tensor for name, tensor in state.items() if files[name] == file}, tmp_path / file)
        (tmp_path / f"model.{suffix}.index.json").write_text(json.dumps({"metadata": {}, "weight_map": files}))
    else:
        write(state, tmp_path / f"infinity.{suffix}")
    model = load_infinity(tmp_path)
    assert model.config == FOUR_BLOCKS
    assert_same(model, tiny_infinity(FOUR_BLOCKS))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_half_precision_becomes_float32_before_the_heads_rows_are_subtracted(
    state: StateDict, save: Save, dtype: torch.dtype
) -> None:
    half = {name: tensor.to(dtype) for name, tensor in state.items()}
    model = load_infinity(save(half))
    head = half["head.weight"].double()
    assert torch.equal(model.head.weight, (head[1::2] - head[::2]).float())
    assert torch.equal(model.word_embed.weight, half["word_embed.weight"].float())


def test_weights_that_are_float32_stay_in_the_file(state: StateDict, save: Save) -> None:
    """They take no memory of their own: what changes in the file, which nobody should do, changes in the model."""
    path = save(state)
    model = load_infinity(path)
    needle = state["block_chunks.1.module.0.ffn.fc1.weight"].numpy().tobytes()
    begin = path.read_bytes().index(needle)
    with path.open("r+b") as file:
        file.seek(begin)
        file.write(bytes(4))
    assert model.blocks[2].ffn.fc1.weight[0, 0] == 0


@pytest.mark.parametrize("in_chunk", [1, 2, 4])
def test_chunks_only_name_tensors(save: Save, in_chunk: int) -> None:
    path = save(in_chunks(random_state(FOUR_BLOCKS), in_chunk))
    assert_same(load_infinity(path), tiny_infinity(FOUR_BLOCKS))


def test_blocks_without_chunks_load(save: Save) -> None:
    assert_same(load_infinity(save(random_state(FOUR_BLOCKS))), tiny_infinity(FOUR_BLOCKS))


def test_both_forms_of_the_scales_of_heads_load(state: StateDict, save: Save) -> None:
    other = {n: t.transpose(1, 2) if n.endswith("scale_mul_1H11") else t for n, t in state.items()}
    assert other["block_chunks.0.module.0.sa.scale_mul_1H11"].shape == (1, 1, 2, 1)
    assert_same(load_infinity(save(other)), tiny_infinity(FOUR_BLOCKS))


def test_buffers_that_follow_from_the_configuration_are_ignored(state: StateDict, save: Save) -> None:
    names = ("attn_bias_for_masking", "lvl_1L", "Infinity_visible_kvlen", "Infinity_invisible_qlen")
    state |= dict.fromkeys(names, torch.zeros(1, 1, 7, 7, dtype=torch.int32))
    assert_same(load_infinity(save(state)), tiny_infinity(FOUR_BLOCKS))


WRAPPED: dict[str, Callable[[StateDict], Any]] = {
    "official trainer, FSDP": lambda s: {
        "args": "text",
        "trainer": {
            "config": {"label_smooth": 0.0},
            "gpt_fsdp": s,
            "gpt_fsdp_opt": {"state": {n: {"exp_avg": t, "step": torch.tensor(7.0)} for n, t in s.items()}},
            "vae_local": {"decoder.conv_in.weight": torch.zeros(1)},
        },
    },
    "official trainer, DDP": lambda s: {"trainer": {"gpt_wo_ddp": s, "gpt_opt": {"state": {}}}},
    "compiled blocks": lambda s: {re.sub(r"module\.\d+", r"\g<0>._orig_mod", name): t for name, t in s.items()},
    "FSDP names": lambda s: {f"_fsdp_wrapped_module.{name}": t for name, t in s.items()},
}


@pytest.mark.parametrize("wrap", WRAPPED.values(), ids=WRAPPED.keys())
def test_wrapped_state_dicts_are_found(state: StateDict, save: Save, wrap: Callable[[StateDict], Any]) -> None:
    assert_same(load_infinity(save(wrap(state))), tiny_infinity(FOUR_BLOCKS))


def test_averaged_weights_are_chosen_by_name(state: StateDict, save: Save) -> None:
    """The others are spoilt, so that taking them would fail."""
    spoilt = {name: tensor * torch.nan for name, tensor in state.items()}
    path = save({"trainer": {"gpt_fsdp": spoilt, "gpt_ema_fsdp": state}})
    with pytest.raises(
        CheckpointError,
        match=r"holds 2 sets of weights: trainer\.gpt_fsdp, trainer\.gpt_ema_fsdp; choose one with --weights",
    ):
        load_infinity(path)
    for name in ("ema", "gpt_ema_fsdp", "trainer.gpt_ema_fsdp"):
        assert_same(load_infinity(path, weights=name), tiny_infinity(FOUR_BLOCKS))


# Configurations


@pytest.mark.parametrize("name", PRESETS)
def test_the_configurations_of_the_presets_are_inferred(name: str) -> None:
    config = PRESETS[name].config
    state = {tensor: torch.empty(shape, device="meta") for tensor, shape in official_shapes(config).items()}
    assert infer_config(state) == config


def test_what_leaves_no_trace_is_told_by_options(state: StateDict, save: Save) -> None:
    path = save(state)
    model = load_infinity(path, patchify=True, rope_mode=1, level_each_chunk=True)
    assert model.config == replace(FOUR_BLOCKS, patchify=True, rope_mode=1, level_blocks=(0, 2))
    flat = save(random_state(FOUR_BLOCKS), "flat.pth")
    assert load_infinity(flat, level_each_chunk=True).config.level_blocks == (0, 1, 2, 3)


def test_names_without_chunks() -> None:
    assert blocks_in_chunk(["head.weight", "blocks.0.ada_gss"]) == 0
    assert blocks_in_chunk(["block_chunks.0.0.ada_gss", "block_chunks.7.3.ada_gss"]) == 4
    assert flat_name("block_chunks.7.3.sa.q_bias", 4) == "blocks.31.sa.q_bias"
    assert flat_name("head.weight", 4) == "head.weight"


# Refusals


def test_missing_tensors_are_named_as_in_the_file(state: StateDict, save: Save) -> None:
    for name in ("block_chunks.1.module.1.ca.mat_kv.weight", "pos_start"):
        del state[name]
    with pytest.raises(CheckpointError) as error:
        load_infinity(save(state))
    told = "2 missing: pos_start (expected [1, 1, 32]), block_chunks.1.module.1.ca.mat_kv.weight (expected [64, 32])"
    assert str(error.value).splitlines()[1:] == [f"  {told}"]


def test_a_missing_last_block_is_told(state: StateDict, save: Save) -> None:
    rest = {name: tensor for name, tensor in state.items() if not name.startswith("block_chunks.1.module.1")}
    with pytest.raises(CheckpointError, match=r"19 missing: block_chunks\.1\.module\.1\.ada_gss"):
        load_infinity(save(rest))


def test_unexpected_and_misshapen_tensors_are_named(state: StateDict, save: Save) -> None:
    state["block_chunks.0.module.0.ca_gamma"] = torch.zeros(32)
    state["head.weight"] = torch.zeros(256, 32)
    with pytest.raises(CheckpointError) as error:
        load_infinity(save(state))
    assert str(error.value).splitlines()[1:] == [
        "  1 unexpected: block_chunks.0.module.0.ca_gamma (found [32])",
        "  1 misshapen: head.weight (expected [16, 32], found [256, 32])",
    ]


def test_another_configuration_than_wanted_is_refused(state: StateDict, save: Save) -> None:
    with pytest.raises(CheckpointError, match=r"does not fit InfinityConfig\(depth=4.*token_bits=9"):
        load_infinity(save(state), config=replace(FOUR_BLOCKS, token_bits=9))


def test_a_missing_shard_is_told(tmp_path: Path, state: StateDict) -> None:
    files = dict.fromkeys(state, "model-00001.safetensors")
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": files}))
    with pytest.raises(CheckpointError, match=r"model-00001\.safetensors does not exist"):
        load_infinity(tmp_path)


def test_a_var_given_by_mistake_is_told(save: Save) -> None:
    from nextscale.models.var.transformer import VAR

    path = save(random_var_state(VAR(VAR_CASES[0].var)))
    with pytest.raises(CheckpointError, match=r"does not hold an Infinity: (.|\n)*it looks like a VAR"):
        load_infinity(path)


@pytest.mark.parametrize(
    ("name", "family"),
    [
        ("decoder.up.3.block.0.conv1.conv.weight", "Infinity's tokenizer"),
        ("encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight", "a text encoder"),
    ],
)
def test_other_parts_given_by_mistake_are_told(save: Save, name: str, family: str) -> None:
    with pytest.raises(CheckpointError, match=f"its 1 tensors are {re.escape(name)}\n  it looks like {family}"):
        load_infinity(save({name: torch.zeros(1)}))


def without(state: StateDict, *words: str) -> StateDict:
    return {name: tensor for name, tensor in state.items() if not any(word in name for word in words)}


INCOMPLETE: dict[str, tuple[tuple[str, ...], str]] = {
    "blocks": (("block_chunks",), r"has no transformer blocks \(block_chunks\.0\.module\.0\); give the whole Infinity"),
    "scales": (("scale_mul",), r"no scale_mul_1H11 tells its heads; expected attention with l2 norm"),
}


@pytest.mark.parametrize(("words", "message"), INCOMPLETE.values(), ids=INCOMPLETE.keys())
def test_incomplete_models_are_refused(state: StateDict, save: Save, words: tuple[str, ...], message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        load_infinity(save(without(state, *words)))


def test_heads_that_do_not_divide_the_width_are_refused(state: StateDict, save: Save) -> None:
    state["block_chunks.0.module.0.sa.scale_mul_1H11"] = torch.zeros(1, 5, 1, 1)
    with pytest.raises(CheckpointError, match="its width 32 is not a multiple of 5 heads"):
        load_infinity(save(state))


def test_sizes_that_do_not_go_together_are_refused(state: StateDict, save: Save) -> None:
    state["block_chunks.0.module.0.sa.scale_mul_1H11"] = torch.zeros(1, 16, 1, 1)
    with pytest.raises(CheckpointError, match=r"\.pth: the width of a head must be a multiple of 4 for RoPE"):
        load_infinity(save(state))


def test_far_too_many_blocks_are_refused(state: StateDict, save: Save) -> None:
    state["block_chunks.500.module.1.ada_gss"] = torch.zeros(1, 1, 6, 32)
    with pytest.raises(CheckpointError, match="expected at most 256 transformer blocks, found 1002"):
        load_infinity(save(state))


def test_two_tensors_of_one_block_are_refused(state: StateDict, save: Save) -> None:
    state["blocks.2.ada_gss"] = torch.zeros(1, 1, 6, 32)
    with pytest.raises(CheckpointError, match=r"two tensors are blocks\.2\.ada_gss, one of them called blocks\.2"):
        load_infinity(save(state))


def test_values_that_are_not_finite_are_refused(state: StateDict, save: Save) -> None:
    state["head.bias"][3] = torch.nan
    with pytest.raises(CheckpointError, match=r"NaN or infinite values in head\.bias; the checkpoint is damaged"):
        load_infinity(save(state))


def test_an_empty_configuration_cannot_be_told() -> None:
    with pytest.raises(CheckpointError, match="none of its tensors tells the width of the model"):
        infer_config({"text_norm.weight": torch.zeros(3)})
    assert InfinityConfig() == PRESETS["infinity-2b"].config
