"""Checkpoints of the BSQ VAE: the official names, names without wrapper levels, and what is refused."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from nextscale.models.checkpoint_file import CheckpointError
from nextscale.models.infinity.vae_checkpoint import load_bsq_vae, unwrapped
from nextscale.models.var.checkpoint import load_vqvae
from tests.goldens.infinity_vae_parity import INFINITY_VAE, VAE_CASES, VAECase, vae_of
from tests.goldens.parity import CASES, models_of

CASE = VAE_CASES[0]
BITS = CASE.config.token_bits
MASK = torch.tensor([128, 64, 32, 16, 8, 4, 2, 1])

Save = Callable[..., Path]


def official_state(case: VAECase = CASE) -> dict[str, Tensor]:
    """The tensors by the official code's names."""
    ours = vae_of(case).state_dict()
    with np.load(INFINITY_VAE) as goldens:
        names = [str(name) for name in goldens[f"{case.name}.names"]]
    return {name: MASK if name.endswith("lfq.mask") else ours[unwrapped(name)] for name in names}


def assert_same(path: Path, case: VAECase = CASE, **options: str) -> None:
    found = load_bsq_vae(path, token_bits=case.config.token_bits, **options)
    assert found.config == case.config
    expected = vae_of(case).state_dict()
    assert set(found.state_dict()) == set(expected)
    for name, tensor in found.state_dict().items():
        assert torch.equal(tensor, expected[name])
        assert tensor.dtype == torch.float32
    assert not found.training
    assert not any(parameter.requires_grad for parameter in found.parameters())


@pytest.mark.parametrize("case", VAE_CASES, ids=lambda case: case.name)
def test_official_checkpoints_load_and_tell_the_configuration(save: Save, case: VAECase) -> None:
    assert_same(save({"vae": official_state(case)}), case)


def test_the_official_names_have_wrappers_and_two_masks() -> None:
    names = set(official_state())
    assert {"decoder.up.3.block.0.conv1.conv.weight", "encoder.down.0.downsample.conv.conv.bias"} <= names
    assert {"quantizer.lfq.mask", "quantize.lfq.mask", "encoder.norm_out.norm.weight"} <= names


@pytest.mark.parametrize(
    "wrap",
    [
        lambda state: state,
        lambda state: {"vae": {unwrapped(name): tensor for name, tensor in state.items()}},
        lambda state: {"epoch": 3, "vae": {f"module.{name}": tensor for name, tensor in state.items()}},
        lambda state: {f"vae.{name}": tensor for name, tensor in state.items()},
        lambda state: {"vae": {name: tensor for name, tensor in state.items() if "mask" not in name}},
    ],
    ids=["bare", "without wrappers", "trainer", "prefix", "without masks"],
)
def test_other_wrappings_load(save: Save, wrap: Callable[[dict[str, Tensor]], object]) -> None:
    assert_same(save(wrap(official_state())))


def test_the_official_codes_set_is_taken_unless_another_is_named(save: Save) -> None:
    averaged = {name: tensor if tensor is MASK else tensor + 1 for name, tensor in official_state().items()}
    path = save({"ema": averaged, "vae": official_state()})
    assert_same(path)
    ema = load_bsq_vae(path, token_bits=BITS, weights="ema")
    assert torch.equal(ema.encoder.conv_in.weight, vae_of(CASE).encoder.conv_in.weight + 1)
    path = save({"raw": averaged, "ema": official_state()})
    with pytest.raises(CheckpointError, match="2 sets of weights: raw, ema; choose one with --vae-weights"):
        load_bsq_vae(path, token_bits=BITS)


def test_half_precision_becomes_float32(save: Save) -> None:
    state = {name: tensor if "mask" in name else tensor.bfloat16() for name, tensor in official_state().items()}
    found = load_bsq_vae(save({"vae": state}), token_bits=BITS)
    assert found.decoder.conv_out.weight.dtype == torch.float32


def refusal(path: Path, token_bits: int = BITS) -> str:
    with pytest.raises(CheckpointError) as caught:
        load_bsq_vae(path, token_bits=token_bits)
    return str(caught.value)


@pytest.mark.parametrize(("token_bits", "says"), [(16, "8 latent channels.* 16 bits"), (56, "8 latent .* 56 bits")])
def test_a_vae_of_another_transformer_is_refused(save: Save, token_bits: int, says: str) -> None:
    message = refusal(save({"vae": official_state()}), token_bits)
    assert re.search(says, message)
    assert message.endswith("give the VAE that the transformer learned from")


def test_missing_and_misshapen_tensors_are_named(save: Save) -> None:
    state = official_state()
    del state["decoder.mid.block_1.norm1.norm.weight"]
    state["decoder.conv_out.conv.bias"] = torch.zeros(4)
    message = refusal(save({"vae": state}))
    assert "1 missing: decoder.mid.block_1.norm1.weight (expected [128])" in message
    assert "1 misshapen: decoder.conv_out.bias (expected [3], found [4])" in message


def test_what_only_other_settings_have_is_refused(save: Save) -> None:
    """Such as a projection before the bits, which the official loader would skip."""
    message = refusal(save({"vae": official_state() | {"quantizer.project_in.weight": torch.zeros(8, 8)}}))
    assert "1 unexpected: quantizer.project_in.weight (found [8, 8])" in message


def test_a_tensor_under_both_names_is_refused(save: Save) -> None:
    state = official_state()
    state["encoder.conv_in.weight"] = state["encoder.conv_in.conv.weight"]
    assert "encoder.conv_in.conv.weight and encoder.conv_in.weight are both" in refusal(save({"vae": state}))


def test_a_vqvae_of_var_is_refused(save: Save) -> None:
    message = refusal(save(models_of(CASES[0])[1].state_dict()))
    assert re.search("holds a VQVAE with a codebook, as VAR has; expected Infinity's BSQ VAE", message)


def test_var_refuses_this_vae(save: Save) -> None:
    with pytest.raises(CheckpointError, match="it looks like Infinity's BSQ VAE"):
        load_vqvae(save({"vae": official_state()}), patch_nums=(1, 2))


def test_a_transformer_is_refused(save: Save) -> None:
    path = save({"text_proj_for_sos.ca.mat_q": torch.zeros(1, 2, 4), "pos_start": torch.zeros(1, 1, 8)})
    assert "holds a transformer of Infinity, expected its BSQ VAE; were the two files swapped?" in refusal(path)


def test_anything_else_is_refused(save: Save) -> None:
    message = refusal(save({"a": torch.zeros(1)}))
    assert message.startswith(str(save({"a": torch.zeros(1)})))
    assert message.endswith("and others; its 1 tensors are a")


def test_values_that_are_no_weights_are_refused(save: Save) -> None:
    state = official_state()
    state["decoder.conv_out.conv.bias"] = torch.full((3,), torch.nan)
    assert "NaN or infinite values in decoder.conv_out.bias" in refusal(save({"vae": state}))
    state["decoder.conv_out.conv.bias"] = torch.zeros(3, dtype=torch.int32)
    assert "found decoder.conv_out.bias (int32); convert them first" in refusal(save({"vae": state}))


def test_the_configuration_needs_the_tokens_bits(save: Save) -> None:
    path = save({"vae": official_state()})
    with pytest.raises(ValueError, match="needs a config or token_bits"):
        load_bsq_vae(path)
    assert load_bsq_vae(path, config=CASE.config).config == CASE.config
