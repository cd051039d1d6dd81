"""The configuration of a VAR or VQVAE, from the names and shapes of its tensors.

A checkpoint may lack tensors or have others: each size is read where several tensors tell it from one that is there, so
that the rest can be compared with what the file itself says.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from nextscale.models._tensor_sizes import (
    Sizes,
    autoencoder_shape,
    count_indices,
    require_at_most,
    width_of_transformer,
)
from nextscale.models.checkpoint_file import CheckpointError
from nextscale.models.var.presets import KNOWN_PATCH_NUMS
from nextscale.models.var.transformer import VARConfig
from nextscale.models.var.vqvae import VQVAEConfig

Part = Literal["var", "vqvae"]

# Names by which a model is known, and from which its configuration is inferred.
ANCHORS: dict[Part, tuple[str, ...]] = {
    "var": (
        "word_embed.weight",
        "class_emb.weight",
        "pos_start",
        "pos_1LC",
        "lvl_embed.weight",
        "blocks.0.attn.mat_qkv.weight",
        "blocks.0.ffn.fc1.weight",
        "head.weight",
    ),
    "vqvae": (
        "quantize.embedding.weight",
        "quant_conv.weight",
        "encoder.conv_in.weight",
        "encoder.down.0.block.0.conv1.weight",
        "decoder.conv_in.weight",
    ),
}
VQVAE_PARTS = ("encoder.down", "quantize", "decoder.up", "quant_conv", "post_quant_conv")
SCALES = r"blocks\.\d+\.attn\.scale_mul_1H11"  # heads of attention with l2 norm
# Far above any release; a file that says more is refused before a model of that size is made.
MAX_DEPTH, MAX_STAGES, MAX_TOKENS = 256, 64, 16384


def infer_var_config(
    state_dict: Mapping[str, Tensor],
    *,
    patch_nums: Sequence[int] | None = None,
    num_heads: int | None = None,
    source: str | Path = "the state dict",
) -> VARConfig:
    """The configuration of the VAR whose tensors these are.

    Args:
        state_dict: tensors by their official names.
        patch_nums: needed only if the stages can be told neither from the buffer lvl_1L nor from the known lists.
        num_heads: needed only without attn_l2_norm, whose scales tell it.
        source: what to call the state dict in errors.
    """
    sizes = Sizes(state_dict)
    widths = [
        sizes.of("word_embed.weight", 2, 0),
        *(sizes.of(name, 2, 1) for name in ("class_emb.weight", "lvl_embed.weight", "head.weight")),
        *(sizes.of(name, 3, 2) for name in ("pos_start", "pos_1LC")),
        *(sizes.of(f"blocks.0.{name}.weight", 2, 1) for name in ("attn.mat_qkv", "ffn.fc1")),
    ]
    embed_dim = width_of_transformer(widths, source)
    depth = count_indices(state_dict, r"blocks\.(\d+)\.", "transformer blocks", MAX_DEPTH, source)
    if not depth:
        raise CheckpointError(f"{source} has no transformer blocks (blocks.0 and further); give the whole VAR")
    return VARConfig(
        num_classes=(sizes.of("class_emb.weight", 2, 0) or VARConfig.num_classes + 1) - 1,
        depth=depth,
        embed_dim=embed_dim,
        num_heads=_infer_num_heads(state_dict, embed_dim, num_heads, source),
        mlp_ratio=(sizes.of("blocks.0.ffn.fc1.weight", 2, 0) or VARConfig.mlp_ratio * embed_dim) / embed_dim,
        attn_l2_norm=_first(state_dict, SCALES) is not None,
        shared_aln="shared_ada_lin.1.weight" in state_dict,
        patch_nums=_infer_patch_nums(state_dict, sizes, patch_nums, source),
        vocab_size=sizes.of("head.weight", 2, 0) or sizes.of("head.bias", 1, 0) or VARConfig.vocab_size,
        z_channels=sizes.of("word_embed.weight", 2, 1) or VARConfig.z_channels,
    )


def infer_vqvae_config(
    state_dict: Mapping[str, Tensor],
    *,
    patch_nums: Sequence[int],
    quant_resi: float = 0.5,
    using_znorm: bool = False,
    source: str | Path = "the state dict",
) -> VQVAEConfig:
    """The configuration of the VQVAE whose tensors these are.

    Args:
        state_dict: tensors by their official names.
        patch_nums: the VAR's; a VQVAE serves several.
        quant_resi, using_znorm: leave no trace in the tensors; the defaults are those of the official releases.
        source: what to call the state dict in errors.
    """
    _require_parts(state_dict, source)
    sizes = Sizes(state_dict)
    ch, ch_mult, num_res_blocks = autoencoder_shape(state_dict, source, default_ch=VQVAEConfig.ch)
    share_quant_resi, num_phis = _infer_phis(state_dict, source)
    return VQVAEConfig(
        vocab_size=sizes.of("quantize.embedding.weight", 2, 0) or VQVAEConfig.vocab_size,
        z_channels=sizes.of("quantize.embedding.weight", 2, 1)
        or sizes.of("quant_conv.weight", 4, 0)
        or VQVAEConfig.z_channels,
        ch=ch,
        ch_mult=ch_mult,
        num_res_blocks=num_res_blocks,
        patch_nums=checked_patch_nums(patch_nums),
        share_quant_resi=share_quant_resi,
        quant_resi=checked_quant_resi(quant_resi) if num_phis else 0.0,
        default_qresi_counts=0 if share_quant_resi or num_phis == len(patch_nums) else num_phis,
        using_znorm=using_znorm,
        quant_conv_ks=sizes.of("quant_conv.weight", 4, 3) or VQVAEConfig.quant_conv_ks,
        using_sa=any(re.match(r"encoder\.down\.\d+\.attn\.", name) for name in state_dict),
        using_mid_sa=any(name.startswith("encoder.mid.attn_1.") for name in state_dict),
    )


def checked_patch_nums(patch_nums: Sequence[int]) -> tuple[int, ...]:
    """patch_nums as a tuple, if a model can have them.

    Raises:
        CheckpointError: they are no side lengths in ascending order, or far too many tokens.
    """
    if len(patch_nums) < 2 or min(patch_nums) < 1 or list(patch_nums) != sorted(patch_nums):
        raise CheckpointError(
            f"patch_nums must be two or more positive side lengths in ascending order, found {_joined(patch_nums)}"
        )
    require_at_most(MAX_STAGES, len(patch_nums), "stages", "patch_nums")
    require_at_most(MAX_TOKENS, sum(pn * pn for pn in patch_nums), "tokens", "patch_nums")
    return tuple(patch_nums)


def checked_quant_resi(quant_resi: float) -> float:
    """quant_resi, if it is from -1 to 1.

    Raises:
        CheckpointError: it is not.
    """
    if not abs(quant_resi) <= 1:  # nor is NaN
        raise CheckpointError(f"quant_resi must be a number from -1 to 1, found {quant_resi}")
    return quant_resi


def _infer_num_heads(
    state_dict: Mapping[str, Tensor], embed_dim: int, num_heads: int | None, source: str | Path
) -> int:
    scale = _first(state_dict, SCALES)
    found = num_heads if scale is None else scale.numel()
    if found is None:
        raise CheckpointError(
            f"{source}: without l2 norm its tensors cannot tell its heads: give --num-heads or --preset"
        )
    if num_heads not in (None, found):
        raise CheckpointError(f"{source} has {found} heads (scale_mul_1H11), --num-heads says {num_heads}")
    if found < 1 or embed_dim % found:
        raise CheckpointError(f"{source}: its width {embed_dim} is not a multiple of {found} heads; give --num-heads")
    return found


def _infer_patch_nums(
    state_dict: Mapping[str, Tensor], sizes: Sizes, given: Sequence[int] | None, source: str | Path
) -> tuple[int, ...]:
    num_stages, first = sizes.of("lvl_embed.weight", 2, 0), sizes.of("pos_start", 3, 1)
    num_tokens = sizes.of("pos_1LC", 3, 1)
    described = f"{_or_unknown(num_stages)} stages, {_or_unknown(first)} tokens in the first and "
    described += f"{_or_unknown(num_tokens)} in all"

    def fits(patch_nums: tuple[int, ...]) -> bool:
        stages = [pn * pn for pn in patch_nums]
        told = ((num_stages, len(stages)), (first, stages[0]), (num_tokens, sum(stages)))
        return all(number in (None, expected) for number, expected in told)

    if "lvl_1L" in state_dict:
        found = _stages_of_levels(state_dict["lvl_1L"], described, source)
        if given is not None and tuple(given) != found:
            raise CheckpointError(
                f"{source} has patch_nums {_joined(found)} (lvl_1L), --patch-nums says {_joined(given)}"
            )
        return found
    if given is not None:
        if not fits(patch_nums := checked_patch_nums(given)):
            raise CheckpointError(f"{source} has {described}, which patch_nums {_joined(given)} do not give")
        return patch_nums
    fitting = [known for known in KNOWN_PATCH_NUMS if fits(known)]
    # Where a tensor that would tell is missing, any will do to find that out.
    if fitting:
        return fitting[0]
    raise CheckpointError(f"{source} has {described}; its patch_nums cannot be told from that: give --patch-nums")


def _stages_of_levels(levels: Tensor, described: str, source: str | Path) -> tuple[int, ...]:
    """patch_nums of lvl_1L, each token's stage: int64 [1, L]."""
    require_at_most(MAX_TOKENS, levels.numel(), "tokens (lvl_1L)", source)
    flat = levels.flatten().long()
    counts = [int((flat == si).sum()) for si in range(min(MAX_STAGES, int(flat.max()) + 1) if len(flat) else 0)]
    found = tuple(math.isqrt(count) for count in counts)
    expected = [torch.full((side * side,), si) for si, side in enumerate(found)]
    if not expected or not torch.equal(flat, torch.cat(expected)):
        raise CheckpointError(f"{source}: lvl_1L has stages of {counts} tokens, other tensors say {described}")
    return checked_patch_nums(found)


