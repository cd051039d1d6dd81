from __future__ import annotations

import pytest
import torch
from torch import Tensor

from nextscale.models.checkpoint_file import CheckpointError
from nextscale.models.var.checkpoint_config import infer_var_config, infer_vqvae_config
from nextscale.models.var.presets import PRESETS
from nextscale.models.var.transformer import VAR, VARConfig
from nextscale.models.var.vqvae import VQVAE
from tests.goldens.parity import CASES, DERIVED, Case, random_state

CASE = CASES[0]
StateDict = dict[str, Tensor]


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


# Sizes that no model has


@pytest.mark.parametrize(
    ("spoilt", "message"),
    [
        ({f"blocks.{i}.x": torch.zeros(1) for i in range(4_000)}, "at most 256 transformer blocks, found 4000"),
        ({"lvl_1L": torch.zeros(1).expand(1, 10**12)}, r"at most 16384 tokens \(lvl_1L\), found 1000000000000"),
        ({"lvl_1L": torch.tensor([[0, 10**15]])}, "lvl_1L has stages of"),
        ({"lvl_1L": torch.tensor([[0, -1]])}, "lvl_1L has stages of"),
        ({"lvl_1L": torch.zeros(1, 0)}, "lvl_1L has stages of"),
    ],
    ids=["blocks", "tokens", "stages", "negative", "none"],
)
def test_sizes_of_a_var_are_bounded(var_state: StateDict, spoilt: StateDict, message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        infer_var_config(var_state | spoilt)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("encoder.down.{}.block.0.conv1.weight", "at most 8 levels of resolution, found 300"),
        ("encoder.down.0.block.{}.conv1.weight", "at most 256 blocks of a level, found 300"),
        ("quantize.quant_resi.qresi_ls.{}.weight", "at most 64 phis, found 300"),
    ],
)
def test_sizes_of_a_vqvae_are_bounded(models: tuple[VAR, VQVAE], name: str, message: str) -> None:
    state = dict(models[1].state_dict()) | {name.format(i): torch.zeros(1) for i in range(300)}
    with pytest.raises(CheckpointError, match=message):
        infer_vqvae_config(state, patch_nums=CASE.patch_nums)


def test_patch_nums_are_bounded(models: tuple[VAR, VQVAE]) -> None:
    for patch_nums, message in (((1, 129), "at most 16384 tokens, found 16642"), ((1,) * 65, "at most 64 stages")):
        with pytest.raises(CheckpointError, match=message):
            infer_var_config(random_state(models[0]), patch_nums=patch_nums)


# Tensors that are missing


@pytest.mark.parametrize("part", [0, 1], ids=["VAR", "VQVAE"])
def test_a_tensor_that_is_missing_changes_no_configuration(models: tuple[VAR, VQVAE], part: int) -> None:
    """Another tensor, or else the default of the official releases, tells what it would."""
    state = dict(models[part].state_dict())
    infer = [infer_var_config, lambda state: infer_vqvae_config(state, patch_nums=CASE.patch_nums)][part]
    config, differing = infer(state), {}
    for name in state.keys() - {"lvl_1L"}:
        found = infer({other: tensor for other, tensor in state.items() if other != name})
        if found != config:
            differing[name] = {key for key, value in vars(found).items() if value != vars(config)[key]}
    told_by_one_alone = [
        {"word_embed.weight": {"z_channels"}, "class_emb.weight": {"num_classes"}},
        {"quantize.embedding.weight": {"vocab_size"}},
    ][part]
    assert differing == told_by_one_alone
