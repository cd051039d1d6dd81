from __future__ import annotations

import re
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import safetensors.torch
import torch
from torch import Tensor, nn

from nextscale.models.var.checkpoint import (
    CheckpointError,
    infer_var_config,
    infer_vqvae_config,
    load_models,
    load_var,
    load_vqvae,
    read_state_dict,
)
from nextscale.models.var.presets import PRESETS
from nextscale.models.var.transformer import VAR, VARConfig
from nextscale.models.var.vqvae import VQVAE
from tests.goldens.parity import CASES, DERIVED, Case, models_of, random_state

CASE = CASES[0]
StateDict = dict[str, Tensor]


@pytest.fixture(scope="module")
def models() -> tuple[VAR, VQVAE]:
    return models_of(CASE)


@pytest.fixture
def var_state(models: tuple[VAR, VQVAE]) -> StateDict:
    return dict(models[0].state_dict())


@pytest.fixture
def vqvae_state(models: tuple[VAR, VQVAE]) -> StateDict:
    return dict(models[1].state_dict())


@pytest.fixture
def save(tmp_path: Path) -> Callable[..., Path]:
    """Write something with torch.save and return where."""

    def save(content: object, name: str = "var.pth", **options: bool) -> Path:
        torch.save(content, tmp_path / name, **options)
        return tmp_path / name

    return save


def assert_same(model: nn.Module, expected: nn.Module) -> None:
    theirs = expected.state_dict()
    for name, tensor in model.state_dict().items():
        assert tensor.dtype == theirs[name].dtype
        assert torch.equal(tensor, theirs[name]), name


# Reading


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("form", ["zip", "legacy", "safetensors"])
def test_every_file_format_and_dtype_loads(
    tmp_path: Path, models: tuple[VAR, VQVAE], form: str, dtype: torch.dtype
) -> None:
    rounded = [{n: t.to(dtype) if t.is_floating_point() else t for n, t in m.state_dict().items()} for m in models]
    paths = [tmp_path / f"{name}.{'safetensors' if form == 'safetensors' else 'pth'}" for name in ("var", "vqvae")]
    for path, state in zip(paths, rounded, strict=True):
        if form == "safetensors":
            safetensors.torch.save_file(state, path)
        else:
            torch.save(state, path, _use_new_zipfile_serialization=form == "zip")
    for loaded, state in zip(load_models(*paths), rounded, strict=True):
        assert not loaded.training
        for name, parameter in loaded.named_parameters():
            assert parameter.dtype == torch.float32
            assert not parameter.requires_grad
            assert torch.equal(parameter, state[name].float())


def test_derived_buffers_may_be_absent(models: tuple[VAR, VQVAE], save: Callable[..., Path]) -> None:
    paths = [save(random_state(model), f"{i}.pth") for i, model in enumerate(models)]
    for loaded, model in zip(load_models(*paths, patch_nums=CASE.patch_nums), models, strict=True):
        assert_same(loaded, model)


def test_code_statistics_of_another_number_of_stages_are_ignored(
    models: tuple[VAR, VQVAE], vqvae_state: StateDict, save: Callable[..., Path]
) -> None:
    vqvae_state["quantize.ema_vocab_hit_SV"] = torch.ones(10, 64)
    assert_same(load_vqvae(save(vqvae_state), patch_nums=CASE.patch_nums), models[1])


def test_a_training_checkpoint_holds_both_models(
    models: tuple[VAR, VQVAE], var_state: StateDict, vqvae_state: StateDict, save: Callable[..., Path]
) -> None:
    path = save({"epoch": 3, "args": {"depth": 2}, "trainer": {"var_wo_ddp": var_state, "vae_local": vqvae_state}})
    for loaded, model in zip(load_models(path, path), models, strict=True):
        assert_same(loaded, model)
    with pytest.raises(CheckpointError, match="several models; say which: var or vqvae"):
        read_state_dict(path)
    with pytest.raises(CheckpointError, match="training checkpoint without a VQVAE"):
        load_vqvae(save({"trainer": {"var_wo_ddp": var_state}}), patch_nums=CASE.patch_nums)


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod."])
@pytest.mark.parametrize("wrapper", ["state_dict", "model"])
def test_wrapped_state_dicts_are_unwrapped(
    models: tuple[VAR, VQVAE], var_state: StateDict, save: Callable[..., Path], prefix: str, wrapper: str
) -> None:
    path = save({wrapper: {prefix + name: tensor for name, tensor in var_state.items()}, "step": 7})
    assert_same(load_var(path), models[0])