def _require_parts(state_dict: Mapping[str, Tensor], source: str | Path) -> None:
    """Refuse a VQVAE of which a whole part is missing, as where a decoder was saved alone."""
    absent = [part for part in VQVAE_PARTS if not any(name.startswith(f"{part}.") for name in state_dict)]
    if absent:
        raise CheckpointError(
            f"{source} has no tensors of {', '.join(absent)}; expected a whole VQVAE, with its encoder, quantizer and "
            "decoder"
        )


def _infer_phis(state_dict: Mapping[str, Tensor], source: str | Path) -> tuple[int, int]:
    """share_quant_resi and the number of phis; no phi at all is quant_resi = 0, where sharing means nothing."""
    if "quantize.quant_resi.qresi.weight" in state_dict:
        return 1, 1
    if count := count_indices(state_dict, r"quantize\.quant_resi\.qresi_ls\.(\d+)\.", "phis", MAX_STAGES, source):
        return count, count
    if count := count_indices(state_dict, r"quantize\.quant_resi\.(\d+)\.", "phis", MAX_STAGES, source):
        return 0, count
    return 1, 0


def _first(state_dict: Mapping[str, Tensor], pattern: str) -> Tensor | None:
    return next((tensor for name, tensor in state_dict.items() if re.fullmatch(pattern, name)), None)


def _or_unknown(number: int | None) -> str:
    return "unknown" if number is None else str(number)


def _joined(patch_nums: Sequence[int]) -> str:
    return ",".join(map(str, patch_nums))
