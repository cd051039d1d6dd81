"""The configuration of an Infinity, from the names and shapes of its tensors.

As for a VAR, each size is read where several tensors tell it from one that is there, so that the rest can be compared
with what the file itself says.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path

from torch import Tensor

from nextscale.models._tensor_sizes import MAX_BLOCKS, Sizes, count_indices, require_at_most, width_of_transformer
from nextscale.models.checkpoint_file import CheckpointError
from nextscale.models.infinity.rope import RopeMode
from nextscale.models.infinity.transformer import InfinityConfig

# Names by which an Infinity is known, and from which its configuration is inferred.
ANCHORS = (
    "cfg_uncond",
    "text_norm.weight",
    "text_proj_for_sos.ca.mat_q",
    "text_proj_for_ca.0.weight",
    "text_proj_for_ca.2.weight",
    "word_embed.weight",
    "lvl_embed.weight",
    "head.weight",
)
# Without wrappers' words, of which the official `module` is one.
CHUNKED = re.compile(r"block_chunks\.(\d+)\.(\d+)\.")
SCALES = r"blocks\.\d+\.sa\.scale_mul_1H11"
PATCHIFIED_BITS = 56  # of a token, in the only release with patches


def blocks_in_chunk(names: Iterable[str]) -> int:
    """How many blocks a chunk has, by the names of tensors; 0 where they are not in chunks."""
    return max((int(match[2]) + 1 for name in names if (match := CHUNKED.match(name))), default=0)


def flat_name(name: str, in_chunk: int) -> str:
    """Of a tensor in a chunk of so many blocks, as if there were no chunks; other names do not change."""
    return CHUNKED.sub(lambda match: f"blocks.{int(match[1]) * in_chunk + int(match[2])}.", name)


def infer_config(
    state_dict: Mapping[str, Tensor],
    *,
    in_chunk: int = 0,
    patchify: bool | None = None,
    rope_mode: RopeMode = 2,
    level_each_chunk: bool = False,
    source: str | Path = "the state dict",
) -> InfinityConfig:
    """The configuration of the Infinity whose tensors these are.

    Args:
        state_dict: tensors by their official names, blocks without chunks (`flat_name`).
        in_chunk: how many blocks a chunk has, 0 without chunks.
        patchify: leaves no trace; None: where a token has 56 bits, as in the 8B releases.
        rope_mode: leaves no trace; the default is that of the releases.
        level_each_chunk: leaves no trace: whether the level embedding is added before each chunk, or before each block
            without chunks (`add_lvl_embeding_only_first_block=0`).
        source: what to call the state dict in errors.
    Raises:
        CheckpointError: a size cannot be told, or is far above any release.
    """
    sizes = Sizes(state_dict)
    widths = [
        sizes.of("word_embed.weight", 2, 0),
        *(sizes.of(name, 2, 1) for name in ("lvl_embed.weight", "head.weight", "text_proj_for_ca.2.weight")),
        *(sizes.of(f"blocks.0.{name}.weight", 2, 1) for name in ("sa.mat_qkv", "ca.mat_q", "ffn.fc1")),
    ]
    embed_dim = width_of_transformer(widths, source)
    indices = [int(match[1]) for name in state_dict if (match := re.match(r"blocks\.(\d+)\.", name))]
    if not indices:
        raise CheckpointError(f"{source} has no transformer blocks (block_chunks.0.module.0); give the whole Infinity")
    count_indices(state_dict, r"blocks\.(\d+)\.", "transformer blocks", MAX_BLOCKS, source)
    depth = _depth(max(indices) + 1, in_chunk)
    require_at_most(MAX_BLOCKS, depth, "transformer blocks", source)
    head_rows = sizes.of("head.weight", 2, 0) or sizes.of("head.bias", 1, 0)
    token_bits = sizes.of("word_embed.weight", 2, 1) or (head_rows or 2 * InfinityConfig.token_bits) // 2
    try:
        return InfinityConfig(
            depth=depth,
            embed_dim=embed_dim,
            num_heads=_num_heads(state_dict, embed_dim, source),
            hidden_dim=sizes.of("blocks.0.ffn.fc1.weight", 2, 0) or 4 * embed_dim,
            token_bits=token_bits,
            patchify=token_bits == PATCHIFIED_BITS if patchify is None else patchify,
            text_channels=sizes.of("cfg_uncond", 2, 1)
            or sizes.of("text_norm.weight", 1, 0)
            or InfinityConfig.text_channels,
            max_text=sizes.of("cfg_uncond", 2, 0) or InfinityConfig.max_text,
            pool_heads=_pool_heads(sizes, embed_dim),
            num_levels=sizes.of("lvl_embed.weight", 2, 0) or InfinityConfig.num_levels,
            level_blocks=tuple(range(0, depth, in_chunk or 1)) if level_each_chunk else (0,),
            rope_mode=rope_mode,
        )
    except ValueError as error:  # sizes that do not go together
        raise CheckpointError(f"{source}: {error}") from error


def _depth(found: int, in_chunk: int) -> int:
    """A last chunk of which blocks are missing is as long as the others."""
    return -(-found // in_chunk) * in_chunk if in_chunk else found


def _num_heads(state_dict: Mapping[str, Tensor], embed_dim: int, source: str | Path) -> int:
    scales = [tensor.numel() for name, tensor in state_dict.items() if re.fullmatch(SCALES, name)]
    if not scales:
        raise CheckpointError(
            f"{source}: no scale_mul_1H11 tells its heads; expected attention with l2 norm, as in all releases"
        )
    if scales[0] < 1 or embed_dim % scales[0]:
        raise CheckpointError(f"{source}: its width {embed_dim} is not a multiple of {scales[0]} heads")
    return scales[0]


def _pool_heads(sizes: Sizes, embed_dim: int) -> int:
    """A tensor that misfits is named when all are compared."""
    found = sizes.of("text_proj_for_sos.ca.mat_q", 3, 1)
    return found if found is not None and embed_dim % found == 0 else 1