# Inferring


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_configurations_are_inferred(case: Case) -> None:
    with torch.device("meta"):
        vqvae = VQVAE(case.vqvae)
    var = VAR(case.var)
    num_heads = None if case.var.attn_l2_norm else case.var.num_heads
    assert infer_var_config(var.state_dict(), num_heads=num_heads) == case.var
    options = {"quant_resi": case.vqvae.quant_resi, "using_znorm": case.vqvae.using_znorm}
    assert infer_vqvae_config(vqvae.state_dict(), patch_nums=case.patch_nums, **options) == case.vqvae


@pytest.mark.parametrize("name", PRESETS)
def test_the_configurations_of_the_presets_are_inferred(name: str) -> None:
    preset = PRESETS[name]
    with torch.device("meta"):
        var, vqvae = VAR(preset.var).state_dict(), VQVAE(preset.vqvae).state_dict()
    for state in (var, vqvae):
        for key in [key for key in state if key.endswith(DERIVED)]:
            del state[key]
    assert infer_var_config(var) == preset.var
    assert infer_vqvae_config(vqvae, patch_nums=preset.vqvae.patch_nums) == preset.vqvae


def test_unknown_stages_need_the_option(models: tuple[VAR, VQVAE]) -> None:
    state = random_state(models[0])
    with pytest.raises(CheckpointError, match=r"5 stages, 1 tokens in the first and 55 in all.*give --patch-nums"):
        infer_var_config(state)
    assert infer_var_config(state, patch_nums=(1, 2, 3, 4, 5)) == CASE.var
    with pytest.raises(CheckpointError, match=r"which patch_nums 1,2,3,4,6 do not give"):
        infer_var_config(state, patch_nums=(1, 2, 3, 4, 6))


BAD_PATCH_NUMS = [(5,), (), (0, 1), (1, 2, 3, 5, 4)]


@pytest.mark.parametrize("patch_nums", BAD_PATCH_NUMS, ids=str)
def test_stages_that_no_model_has_are_refused(models: tuple[VAR, VQVAE], patch_nums: tuple[int, ...]) -> None:
    message = "two or more positive side lengths in ascending order, found " + ",".join(map(str, patch_nums))
    var, vqvae = map(random_state, models)
    with pytest.raises(CheckpointError, match=message):
        infer_var_config(var, patch_nums=patch_nums)
    with pytest.raises(CheckpointError, match=message):
        infer_vqvae_config(vqvae, patch_nums=patch_nums)


@pytest.mark.parametrize("patch_nums", [(5,), (1, 2, 4, 3)], ids=str)
def test_a_checkpoint_of_stages_that_no_model_has_is_refused(var_state: StateDict, patch_nums: tuple[int, ...]) -> None:
    stages = [pn * pn for pn in patch_nums]
    var_state["lvl_1L"] = torch.cat([torch.full((1, length), si) for si, length in enumerate(stages)], dim=1)
    var_state["lvl_embed.weight"] = torch.zeros(len(stages), 128)
    var_state["pos_1LC"], var_state["pos_start"] = torch.zeros(1, sum(stages), 128), torch.zeros(1, stages[0], 128)
    with pytest.raises(
        CheckpointError, match="side lengths in ascending order, found " + ",".join(map(str, patch_nums))
    ):
        infer_var_config(var_state)


@pytest.mark.parametrize(
    ("options", "message"),
    [({"patch_nums": bad}, "side lengths in ascending order") for bad in BAD_PATCH_NUMS]
    + [({"quant_resi": bad}, "quant_resi must be a number from -1 to 1") for bad in (1.5, float("nan"))],
    ids=str,
)
def test_bad_options_are_refused_before_a_file_is_read(options: dict, message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        load_models("missing.pth", "missing.pth", **options)


def test_options_that_tensors_never_tell_reach_the_vqvae(
    var_state: StateDict, vqvae_state: StateDict, save: Callable[..., Path]
) -> None:
    paths = save(var_state), save(vqvae_state, "vqvae.pth")
    official, other = (
        load_models(*paths, **options)[1].config for options in ({}, {"quant_resi": 0.25, "using_znorm": True})
    )
    assert (official.quant_resi, official.using_znorm) == (0.5, False)
    assert (other.quant_resi, other.using_znorm) == (0.25, True)


def test_stages_that_contradict_the_checkpoint_are_refused(var_state: StateDict) -> None:
    with pytest.raises(CheckpointError, match=r"has patch_nums 1,2,3,4,5 \(lvl_1L\), --patch-nums says 1,2,3,4,6"):
        infer_var_config(var_state, patch_nums=(1, 2, 3, 4, 6))
    for level in (torch.zeros_like(var_state["lvl_1L"]), var_state["lvl_1L"].flip(1)):
        with pytest.raises(CheckpointError, match=r"lvl_1L has stages of \[.*\] tokens, other tensors say 5 stages"):
            infer_var_config(var_state | {"lvl_1L": level})


def test_heads_that_shapes_cannot_tell_are_an_option() -> None:
    config = VARConfig(depth=1, embed_dim=96, num_heads=3, attn_l2_norm=False, patch_nums=(1, 2, 3), vocab_size=8)
    state = VAR(config).state_dict()
    assert infer_var_config(state, num_heads=3) == config
    with pytest.raises(CheckpointError, match="cannot tell its heads: give --num-heads or --preset"):
        infer_var_config(state)
    for num_heads in (5, -3):
        with pytest.raises(
            CheckpointError, match=rf"width 96 is not a multiple of {num_heads} heads; give --num-heads"
        ):
            infer_var_config(state, num_heads=num_heads)


def test_heads_that_contradict_the_checkpoint_are_refused(var_state: StateDict) -> None:
    with pytest.raises(CheckpointError, match=r"has 4 heads \(scale_mul_1H11\), --num-heads says 2"):
        infer_var_config(var_state, num_heads=2)


# Files that are no checkpoint


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"nothing\.pth does not exist; expected a \.pth"):
        load_var(tmp_path / "nothing.pth")


