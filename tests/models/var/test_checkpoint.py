from __future__ import annotations

import json
import re
from collections import OrderedDict
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import Tensor, nn

from nextscale.models.checkpoint_file import CheckpointError
from nextscale.models.var.checkpoint import _is_derived, load_models, load_var, load_vqvae
from nextscale.models.var.presets import PRESETS
from nextscale.models.var.transformer import VAR
from nextscale.models.var.vqvae import VQVAE
from tests.goldens.parity import CASES, random_state

CASE = CASES[0]
StateDict = dict[str, Tensor]


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


@pytest.mark.parametrize(
    ("options", "message"),
    [({"patch_nums": bad}, "side lengths in ascending order") for bad in ((), (5,), (1, 3, 2))]
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


# As people keep them


def prefixed(prefix: str) -> Callable[[StateDict], StateDict]:
    return lambda state: {prefix + name: tensor for name, tensor in state.items()}


def in_blocks(word: str) -> Callable[[StateDict], StateDict]:
    """As wrapping each block alone names tensors."""
    return lambda state: {re.sub(r"^blocks\.\d+", rf"\g<0>.{word}", name): tensor for name, tensor in state.items()}


WRAPPED: dict[str, Callable[[StateDict], Any]] = {
    "state_dict and step": lambda state: {"state_dict": state, "step": 7},
    "model_state_dict": lambda state: {"model_state_dict": state, "optimizer_state_dict": {"state": {0: {"m": STEP}}}},
    "DeepSpeed": lambda state: {"module": state, "ds_version": "0.14", "optimizer": None},
    "Lightning": lambda state: {"state_dict": prefixed("model.")(state), "callbacks": {}, "hparams_name": "kwargs"},
    "DistributedDataParallel": prefixed("module."),
    "compiled": prefixed("_orig_mod."),
    "stacked prefixes": lambda state: {"model": prefixed("module._orig_mod.")(state)},
    "FSDP": lambda state: prefixed("_fsdp_wrapped_module.")(in_blocks("_fsdp_wrapped_module")(state)),
    "compiled blocks": in_blocks("_orig_mod"),
    "official trainer": lambda state: {
        "args": {"depth": 2},
        "trainer": {"var_wo_ddp": state, "var_opt": {"state": {}}},
    },
    "unknown words": lambda state: {"runs": {"best": prefixed("learner.net.")(state)}},
    "ordered": OrderedDict,
    "parameters": lambda state: {n: nn.Parameter(t, requires_grad=False) for n, t in state.items()},
    "learned parameters": lambda state: {n: nn.Parameter(t, t.is_floating_point()) for n, t in state.items()},
    "AveragedModel": lambda state: {"n_averaged": COUNTER, **prefixed("module.")(state)},
    "counters": lambda state: {**state, "blocks.0.norm.num_batches_tracked": COUNTER, "started": COUNTER > 0},
    "beside other tensors": lambda state: {
        "queue": STEP,
        3: STEP,
        "weights": state,
        "loss": {"disc.head.weight": STEP},
    },
}
STEP = torch.zeros(1)
COUNTER = torch.tensor(7)


@pytest.mark.parametrize("wrap", WRAPPED.values(), ids=WRAPPED.keys())
def test_wrapped_state_dicts_are_found(
    models: tuple[VAR, VQVAE], var_state: StateDict, save: Callable[..., Path], wrap: Callable[[StateDict], Any]
) -> None:
    assert_same(load_var(save(wrap(var_state))), models[0])


def test_shards_load(models: tuple[VAR, VQVAE], var_state: StateDict, tmp_path: Path) -> None:
    files = {name: f"model-0000{i % 2}.safetensors" for i, name in enumerate(var_state)}
    for file in set(files.values()):
        safetensors.torch.save_file({n: t for n, t in var_state.items() if files[n] == file}, tmp_path / file)
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": files}))
    for path in (tmp_path, tmp_path / "model.safetensors.index.json"):
        assert_same(load_var(path), models[0])


def test_a_training_checkpoint_holds_both_models(
    models: tuple[VAR, VQVAE], var_state: StateDict, vqvae_state: StateDict, save: Callable[..., Path]
) -> None:
    path = save({"epoch": 3, "args": {"depth": 2}, "trainer": {"var_wo_ddp": var_state, "vae_local": vqvae_state}})
    for loaded, model in zip(load_models(path, path), models, strict=True):
        assert_same(loaded, model)
    joined = {**prefixed("var.")(var_state), **prefixed("vae.")(vqvae_state)}
    for loaded, model in zip(load_models(*[save({"state_dict": joined})] * 2), models, strict=True):
        assert_same(loaded, model)


def test_one_of_several_is_chosen_by_name(
    models: tuple[VAR, VQVAE], var_state: StateDict, vqvae_state: StateDict, save: Callable[..., Path]
) -> None:
    """The others are spoilt, so that taking them would fail."""
    spoilt = {name: tensor * torch.nan if tensor.is_floating_point() else tensor for name, tensor in var_state.items()}
    path = save({"model": spoilt, "ema": var_state})
    with pytest.raises(
        CheckpointError,
        match=r"var\.pth holds 2 sets of weights: model, ema; choose one with --weights, such as --weights model$",
    ):
        load_var(path)
    assert_same(load_var(path, weights="ema"), models[0])
    with pytest.raises(
        CheckpointError, match=r"--weights best is the name of none of its sets of weights: model, ema$"
    ):
        load_var(path, weights="best")
    vae = {name: tensor * torch.nan for name, tensor in vqvae_state.items()}
    trainer = {"trainer": {"vae_wo_ddp": vae, "vae_ema": vqvae_state, "disc_wo_ddp": {"heads.0.weight": STEP}}}
    vae_path = save(trainer, "vae.pth")
    with pytest.raises(CheckpointError, match=r"vae_wo_ddp, trainer\.vae_ema; choose one with --vae-weights, "):
        load_models(path, vae_path, weights="ema")
    for vae_weights in ("ema", "vae_ema", "trainer.vae_ema"):
        loaded = load_models(path, vae_path, weights="ema", vae_weights=vae_weights)
        assert_same(loaded[1], models[1])


def test_a_name_that_the_only_weights_do_not_have_is_refused(var_state: StateDict, save: Callable[..., Path]) -> None:
    with pytest.raises(
        CheckpointError, match=r"--weights ema is the name of none of its sets of weights: \. \(the top of the file\)$"
    ):
        load_var(save(var_state), weights="ema")
    with pytest.raises(CheckpointError, match=r"--weights '' is the name of none of its sets of weights: \. "):
        load_var(save(var_state), weights="")


AVERAGED: dict[str, tuple[str, Callable[[StateDict, StateDict], Any]]] = {
    "list of state dicts": ("ema.0", lambda raw, ema: {"model": raw, "ema": [ema]}),
    "pair of state dicts": ("1", lambda raw, ema: (raw, ema)),
    "named parameters": ("ema", lambda raw, ema: {"model": raw, "ema": list(ema.items())}),
    "torch_ema": (
        "ema.shadow_params",
        lambda raw, ema: {
            "model": raw,
            "ema": {"decay": 0.99, "shadow_params": learned(ema), "collected": None},
        },
    ),
    "all values": ("ema", lambda raw, ema: {"model": raw, "ema": list(ema.values())}),
    "beside moments": (
        "optimizer.state.ema",
        lambda raw, ema: {
            "model": raw,
            "optimizer": {"state": {i: {"step": COUNTER, "exp_avg": t, "ema": t} for i, t in enumerate(learned(ema))}},
        },
    ),
    "NeMo": (
        "optimizer_states.0.ema",
        lambda raw, ema: {"state_dict": raw, "optimizer_states": [{"ema": tuple(learned(ema)), "state": {}}]},
    ),
    "LitEma": (
        "model_ema",
        lambda raw, ema: {"state_dict": {**prefixed("model.net.")(raw), **squeezed(prefixed("net.")(ema))}},
    ),
    "LitEma of a compiled model": (
        "model_ema",
        lambda raw, ema: {"state_dict": {**prefixed("model._orig_mod.")(raw), **squeezed(ema)}},
    ),
    "ema_pytorch": (
        "ema.ema_model",
        lambda raw, ema: {
            "model": raw,
            "ema": {**prefixed("online_model.")(raw), **prefixed("ema_model.")(ema), "initted": COUNTER > 0},
        },
    ),
}


def learned(state: StateDict) -> list[Tensor]:
    return [tensor for name, tensor in state.items() if not _is_derived(name)]


def squeezed(state: StateDict) -> StateDict:
    names = {f"model_ema.{name.replace('.', '')}": t for name, t in state.items() if not _is_derived(name)}
    return names | {"model_ema.decay": torch.tensor(0.99), "model_ema.num_updates": COUNTER}


@pytest.mark.parametrize(("place", "wrap"), AVERAGED.values(), ids=AVERAGED.keys())
def test_averaged_weights_are_chosen_in_whatever_form(
    models: tuple[VAR, VQVAE],
    var_state: StateDict,
    save: Callable[..., Path],
    place: str,
    wrap: Callable[[StateDict, StateDict], Any],
) -> None:
    """The raw ones are spoilt; without a choice neither set is taken."""
    spoilt = {name: tensor * torch.nan if tensor.is_floating_point() else tensor for name, tensor in var_state.items()}
    path = save(wrap(spoilt, var_state))
    with pytest.raises(
        CheckpointError, match=rf"[23] sets of weights: .*{re.escape(place)}; choose one with --weights"
    ):
        load_var(path)
    for name in (place, "ema") if "ema" in place else (place,):
        assert_same(load_var(path, weights=name), models[0])


UNREADABLE: dict[str, tuple[str, Callable[[StateDict], Any]]] = {
    "other shapes": ("ema", lambda state: [t[:1] if t.shape == (64,) else t for t in learned(state)]),
    "a few": ("ema.shadow_params", lambda state: {"shadow_params": learned(state)[:-2]}),
    "numbers": ("ema", lambda state: dict(enumerate(learned(state)))),
    "numbered names": ("ema", lambda state: {f"param_{i}": t for i, t in enumerate(learned(state), 100)}),
}


@pytest.mark.parametrize(("place", "wrap"), UNREADABLE.values(), ids=UNREADABLE.keys())
def test_averaged_weights_that_cannot_be_read_are_told(
    models: tuple[VAR, VQVAE],
    var_state: StateDict,
    save: Callable[..., Path],
    place: str,
    wrap: Callable[[StateDict], Any],
) -> None:
    path = save({"model": var_state, "ema": wrap(var_state)})
    told = rf"model, {re.escape(place)} \(perhaps averaged and in a form that cannot be read\)"
    with pytest.raises(CheckpointError, match=rf"2 sets of weights: {told}; choose .*, such as --weights model$"):
        load_var(path)
    with pytest.raises(CheckpointError, match=rf"--weights ema is a set of weights that cannot be read; .* {told}$"):
        load_var(path, weights="ema")
    assert_same(load_var(path, weights="model"), models[0])


def test_what_optimizers_hold_is_no_set_of_weights(
    models: tuple[VAR, VQVAE], var_state: StateDict, save: Callable[..., Path]
) -> None:
    moments = {name: torch.zeros_like(tensor) for name, tensor in var_state.items()}
    optimizer = {
        "state": {i: {"step": COUNTER, "exp_avg": t, "exp_avg_sq": t} for i, t in enumerate(moments.values())},
        "fp32_from_fp16_groups": [learned(moments)],
    }
    grads = {f"{name}.exp_avg": tensor for name, tensor in moments.items()}
    assert_same(load_var(save({"model": var_state, "optimizer": optimizer, "moments": grads})), models[0])


# Values


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_values_that_are_not_finite(
    var_state: StateDict, save: Callable[..., Path], dtype: torch.dtype, value: float
) -> None:
    spoilt = var_state["blocks.1.ffn.fc1.weight"].to(dtype, copy=True)
    spoilt[3, 4] = value
    with pytest.raises(CheckpointError, match=r"NaN or infinite values in blocks\.1\.ffn\.fc1\.weight;"):
        load_var(save(var_state | {"blocks.1.ffn.fc1.weight": spoilt}))


def test_float64_that_fits_float32(models: tuple[VAR, VQVAE], var_state: StateDict, save: Callable[..., Path]) -> None:
    state = {name: tensor.double() if tensor.is_floating_point() else tensor for name, tensor in var_state.items()}
    assert_same(load_var(save(state)), models[0])


def test_values_that_overflow_float32(var_state: StateDict, save: Callable[..., Path]) -> None:
    name = "blocks.0.ffn.fc1.weight"
    with pytest.raises(CheckpointError, match=r"fc1\.weight \(float64\) has values that overflow float32"):
        load_var(save(var_state | {name: var_state[name].double() * 1e300}))


OTHER_KINDS = {
    "int8": lambda t: t.to(torch.int8),
    "bool": lambda t: t > 0,
    "complex64": lambda t: t.to(torch.complex64),
    "float8_e4m3fn": lambda t: t.to(torch.float8_e4m3fn),
    "qint8": lambda t: torch.quantize_per_tensor(t, 0.1, 0, torch.qint8),
    "sparse coo": lambda t: t.to_sparse(),
    "sparse csr": lambda t: t.to_sparse_csr(),
    "nested": lambda t: torch.nested.nested_tensor([t, t[:1]]),
    "on the meta device, without values": lambda t: t.to("meta"),
}


@pytest.mark.parametrize(("kind", "convert"), OTHER_KINDS.items(), ids=OTHER_KINDS.keys())
@pytest.mark.filterwarnings("ignore:.*(prototype|beta state|quantize_per_tensor.*deprecated|Sparse).*:UserWarning")
def test_tensors_that_are_no_weights(
    var_state: StateDict, save: Callable[..., Path], kind: str, convert: Callable[[Tensor], Tensor]
) -> None:
    name = "blocks.1.ffn.fc1.weight"
    with pytest.raises(CheckpointError) as error:
        load_var(save(var_state | {name: convert(var_state[name])}))
    assert f"float64 tensors, found {name} ({kind}); convert them first" in str(error.value)


@pytest.mark.parametrize("dtype", [torch.int8, torch.bool, torch.float8_e4m3fn], ids=str)
def test_safetensors_that_are_no_weights(var_state: StateDict, tmp_path: Path, dtype: torch.dtype) -> None:
    state = var_state | {"head.bias": torch.zeros(64).to(dtype)}
    safetensors.torch.save_file(state, tmp_path / "var.safetensors")
    with pytest.raises(CheckpointError, match=rf"found head\.bias \({str(dtype).removeprefix('torch.')}\)"):
        load_var(tmp_path / "var.safetensors")


def test_values_that_a_file_stores_once_are_expanded(
    var_state: StateDict, save: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a view repeats them, or several tensors share them; tensors of one block of memory repeat nothing."""
    small = torch.arange(64.0)
    state = var_state | {"head.bias": torch.ones(1).expand(64), "head.weight": small[:, None].expand(64, 128)}
    loaded = load_var(save(state))
    assert torch.equal(loaded.head.bias, torch.ones(64))
    assert torch.equal(loaded.head.weight, small[:, None].repeat(1, 128))
    assert loaded.head.weight.is_contiguous()
    monkeypatch.setattr("nextscale.models.checkpoint_weights.MAX_REPEATED", 0)
    floating = {name: tensor for name, tensor in var_state.items() if tensor.is_floating_point()}
    pieces = torch.cat([tensor.flatten() for tensor in floating.values()]).split([t.numel() for t in floating.values()])
    flat = {name: piece.view_as(t) for (name, t), piece in zip(floating.items(), pieces, strict=True)}
    load_var(save(var_state | flat))
    with pytest.raises(CheckpointError, match=r"head\.bias has the shape \[64\], but only 1 values; save contiguous"):
        load_var(save(var_state | {"head.bias": torch.ones(1).expand(64)}))
    shared = dict.fromkeys(("blocks.0.attn.q_bias", "blocks.0.attn.v_bias"), torch.zeros(128))
    with pytest.raises(CheckpointError, match=r"blocks\.0\.attn\.q_bias has the shape \[128\], but only 128 values"):
        load_var(save(var_state | shared))


def test_negated_views_are_resolved(models: tuple[VAR, VQVAE], var_state: StateDict, save: Callable[..., Path]) -> None:
    """As the imaginary part of a conjugate is one."""
    state = {name: torch._neg_view(-t) if t.is_floating_point() else t for name, t in var_state.items()}
    loaded = load_var(save(state))
    assert not any(parameter.is_neg() for parameter in loaded.parameters())
    assert_same(loaded, models[0])


@pytest.mark.parametrize("dtype", [torch.complex64, torch.bool, torch.qint8, torch.float8_e4m3fn], ids=str)
@pytest.mark.filterwarnings("ignore:.*deprecated.*:UserWarning")
def test_levels_that_are_no_integers(var_state: StateDict, save: Callable[..., Path], dtype: torch.dtype) -> None:
    levels = var_state["lvl_1L"].float()
    odd = torch.quantize_per_tensor(levels, 1.0, 0, dtype) if dtype == torch.qint8 else levels.to(dtype)
    with pytest.raises(CheckpointError, match=r"expected lvl_1L to be a dense tensor of integers$"):
        load_var(save(var_state | {"lvl_1L": odd}))


def test_a_shape_that_the_file_does_not_fill(var_state: StateDict, save: Callable[..., Path]) -> None:
    state = var_state | {"head.weight": torch.zeros(1).expand(2**40, 128), "head.bias": torch.zeros(1).expand(2**40)}
    with pytest.raises(CheckpointError, match=r"head\.\w+ has the shape \[1099511627776.*\], but only 1 values"):
        load_var(save(state))


# Checkpoints of something else


def test_swapped_files(var_state: StateDict, vqvae_state: StateDict, save: Callable[..., Path]) -> None:
    var_path, vqvae_path = save(var_state, "a.pth"), save(vqvae_state, "b.pth")
    with pytest.raises(CheckpointError, match=r"b\.pth holds a VQVAE, expected a VAR; were the two files swapped\?"):
        load_models(vqvae_path, var_path)
    with pytest.raises(CheckpointError, match=r"a\.pth holds a VAR, expected a VQVAE; were the two files swapped\?"):
        load_vqvae(var_path, patch_nums=CASE.patch_nums)


PARTS = {
    "encoder.down": ["encoder"],
    "encoder.down ": ["encoder.down"],
    "quantize": ["quantize"],
    "decoder.up": ["decoder"],
    "decoder.up, post_quant_conv": ["decoder", "post_quant_conv"],
    "quant_conv, post_quant_conv": ["quant_conv", "post_quant_conv"],
}


@pytest.mark.parametrize(("told", "parts"), PARTS.items(), ids=PARTS.keys())
def test_a_vqvae_without_a_part(vqvae_state: StateDict, save: Callable[..., Path], told: str, parts: list[str]) -> None:
    prefixes = tuple(f"{part}." for part in parts)
    path = save({name: tensor for name, tensor in vqvae_state.items() if not name.startswith(prefixes)}, "vae.pth")
    with pytest.raises(CheckpointError, match=rf"vae\.pth has no tensors of {told.strip()}; expected a whole VQVAE,"):
        load_vqvae(path, patch_nums=CASE.patch_nums)


def test_a_var_without_blocks(var_state: StateDict, save: Callable[..., Path]) -> None:
    path = save({name: tensor for name, tensor in var_state.items() if not name.startswith("blocks.")})
    with pytest.raises(CheckpointError, match=r"var\.pth has no transformer blocks \(blocks\.0 and further\); give"):
        load_var(path)


def test_any_part_may_be_missing(
    models: tuple[VAR, VQVAE], save: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without the names of a prefix, or with these alone: a smaller model, or an error that is expected."""
    monkeypatch.setattr("nextscale.models.var.checkpoint.PRESETS", {})  # comparing with them takes long
    for load, model in zip((load_var, partial(load_vqvae, patch_nums=CASE.patch_nums)), models, strict=True):
        state = model.state_dict()
        for prefix in {name[: dot.end()] for name in state for dot in [*re.finditer(r"\.", name)][:2]}:
            if not all(_is_derived(name) for name in state if name.startswith(prefix)):
                for kept in (False, True):
                    some = {name: tensor for name, tensor in state.items() if name.startswith(prefix) == kept}
                    with suppress(CheckpointError):
                        load(save(some))


def test_a_mismatch_lists_the_keys(var_state: StateDict, save: Callable[..., Path]) -> None:
    del var_state["blocks.1.attn.proj.weight"]
    var_state["blocks.1.extra.weight"] = torch.zeros(1)
    var_state["head.bias"] = torch.zeros(65)
    with pytest.raises(CheckpointError) as error:
        load_var(save(var_state))
    assert str(error.value).splitlines()[1:] == [
        "  1 missing: blocks.1.attn.proj.weight (expected [128, 128])",
        "  1 unexpected: blocks.1.extra.weight (found [1])",
        "  1 misshapen: head.bias (expected [64], found [65])",
    ]


@pytest.mark.parametrize("anchor", ["pos_start", "pos_1LC", "lvl_embed.weight", "head.weight"])
def test_a_descendant_is_compared_with_its_own_shapes(
    var_state: StateDict, save: Callable[..., Path], anchor: str
) -> None:
    """Another position table and one tensor less are two differences, whichever tensor that is."""
    state = {name: tensor for name, tensor in var_state.items() if name != anchor}
    table = "pos_start" if anchor == "pos_1LC" else "pos_1LC"
    state[table] = torch.zeros(3, 128)
    with pytest.raises(CheckpointError) as error:
        load_var(save(state))
    assert str(error.value).splitlines()[1:] == [
        f"  1 missing: {anchor} (expected {list(var_state[anchor].shape)})",
        f"  1 misshapen: {table} (expected {list(var_state[table].shape)}, found [3, 128])",
    ]


def test_the_family_that_tensors_look_like_is_named(
    var_state: StateDict, vqvae_state: StateDict, save: Callable[..., Path]
) -> None:
    """Names of Infinity's and Switti's tensors, and of a VQGAN's whose queries, keys and values are apart."""
    infinity = {"text_proj_for_sos.ca.mat_kv.weight": STEP, "word_embed.weight": STEP, "pos_start": STEP}
    with pytest.raises(CheckpointError, match=r"does not hold a VAR: expected tensors named word_embed.*its 3 tensors"):
        load_var(save({"trainer": {"gpt_fsdp": infinity}}))
    with pytest.raises(CheckpointError, match="it looks like Infinity, which takes text"):
        load_var(save({"trainer": {"gpt_fsdp": infinity}}))
    switti = var_state | {"text_pooler.weight": torch.zeros(128, 1280)}
    with pytest.raises(CheckpointError, match=r"1 unexpected: text_pooler.*\n  it looks like Switti, which takes text"):
        load_var(save(switti))
    with pytest.raises(CheckpointError, match="it looks like a VQGAN of taming-transformers"):
        load_vqvae(save(vqvae_state | {"encoder.mid.attn_1.q.weight": STEP}), patch_nums=CASE.patch_nums)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([1, 2], "it holds no tensors"),
        ({}, "it holds no tensors"),
        ({"a": torch.zeros(1), "b": 1}, "its 1 tensors are a"),
        ({f"layer{i}.weight": STEP for i in range(30)}, "its 30 tensors are layer0.weight, .*, and 20 more"),
    ],
    ids=["list", "nothing", "numbers", "another architecture"],
)
def test_what_is_no_model_is_told(save: Callable[..., Path], content: object, message: str) -> None:
    for load in (load_var, load_vqvae):
        with pytest.raises(CheckpointError, match=f"does not hold a (VAR|VQVAE): expected tensors named .*{message}$"):
            load(save(content))


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
