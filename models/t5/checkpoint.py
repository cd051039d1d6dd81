"""T5's encoder from a folder as Hugging Face lays it out: its configuration, its weights, and what misfits."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from nextscale.models.checkpoint_file import CheckpointError, first_line, read_checkpoint
from nextscale.models.checkpoint_weights import as_float32, listed, require_stored, require_weights
from nextscale.models.t5.encoder import NORM_EPS, T5Config, T5Encoder
from nextscale.runtime._regular_file import require_regular
from nextscale.runtime._wording import shown_value

CONFIG_FILE = "config.json"
# In the order in which they are looked for: releases have the same weights in several forms.
WEIGHT_FILES = (
    "model.safetensors.index.json",
    "model.safetensors",
    "pytorch_model.bin.index.json",
    "pytorch_model.bin",
)
MODEL_TYPES = ("t5", "mt5")
GATED = ("gated-gelu", "gated-gelu_new")
# config.json's names of the sizes.
SIZES = {
    "vocab_size": "vocab_size",
    "embed_dim": "d_model",
    "depth": "num_layers",
    "num_heads": "num_heads",
    "head_dim": "d_kv",
    "hidden_dim": "d_ff",
    "num_buckets": "relative_attention_num_buckets",
    "max_distance": "relative_attention_max_distance",
}
# The first configurations did not say it.
DEFAULT_MAX_DISTANCE = 128
# Far above any release.
LARGEST_SIZE, LARGEST_DEPTH = 2**20, 256
MAX_CONFIG = 2**20  # bytes
TABLE, TABLE_ALIAS = "shared.weight", "encoder.embed_tokens.weight"
DECODER = ("decoder.", "lm_head.")


def load_t5(folder: str | Path) -> T5Encoder:
    """The encoder in a folder with config.json and the weights, in eval mode, without gradients.

    Weights keep the type in which they are stored and stay in the mapped file until they are read, so that XL takes no
    4.9 GB. What a whole T5 has beside the encoder is left out.

    Raises:
        CheckpointError: a file is missing or cannot be read; another architecture; tensors that are missing, unexpected
            or of other shapes than the configuration says; values that are not finite in float32.
    """
    folder = Path(folder)
    if folder.is_file():
        raise CheckpointError(f"{folder} is a file; give the folder that has it and its {CONFIG_FILE}")
    config = read_config(folder / CONFIG_FILE)
    path = _weight_file(folder)
    state = _encoder_tensors(read_checkpoint(path), path)
    with torch.device("meta"):
        model = T5Encoder(config)
    _require_shapes(state, model.state_dict(), path)
    require_weights(state, path)
    require_stored(state, path)
    for name, tensor in state.items():
        as_float32(tensor, name, path)
    model.load_state_dict(state, assign=True)
    return model.eval().requires_grad_(False)


def read_config(path: Path) -> T5Config:
    """The configuration that a config.json describes.

    Raises:
        CheckpointError: no such file, no JSON object, another architecture, or sizes that make no encoder.
    """
    document = _read_json(path)
    kind, form = document.get("model_type"), document.get("feed_forward_proj", "relu")
    if kind not in MODEL_TYPES:
        raise CheckpointError(f'{path}: expected "model_type" {" or ".join(MODEL_TYPES)}, found {shown_value(kind)}')
    if form not in GATED:
        raise CheckpointError(
            f'{path}: expected "feed_forward_proj" gated-gelu, found {shown_value(form)}: T5 1.0 has no gates; '
            "give a T5 v1.1, Flan-T5 or ByT5"
        )
    eps = document.get("layer_norm_epsilon", NORM_EPS)
    if eps != NORM_EPS:
        raise CheckpointError(f'{path}: expected "layer_norm_epsilon" {NORM_EPS}, found {shown_value(eps)}')
    document.setdefault(SIZES["max_distance"], DEFAULT_MAX_DISTANCE)
    sizes: dict[str, int] = {}
    for ours, theirs in SIZES.items():
        size, largest = document.get(theirs), LARGEST_DEPTH if ours == "depth" else LARGEST_SIZE
        if type(size) is not int or not 0 < size <= largest:
            raise CheckpointError(f'{path}: expected "{theirs}" 1 to {largest}, found {shown_value(size)}')
        sizes[ours] = size
    try:
        return T5Config(**sizes)
    except ValueError as error:
        raise CheckpointError(f"{path}: {error}") from None


def _read_json(path: Path) -> dict[str, Any]:
    require_regular(path, CheckpointError)
    try:
        with path.open("rb") as file:
            text = file.read(MAX_CONFIG + 1)
        document = json.loads(text) if len(text) <= MAX_CONFIG else None
    except FileNotFoundError:
        raise CheckpointError(f"{path} does not exist; give a folder as Hugging Face lays it out") from None
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} is not a JSON document ({first_line(error)}); download it again") from None
    if not isinstance(document, dict):
        raise CheckpointError(f"{path}: expected an object of at most {MAX_CONFIG} bytes, a model's configuration")
    return document


def _weight_file(folder: Path) -> Path:
    for name in WEIGHT_FILES:
        if (folder / name).exists():
            return folder / name
    raise CheckpointError(f"{folder} has no weights; expected {', '.join(WEIGHT_FILES[:-1])} or {WEIGHT_FILES[-1]}")


def _encoder_tensors(content: object, path: Path) -> dict[str, Tensor]:
    """The tensors that are not the decoder's, by their official names; the table has one name of its two.

    Raises:
        CheckpointError: no state dict, or the two names of the table stand for unequal tensors.
    """
    if not isinstance(content, Mapping):
        raise CheckpointError(f"{path}: expected tensors by name, found {type(content).__name__}")
    state = {str(name): tensor for name, tensor in content.items() if not str(name).startswith(DECODER)}
    foreign = [name for name, tensor in state.items() if not isinstance(tensor, Tensor)]
    if foreign:
        raise CheckpointError(f"{path}: expected tensors alone, found {listed(foreign)}; save the state dict alone")
    alias = state.pop(TABLE_ALIAS, None)
    if alias is not None and not torch.equal(state.setdefault(TABLE, alias), alias):
        raise CheckpointError(f"{path}: {TABLE} and {TABLE_ALIAS} differ; expected one table")
    return state


def _require_shapes(state: Mapping[str, Tensor], expected: Mapping[str, Tensor], path: Path) -> None:
    missing = [name for name in expected if name not in state]
    unexpected = [name for name in state if name not in expected]
    misshapen = [
        f"{name} (expected {list(tensor.shape)}, found {list(state[name].shape)})"
        for name, tensor in expected.items()
        if name in state and state[name].shape != tensor.shape
    ]
    kinds = {"missing": missing, "unexpected": unexpected, "misshapen": misshapen}
    found = [f"{len(names)} {kind}: {listed(names)}" for kind, names in kinds.items() if names]
    if found:
        raise CheckpointError(f"{path} does not fit its {CONFIG_FILE}: {'; '.join(found)}")
