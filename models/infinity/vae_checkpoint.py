"""Checkpoints of the BSQ VAE: `infinity_vae_d*.pth`, and what trainers put around such.

Tensor names may have the official code's wrapper levels (`encoder.conv_in.conv.weight`, `norm1.norm.weight`) or none
(`encoder.conv_in.weight`), as its loader takes both; unlike it, this one refuses what is missing or does not fit. Of a
file with several sets of weights, `vae` is the one that the official code runs with. All weights become float32.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from nextscale.models._tensor_sizes import Sizes, autoencoder_shape
from nextscale.models.checkpoint_file import CheckpointError, read_checkpoint
from nextscale.models.checkpoint_model import filled_model
from nextscale.models.checkpoint_weights import (
    choose_weights,
    find_weights,
    listed,
    require_weights,
    tensor_names,
)
from nextscale.models.infinity.bsq_vae import BSQVAE, BSQVAEConfig

ANCHORS = (
    "encoder.conv_in.weight",
    "encoder.conv_out.weight",
    "encoder.down.0.block.0.conv1.weight",
    "decoder.conv_in.weight",
    "decoder.up.0.block.0.conv1.weight",
)
WEIGHTS_OPTION = "--vae-weights"
OFFICIAL_WEIGHTS = "vae"
# The level that the official `Conv` and `Normalize` put before a parameter; a resampling has a conv of its own.
WRAPPER = re.compile(r"(?<!\bupsample)(?<!\bdownsample)\.(conv|norm)(?=\.(weight|bias)$)")
# Buffers of the quantizer, under both of its names, which follow from the number of bits.
MASK = re.compile(r"quantizer?\.lfq\.mask")
LATENT_PATCHES = (1, 2)


def load_bsq_vae(
    path: str | Path,
    *,
    config: BSQVAEConfig | None = None,
    token_bits: int | None = None,
    weights: str | None = None,
) -> BSQVAE:
    """The VAE in a checkpoint: float32, in eval mode, without gradients.

    Args:
        path: the checkpoint, a file, an index of shards or a folder with one.
        config: what it must be; None infers it, and then token_bits is needed.
        token_bits: bits a token of the transformer, which the width of its word_embed tells.
        weights: which of several sets of weights, as `checkpoint_weights.choose_weights` takes it; None: the official
            code's, if one is called so.
    Raises:
        CheckpointError: the file cannot be read, holds no such VAE or several, or one that does not fit.
    """
    state_dict = read_vae_state_dict(path, weights)
    if config is None:
        if token_bits is None:
            raise ValueError("load_bsq_vae needs a config or token_bits")
        config = infer_bsq_vae_config(state_dict, token_bits=token_bits, source=path)
    return filled_model(BSQVAE, config, state_dict, path)


def read_vae_state_dict(path: str | Path, weights: str | None = None) -> dict[str, Tensor]:
    """The VAE's weights in a checkpoint, by their names without wrapper levels; see `load_bsq_vae`."""
    path = Path(path)
    content = read_checkpoint(path)
    found = find_weights(content, ANCHORS, path, unwrapped)
    if not found:
        raise CheckpointError(_nothing_found(tensor_names(content, path), path))
    if weights is None and any(of_model.place == OFFICIAL_WEIGHTS for of_model in found):
        weights = OFFICIAL_WEIGHTS
    chosen = choose_weights(found, weights, path, WEIGHTS_OPTION).tensors
    assert chosen is not None
    if any(name.startswith("quantize.embedding.") for name in chosen):
        raise CheckpointError(
            f"{path} holds a VQVAE with a codebook, as VAR has; expected Infinity's BSQ VAE, which has none"
        )
    tensors = {name: tensor.detach() for name, tensor in chosen.items() if not MASK.fullmatch(name)}
    require_weights(tensors, path)
    return tensors


def unwrapped(name: str) -> str:
    """A tensor's name without the wrapper level that it may have before its last word."""
    return WRAPPER.sub("", name)


def infer_bsq_vae_config(
    state_dict: Mapping[str, Tensor], *, token_bits: int, source: str | Path = "the state dict"
) -> BSQVAEConfig:
    """The configuration of the VAE whose tensors these are.

    Args:
        state_dict: tensors by their names without wrapper levels.
        token_bits: the transformer's; the latent's channels or, where tokens are patches of 2 x 2, four times as many.
        source: what to call the state dict in errors.
    Raises:
        CheckpointError: no patch of the latent has so many bits, or the shapes are no autoencoder's.
    """
    sizes = Sizes(state_dict)
    ch, ch_mult, num_res_blocks = autoencoder_shape(state_dict, source, default_ch=BSQVAEConfig.ch)
    channels = sizes.of("encoder.conv_out.weight", 4, 0) or sizes.of("decoder.conv_in.weight", 4, 1)
    channels = channels or BSQVAEConfig.latent_channels
    patches = [patch for patch in LATENT_PATCHES if patch**2 * channels == token_bits]
    if not patches:
        raise CheckpointError(
            f"{source} has {channels} latent channels, the transformer's tokens have {token_bits} bits; give the VAE "
            "that the transformer learned from"
        )
    return BSQVAEConfig(channels, ch, ch_mult, num_res_blocks, patches[0])


def _nothing_found(names: list[str], path: Path) -> str:
    found = f"its {len(names)} tensors are {listed(names)}" if names else "it holds no tensors"
    if any(re.search(r"(^|\.)(text_proj_for_sos|block_chunks)\.", name) for name in names):
        return f"{path} holds a transformer of Infinity, expected its BSQ VAE; were the two files swapped?"
    return f"{path} does not hold Infinity's BSQ VAE: expected tensors named {', '.join(ANCHORS)} and others; {found}"