def test_a_folder(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="is a folder"):
        load_var(tmp_path)


@pytest.mark.parametrize("kept", [0.001, 0.3, 0.9, 0.999])
@pytest.mark.parametrize("form", ["zip", "legacy", "safetensors"])
def test_a_truncated_file(tmp_path: Path, var_state: StateDict, form: str, kept: float) -> None:
    path = tmp_path / "var.bin"
    if form == "safetensors":
        safetensors.torch.save_file(var_state, path)
    else:
        torch.save(var_state, path, _use_new_zipfile_serialization=form == "zip")
    content = path.read_bytes()
    path.write_bytes(content[: int(kept * len(content))])
    with pytest.raises(CheckpointError, match=r"var\.bin is (a )?(truncated|damaged)"):
        load_var(path)


def test_a_legacy_file_cut_anywhere(tmp_path: Path) -> None:
    """At every byte of its pickles and of its numbers."""
    path = tmp_path / "var.pth"
    torch.save({f"w{i}": torch.ones(i) for i in range(8)}, path, _use_new_zipfile_serialization=False)
    content = path.read_bytes()
    for size in range(1, len(content)):
        path.write_bytes(content[:size])
        with pytest.raises(CheckpointError, match=r"var\.pth is (truncated|damaged)"):
            read_state_dict(path)


def test_a_damaged_zip(save: Callable[..., Path], var_state: StateDict) -> None:
    path = save(var_state)
    content = path.read_bytes()
    directory = content.rindex(b"PK\x01\x02")
    path.write_bytes(content[:directory] + b"XX" + content[directory + 2 :])
    with pytest.raises(CheckpointError, match=r"var\.pth is truncated or damaged"):
        read_state_dict(path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "git-lfs pointer.*run `git lfs pull`"),
        (b"\n<!DOCTYPE html><html></html>", "is a web page"),
        (b"hello, world\n" * 9, "neither a torch"),
        (b"\x80\x02not a pickle", "damaged"),
    ],
    ids=["empty", "git-lfs", "html", "text", "pickle"],
)
def test_a_foreign_file(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "var.pth"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=f"var\\.pth.*{message}"):
        load_var(path)


def test_a_foreign_zip(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "var.pth", "w") as archive:
        archive.writestr("readme.txt", "hello")
    with pytest.raises(CheckpointError, match=r"is a zip archive, but not one that torch.save wrote"):
        load_var(tmp_path / "var.pth")


