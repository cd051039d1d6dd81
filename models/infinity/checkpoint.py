"""Checkpoints to models: find the tensors, infer the configuration from them, load, say what misfits.

The official releases load unchanged, in one file or in shards, and so do checkpoints of trainers. Blocks lose their
chunks, the head becomes one of log-odds, and all weights float32; those that are float32 in a file stay mapped into
memory from it, others are converted one by one.
"""

from __future__ import annotations

from pathlib import Path

from torch import Tensor

from nextscale.models._unnamed_weights import find_unnamed
from nextscale.models.checkpoint_file import CheckpointError, read_checkpoint
from nextscale.models.checkpoint_model import differences, shapes_of, skeleton
from nextscale.models.checkpoint_weights import (
    as_float32,
    choose_weights,
    find_weights,
    is_counter,
    listed,
    require_stored,
    require_weights,
    tensor_names,
)
from nextscale.models.infinity.checkpoint_config import ANCHORS, blocks_in_chunk, flat_name, infer_config
from nextscale.models.infinity.presets import PRESETS
from nextscale.models.infinity.rope import RopeMode
from nextscale.models.infinity.transformer import Infinity, InfinityConfig
from nextscale.models.var.relatives import relative_of

# Buffers that follow from the configuration, or serve training alone.
DERIVED = (
    "zero_k_bias",
    "lvl_1L",
    "attn_bias_for_masking",
    "Infinity_visible_kvlen",
    "Infinity_invisible_qlen",
)
HEAD = ("head.weight", "head.bias")
WEIGHTS_OPTION = "--weights"
# What is not read here, by words that only its names have.
RELATIVES = {
    "a VAR, which takes classes": "class_emb",
    "Infinity's tokenizer": r"(quantizer\.lfq|decoder\.up)",
    "a text encoder": r"(shared|relative_attention_bias)",
}


def load_infinity(
    path: str | Path,
    *,
    config: InfinityConfig | None = None,
    patchify: bool | None = None,
    rope_mode: RopeMode = 2,
    level_each_chunk: bool = False,
    weights: str | None = None,
) -> Infinity:
    """The Infinity in a checkpoint: float32, in eval mode, without gradients.

    Args:
        path: a `.pth`, `.pt` or `.safetensors` file, an index of shards, or a folder with one.
        config: what it must be; None infers it.
        patchify, rope_mode, level_each_chunk: see `infer_config`; not with a config.
        weights: which of several sets of its weights, such as gpt_ema_fsdp of a trainer's (`choose_weights`).
    Raises:
        CheckpointError: the file cannot be read, holds no Infinity, or one that misfits; several sets of weights, and
            `weights` names none of them.
    """
    path = Path(path)
    state_dict, in_chunk = _read(path, weights)
    if config is None:
        config = infer_config(
            state_dict,
            in_chunk=in_chunk,
            patchify=patchify,
            rope_mode=rope_mode,
            level_each_chunk=level_each_chunk,
            source=path,
        )
    model = skeleton(Infinity, config, path)
    _require_shapes(state_dict, config, in_chunk, path)
    require_stored(state_dict, path)
    loaded = {}
    for name in model.state_dict():
        tensor = as_float32(state_dict.pop(name), name, path)
        loaded[name] = tensor[1::2] - tensor[::2] if name in HEAD else tensor
    model.load_state_dict(loaded, assign=True)
    return model.eval().requires_grad_(False)


def _read(path: Path, weights: str | None) -> tuple[dict[str, Tensor], int]:
    """The tensors by their names without chunks, and how many blocks a chunk has."""
    content = read_checkpoint(path)
    found = find_weights(content, ANCHORS, path)
    if not found:
        raise CheckpointError(_nothing_found(content, path))
    found += find_unnamed(content, found, _is_derived, path)
    chosen = choose_weights(found, weights, path, WEIGHTS_OPTION).tensors
    assert chosen is not None
    tensors = {n: t.detach() for n, t in chosen.items() if not _is_derived(n) and not is_counter(t)}
    require_weights(tensors, path)
    in_chunk = blocks_in_chunk(tensors)
    flat: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        new = flat_name(name, in_chunk)
        if new in flat:
            raise CheckpointError(f"{path}: two tensors are {new}, one of them called {name}; keep one of them")
        flat[new] = _as_head_scales(tensor) if new.endswith(".scale_mul_1H11") else tensor
    return flat, in_chunk


def _as_head_scales(tensor: Tensor) -> Tensor:
    """[1, 1, H, 1], which models that used the customized kernel have, as [1, H, 1, 1]."""
    return tensor.transpose(1, 2) if tensor.ndim == 4 and tensor.shape[1] == 1 else tensor


def _require_shapes(state_dict: dict[str, Tensor], config: InfinityConfig, in_chunk: int, path: Path) -> None:
    """Compare with what the configuration says, in the file's own names."""
    found = {name: tuple(tensor.shape) for name, tensor in state_dict.items()}
    expected = official_shapes(config)
    if found == expected:
        return
    fitting = [name for name, preset in PRESETS.items() if found == official_shapes(preset.config)]
    in_file = ({_chunked(name, in_chunk): shape for name, shape in shapes.items()} for shapes in (expected, found))
    raise CheckpointError(
        f"{path} does not fit {config}"
        + differences(*in_file)
        + (f"\n  the preset that fits: {fitting[0]}" if fitting else _looks_like(list(found)))
    )


def official_shapes(config: InfinityConfig) -> dict[str, tuple[int, ...]]:
    """Of the official tensors, without chunks: the head has two rows a bit."""
    shapes = shapes_of(skeleton(Infinity, config))
    return shapes | {name: (2 * shapes[name][0], *shapes[name][1:]) for name in HEAD}


def _chunked(name: str, in_chunk: int) -> str:
    first, *rest = name.split(".", 2)
    if first != "blocks" or not in_chunk:
        return name
    c, j = divmod(int(rest[0]), in_chunk)
    return f"block_chunks.{c}.module.{j}.{rest[1]}"


def _is_derived(name: str) -> bool:
    return name.endswith(DERIVED)


def _nothing_found(content: object, path: Path) -> str:
    """What a file without an Infinity holds instead."""
    names = tensor_names(content, path)
    found = f"its {len(names)} tensors are {listed(names)}" if names else "it holds no tensors"
    return (
        f"{path} does not hold an Infinity: expected tensors named {', '.join(ANCHORS)} and others; "
        f"{found}{_looks_like(names)}"
    )


def _looks_like(names: list[str]) -> str:
    family = relative_of(names, RELATIVES)
    return f"\n  it looks like {family}" if family else ""
