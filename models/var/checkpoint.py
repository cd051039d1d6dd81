"""Checkpoints to models: find the tensors, infer the configuration from them, load, say what misfits.

The official releases load unchanged, and so do checkpoints of trainers, whatever dictionaries, lists and prefixes they
put around the official tensor names, and `.safetensors` files, also in shards. All weights become float32.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from nextscale.models._unnamed_weights import find_unnamed
from nextscale.models.checkpoint_file import CheckpointError, read_checkpoint
from nextscale.models.checkpoint_model import Shapes, filled_model, shapes_of, skeleton
from nextscale.models.checkpoint_weights import (
    DTYPES,
    choose_weights,
    find_weights,
    is_counter,
    listed,
    require_weights,
    tensor_names,
)
from nextscale.models.var.checkpoint_config import (
    ANCHORS,
    Part,
    checked_patch_nums,
    checked_quant_resi,
    infer_var_config,
    infer_vqvae_config,
)
from nextscale.models.var.presets import PRESETS
from nextscale.models.var.relatives import relative_of
from nextscale.models.var.transformer import VAR, VARConfig, level_and_mask
from nextscale.models.var.vqvae import VQVAE, VQVAEConfig

MASK = "attn_bias_for_masking"
LEVELS = "lvl_1L"
LEVEL_DTYPES = (*DTYPES, torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)
CODE_HITS = "quantize.ema_vocab_hit_SV"
PART_NAMES: dict[Part, str] = {"var": "VAR", "vqvae": "VQVAE"}
# The command line's options that choose between weights.
WEIGHTS_OPTIONS: dict[Part, str] = {"var": "--weights", "vqvae": "--vae-weights"}


def load_models(
    var_path: str | Path,
    vae_path: str | Path,
    *,
    patch_nums: Sequence[int] | None = None,
    num_heads: int | None = None,
    quant_resi: float = 0.5,
    using_znorm: bool = False,
    weights: str | None = None,
    vae_weights: str | None = None,
) -> tuple[VAR, VQVAE]:
    """A VAR and its VQVAE; a training checkpoint of the official code may be given as both.

    Args:
        var_path, vae_path: checkpoints.
        patch_nums, num_heads: see `infer_var_config`.
        quant_resi, using_znorm: see `infer_vqvae_config`.
        weights, vae_weights: see `read_state_dict`.
    Raises:
        CheckpointError: an option is out of its range, which is found first; a file cannot be read or loaded; the two
            do not belong together.
    """
    checked_quant_resi(quant_resi)
    if patch_nums is not None:
        patch_nums = checked_patch_nums(patch_nums)
    var = load_var(var_path, patch_nums=patch_nums, num_heads=num_heads, weights=weights)
    vqvae = load_vqvae(
        vae_path,
        patch_nums=var.config.patch_nums,
        quant_resi=quant_resi,
        using_znorm=using_znorm,
        weights=vae_weights,
    )
    for what, ours, theirs in (
        ("codebook entries", var.config.vocab_size, vqvae.config.vocab_size),
        ("latent channels", var.config.z_channels, vqvae.config.z_channels),
    ):
        if ours != theirs:
            raise CheckpointError(
                f"{var_path} is for {ours} {what}, {vae_path} has {theirs}; give the VQVAE that the VAR learned from"
            )
    return var, vqvae


def load_var(
    path: str | Path,
    *,
    config: VARConfig | None = None,
    patch_nums: Sequence[int] | None = None,
    num_heads: int | None = None,
    weights: str | None = None,
) -> VAR:
    """The VAR in a checkpoint: float32, in eval mode, without gradients.

    Args:
        path: the checkpoint.
        config: what it must be; None infers it.
        patch_nums, num_heads: see `infer_var_config`.
        weights: see `read_state_dict`.
    """
    state_dict = read_state_dict(path, "var", weights)
    config = config or infer_var_config(state_dict, patch_nums=patch_nums, num_heads=num_heads, source=path)
    level, mask = level_and_mask(config.patch_nums)
    derived = {LEVELS: level, MASK: mask}
    derived |= {f"blocks.{i}.attn.zero_k_bias": torch.zeros(config.embed_dim) for i in range(config.depth)}
    hint = _hint({name: preset.var for name, preset in PRESETS.items()})
    return filled_model(VAR, config, state_dict, path, is_derived=_is_derived, derived=derived, hint=hint)


def load_vqvae(
    path: str | Path,
    *,
    config: VQVAEConfig | None = None,
    patch_nums: Sequence[int] | None = None,
    quant_resi: float = 0.5,
    using_znorm: bool = False,
    weights: str | None = None,
) -> VQVAE:
    """The VQVAE in a checkpoint: float32, in eval mode, without gradients.

    Args:
        path: the checkpoint.
        config: what it must be; None infers it, and then patch_nums is needed.
        patch_nums, quant_resi, using_znorm: see `infer_vqvae_config`.
        weights: see `read_state_dict`.
    """
    state_dict = read_state_dict(path, "vqvae", weights)
    if config is None:
        if patch_nums is None:
            raise ValueError("load_vqvae needs a config or patch_nums")
        config = infer_vqvae_config(
            state_dict, patch_nums=patch_nums, quant_resi=quant_resi, using_znorm=using_znorm, source=path
        )
    derived = {CODE_HITS: torch.zeros(len(config.patch_nums), config.vocab_size)}
    hint = _hint({name: preset.vqvae for name, preset in PRESETS.items()})
    return filled_model(VQVAE, config, state_dict, path, is_derived=_is_derived, derived=derived, hint=hint)


def read_state_dict(path: str | Path, part: Part, weights: str | None = None) -> dict[str, Tensor]:
    """One model's tensors in a checkpoint, by their official names: its weights, and lvl_1L.

    Args:
        path: a `.pth`, `.pt` or `.safetensors` file, an index of shards, or a folder with one.
        part: which model.
        weights: which of several sets of its weights, as raw and averaged ones: the keys around it with dots between
            ("." at the top of the file), the last of them, or a word of one (ema of vae_ema), in whatever case.
    Raises:
        CheckpointError: the file cannot be read or holds no such model; several, and weights names none of them or
            averaged ones that cannot be read; or tensors that cannot be weights.
    """
    path = Path(path)
    content = read_checkpoint(path)
    found = find_weights(content, ANCHORS[part], path)
    if not found:
        raise CheckpointError(_nothing_found(content, part, path))
    found += find_unnamed(content, found, _is_derived, path)
    chosen = choose_weights(found, weights, path, WEIGHTS_OPTIONS[part]).tensors
    assert chosen is not None
    tensors = {n: t.detach() for n, t in chosen.items() if not _is_derived(n) and not is_counter(t)}
    require_weights(tensors, path)
    levels = chosen.get(LEVELS)
    if levels is None:
        return tensors
    if levels.is_nested or levels.layout != torch.strided or levels.is_meta or levels.dtype not in LEVEL_DTYPES:
        raise CheckpointError(f"{path}: expected {LEVELS} to be a dense tensor of integers")
    return {**tensors, LEVELS: levels.detach()}


def _nothing_found(content: object, part: Part, path: Path) -> str:
    """What a file without such a model holds instead."""
    other: Part = "vqvae" if part == "var" else "var"
    if find_weights(content, ANCHORS[other], path):
        return f"{path} holds a {PART_NAMES[other]}, expected a {PART_NAMES[part]}; were the two files swapped?"
    names = tensor_names(content, path)
    found = f"its {len(names)} tensors are {listed(names)}" if names else "it holds no tensors"
    return (
        f"{path} does not hold a {PART_NAMES[part]}: expected tensors named {', '.join(ANCHORS[part])} and others; "
        f"{found}{_looks_like(names)}"
    )


def _hint(presets: Mapping[str, VARConfig] | Mapping[str, VQVAEConfig]) -> Callable[[Shapes], str]:
    """What shapes that misfit are instead."""

    def hint(found: Shapes) -> str:
        fitting = [name for name, config in presets.items() if found == _shapes_of_preset(config)]
        return f"\n  the preset that fits: {fitting[0]}" if fitting else _looks_like(found)

    return hint


def _shapes_of_preset(config: VARConfig | VQVAEConfig) -> Shapes:
    model = skeleton(VAR, config) if isinstance(config, VARConfig) else skeleton(VQVAE, config)
    return shapes_of(model, _is_derived)


def _is_derived(name: str) -> bool:
    """Buffers that follow from the configuration, or serve training alone: rebuilt, whatever a checkpoint holds."""
    return name.endswith((CODE_HITS, MASK, LEVELS, "attn.zero_k_bias"))


def _looks_like(names: Sequence[str] | Mapping[str, object]) -> str:
    family = relative_of(names)
    return f"\n  it looks like {family}" if family else ""
