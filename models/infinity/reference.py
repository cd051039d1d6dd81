"""Next-scale generation of bits in torch: what the ONNX graphs must reproduce, written to be read.

Symbols: B images, L tokens of all stages, l tokens of a stage, S stages, D bits of a token, Lt tokens of text, Ct its
channels, c latent channels.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from nextscale.models.infinity.multi_scale_bits import contribution, next_input
from nextscale.models.infinity.schedules import Size
from nextscale.models.infinity.transformer import Infinity
from nextscale.models.transformer_parts import KVCache


@dataclass(frozen=True)
class Generation:
    """What `generate` made.

    Attributes:
        bits: int64 [B, L, D].
        guided_log_odds: a float32 [B, l, D] for each stage, divided by tau, before top_p.
        f_hat: float32 [B, c, H, W], what the VAE decodes.
    """

    bits: Tensor
    guided_log_odds: list[Tensor]
    f_hat: Tensor


def sample_bits(log_odds: Tensor, uniforms: Tensor, top_p: float = 0.0) -> Tensor:
    """One bit each: 1 where u >= p0, which is codebook order, 0 before 1.

    Where the rarer value's probability is at most 1 - top_p, the other is taken whatever u is, and of two equally
    probable ones 1; top_p = 0 turns that off.

    Args:
        log_odds: float32, of 1 against 0: p0 = sigmoid(-log_odds).
        uniforms: float of the same shape, in [0, 1).
        top_p: in [0, 1].
    Returns:
        int64 of the same shape.
    Raises:
        ValueError: top_p is out of its range.
    """
    if not 0 <= top_p <= 1:
        raise ValueError(f"top_p must be in [0, 1], found {top_p}")
    exact = log_odds.double()
    bits = uniforms.double() >= (-exact).sigmoid()
    if top_p:
        bits = torch.where((-exact.abs()).sigmoid() <= 1 - top_p, exact >= 0, bits)
    return bits.long()


@torch.no_grad()
def generate(
    infinity: Infinity,
    size: Size,
    features: Tensor,
    uniforms: Tensor,
    forced_bits: Tensor | None = None,
    *,
    text_mask: Tensor | None = None,
    negative_features: Tensor | None = None,
    negative_mask: Tensor | None = None,
    cfg_scale: float | Sequence[float] = 3.0,
    tau: float | Sequence[float] = 1.0,
    top_p: float = 0.0,
) -> Generation:
    """Generate stage after stage, with K/V caches and classifier-free guidance.

    Args:
        infinity: the transformer.
        size: of the pictures.
        features: float32 [B, Lt, Ct], what the text encoder gives; rows of shorter texts end in anything finite.
        uniforms: float32 [B, L, D], in [0, 1): one a bit, stages in order, row-major.
        forced_bits: int64 [B, L, D]; -1 is sampled, 0 and 1 are taken as they are. None samples all.
        text_mask: int64 [B, Lt], 1 of a token, 0 behind the text's end; None: all are tokens.
        negative_features: float32 [B, Ln, Ct], of the texts to lead away from; None: as many rows of cfg_uncond as the
            text has tokens.
        negative_mask: int64 [B, Ln].
        cfg_scale: guidance, cfg_scale c + (1 - cfg_scale) u; one number, or one a stage.
        tau: temperature; one number, or one a stage.
        top_p: as in `sample_bits`.
    Raises:
        ValueError: the size is not one of the model's, a tensor or a list has another shape, or a text has no token or
            too many.
    """
    batch, config = len(features), infinity.config
    if size.patch != config.patch:
        raise ValueError(f"the size has patches of {size.patch}, the model's tokens have {config.patch}")
    if size.num_stages > config.num_levels:
        raise ValueError(f"the size has {size.num_stages} stages, the model can make at most {config.num_levels}")
    cfg_scales, taus = (_by_stage(value, size, name) for value, name in ((cfg_scale, "cfg_scale"), (tau, "tau")))
    text = infinity.read_text(*guided_text(infinity, features, text_mask, negative_features, negative_mask))
    caches = [KVCache() for _ in range(config.depth)]

    def guided_log_odds(inputs: Tensor | None, si: int) -> Tensor:
        both = None if inputs is None else inputs.repeat(2, 1, 1)
        log_odds = infinity.stage_log_odds(infinity.embed(text, both), text, size, si, caches)
        cond, uncond = log_odds.split(batch)
        return (cfg_scales[si] * cond + (1 - cfg_scales[si]) * uncond) / taus[si]

    shape = (batch, size.num_tokens, config.token_bits)
    return run_stages(guided_log_odds, size, shape, uniforms, forced_bits, top_p=top_p)


def guided_text(
    infinity: Infinity,
    features: Tensor,
    text_mask: Tensor | None = None,
    negative_features: Tensor | None = None,
    negative_mask: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Both rows' texts in one tensor, the shorter ones padded: features float32 [2B, Lt, Ct] and mask int64 [2B, Lt].

    Args are those of `generate`.
    """
    config = infinity.config
    text_mask = _mask(features, text_mask, "text")
    if negative_features is None:
        if features.shape[1] > config.max_text:
            raise ValueError(f"a text has at most {config.max_text} tokens, found {features.shape[1]}")
        negative_features = infinity.cfg_uncond[: features.shape[1]].expand_as(features)
        negative_mask = text_mask
    negative_mask = _mask(negative_features, negative_mask, "negative")
    longest = max(features.shape[1], negative_features.shape[1])

    def padded(tensor: Tensor) -> Tensor:
        missing = tensor.new_zeros(len(tensor), longest - tensor.shape[1], *tensor.shape[2:])
        return torch.cat((tensor, missing), dim=1)

    both = torch.cat((padded(features), padded(negative_features)))
    return both, torch.cat((padded(text_mask), padded(negative_mask)))