def test_a_whole_python_object_is_not_loaded(models: tuple[VAR, VQVAE], save: Callable[..., Path]) -> None:
    with pytest.raises(CheckpointError, match=r"Python objects beside tensors.*save its state dict alone"):
        load_var(save(models[0]))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([1, 2], "expected a dictionary of tensors by name, found a list"),
        ({}, "found none"),
        ({"a": torch.zeros(1), "b": 1, "c": "x"}, "found other entries: b, c"),
    ],
    ids=["list", "nothing", "numbers"],
)
def test_entries_that_are_no_tensors(save: Callable[..., Path], content: object, message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        load_var(save(content))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_values_that_are_not_finite(
    var_state: StateDict, save: Callable[..., Path], dtype: torch.dtype, value: float
) -> None:
    spoilt = var_state["blocks.1.ffn.fc1.weight"].to(dtype, copy=True)
    spoilt[3, 4] = value
    with pytest.raises(CheckpointError, match=r"NaN or infinite values in blocks\.1\.ffn\.fc1\.weight;"):
        load_var(save(var_state | {"blocks.1.ffn.fc1.weight": spoilt}))


# Checkpoints of something else


def test_swapped_files(var_state: StateDict, vqvae_state: StateDict, save: Callable[..., Path]) -> None:
    var_path, vqvae_path = save(var_state, "a.pth"), save(vqvae_state, "b.pth")
    with pytest.raises(CheckpointError, match=r"b\.pth holds a VQVAE, expected a VAR; were the two files swapped\?"):
        load_models(vqvae_path, var_path)
    with pytest.raises(CheckpointError, match=r"a\.pth holds a VAR, expected a VQVAE; were the two files swapped\?"):
        load_vqvae(var_path, patch_nums=CASE.patch_nums)


def test_another_architecture(save: Callable[..., Path]) -> None:
    path = save({f"layer{i}.conv.weight": torch.zeros(1) for i in range(30)})
    with pytest.raises(CheckpointError) as error:
        load_var(path)
    message = str(error.value)
    assert "does not hold a VAR with the official tensor names" in message
    assert re.search(r"\d+ missing: word_embed\.weight, class_emb\.weight, .*, and \d+ more", message)
    assert "30 unexpected: layer0.conv.weight" in message
    assert "layer9.conv.weight, and 20 more" in message
    assert "layer10" not in message
    with pytest.raises(CheckpointError, match="does not hold a VQVAE"):
        load_vqvae(path, patch_nums=CASE.patch_nums)


def test_a_mismatch_lists_the_keys(var_state: StateDict, save: Callable[..., Path]) -> None:
    del var_state["blocks.1.attn.proj.weight"]
    var_state["blocks.1.extra.weight"] = torch.zeros(1)
    var_state["head.bias"] = torch.zeros(65)
    with pytest.raises(CheckpointError) as error:
        load_var(save(var_state))
    assert str(error.value).splitlines()[1:] == [
        "  1 missing: blocks.1.attn.proj.weight",
        "  1 unexpected: blocks.1.extra.weight",
        "  1 misshapen: head.bias (expected [64], found [65])",
    ]


def test_tensors_of_another_rank(var_state: StateDict, save: Callable[..., Path]) -> None:
    for spoilt, found in ((var_state["pos_1LC"].flatten(), "7040"), (torch.zeros(1, 0, 128), "1, 0, 128")):
        message = rf"1 misshapen: pos_1LC \(expected 3 dimensions above 0, found \[{found}\]\)"
        with pytest.raises(CheckpointError, match=message):
            load_var(save(var_state | {"pos_1LC": spoilt}))


def test_a_mismatch_names_the_preset_that_would_fit(save: Callable[..., Path]) -> None:
    with torch.device("meta"):
        shapes = {name: tensor.shape for name, tensor in VAR(PRESETS["var-d16"].var).state_dict().items()}
    state = {name: torch.zeros(1).expand(shape) for name, shape in shapes.items()}  # one number of memory each
    with pytest.raises(CheckpointError) as error:
        load_var(save(state), config=PRESETS["var-d20"].var)
    lines = str(error.value).splitlines()
    assert lines[-1] == "  the preset that fits: var-d16"
    assert all(line.count("blocks.") <= 10 for line in lines)


def test_a_vqvae_of_another_var(vqvae_state: StateDict, save: Callable[..., Path]) -> None:
    other = save(VAR(replace(CASE.var, vocab_size=128)).state_dict())
    with pytest.raises(CheckpointError, match=r"is for 128 codebook entries, .*vqvae\.pth has 64; give the VQVAE"):
        load_models(other, save(vqvae_state, "vqvae.pth"))


def test_widths_that_no_autoencoder_has(vqvae_state: StateDict, save: Callable[..., Path]) -> None:
    vqvae_state["encoder.conv_in.weight"] = torch.zeros(24, 3, 3, 3)
    with pytest.raises(CheckpointError, match=r"widths \[32, 32, 64\] are not multiples of the first one, 24"):
        load_vqvae(save(vqvae_state), patch_nums=CASE.patch_nums)


def test_safetensors_whose_header_length_begins_like_a_pickle(tmp_path: Path) -> None:
    """0x80 is the first byte of a pickle, and of a header length of 128 modulo 256."""
    path, padding = tmp_path / "model.safetensors", 0
    state = {"a": torch.arange(3.0)}
    while not path.exists() or path.read_bytes()[0] != 0x80:
        safetensors.torch.save_file(state, path, {"padding": "x" * padding})
        padding += 8
    found = read_state_dict(path, "var")
    assert list(found) == ["a"]
    assert torch.equal(found["a"], state["a"])