@torch.no_grad()
def run_stages(
    guided_log_odds: Callable[[Tensor | None, int], Tensor],
    size: Size,
    shape: tuple[int, int, int],
    uniforms: Tensor,
    forced_bits: Tensor | None,
    *,
    top_p: float,
) -> Generation:
    """The next-scale loop: sample a stage from its log-odds, accumulate it, and make the next one's inputs.

    Args:
        guided_log_odds: a stage's inputs float32 [B, l, D] (None at stage 0) and its index to [B, l, D]; called once a
            stage, in order.
        shape: B, L, D.
        size, uniforms, forced_bits, top_p: as in `generate`.
    Raises:
        ValueError: uniforms or forced_bits have another shape.
    """
    for name, tensor in (("uniforms", uniforms), ("forced_bits", forced_bits)):
        if tensor is not None and tensor.shape != shape:
            raise ValueError(f"{name} must be {list(shape)}, found {list(tensor.shape)}")
    f_hat = uniforms.new_zeros(shape[0], shape[2] // size.patch**2, *size.latent_size)
    taken, log_odds = [], []
    for si, (begin, length) in enumerate(zip(size.stage_begins, size.stage_tokens, strict=True)):
        stage = slice(begin, begin + length)
        guided = guided_log_odds(next_input(f_hat, size, si) if si else None, si)
        bits = sample_bits(guided, uniforms[:, stage], top_p)
        if forced_bits is not None:
            forced = forced_bits[:, stage]
            bits = torch.where(forced < 0, bits, forced)
        f_hat = f_hat + contribution(bits, size, si)
        taken.append(bits)
        log_odds.append(guided)
    return Generation(torch.cat(taken, dim=1), log_odds, f_hat)


def _by_stage(value: float | Sequence[float], size: Size, name: str) -> Sequence[float]:
    if not isinstance(value, Sequence):
        return [value] * size.num_stages
    if len(value) != size.num_stages:
        raise ValueError(f"{name} must be one number or one for each of {size.num_stages} stages, found {len(value)}")
    return value


def _mask(features: Tensor, mask: Tensor | None, name: str) -> Tensor:
    """The mask of texts, checked; all ones if there is none."""
    shape = features.shape[:2]
    if mask is None:
        mask = torch.ones(shape, dtype=torch.int64)
    if mask.shape != shape:
        raise ValueError(f"{name}_mask must be {list(shape)}, found {list(mask.shape)}")
    if not mask.bool().any(1).all():
        raise ValueError(f"a {name} text of {name}_mask has no token; expected at least its end")
    return mask
