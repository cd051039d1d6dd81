"""Next-scale generation of bits around a peer's engine, as `host_loop` for VAR: NumPy alone.

Texts are random features of one length, so that no row is masked. Symbols: B images, 2B rows (with the text, then
without), l tokens of a stage, L tokens of all stages, C width, D bits of a token, N positions of the latent, Lt tokens
of text, Ct its channels, d width of a head.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from nextscale.measure.peers.host_loop import Engine, Floats, HostArrays, Pictures, decoded

CFG_SCALE = 3.0
TAU = 0.5
TOP_P = 0.97
TEXT_TOKENS = 64


@dataclass(frozen=True)
class InfinityHostWeights(HostArrays):
    """The small tensors that the loop around the engine needs, at one size.

    Attributes:
        stage_tokens: int64 [S].
        latent_size: int64 [2].
        cfg_uncond: what the model learned for no text, [tokens, Ct].
        level: the level embedding of each stage, [S, C].
        word_weight, word_bias: bits to width, [D, C] and [C].
        cos, sin: RoPE of each token, [L, d/2].
        up: from each stage's tokens to the latent, [L, N], a stage's rows for its tokens.
        down: the other way, [L - l of stage 0, N].
    """

    stage_tokens: NDArray[np.int64]
    latent_size: NDArray[np.int64]
    cfg_uncond: Floats
    level: Floats
    word_weight: Floats
    word_bias: Floats
    cos: Floats
    sin: Floats
    up: Floats
    down: Floats


def generate(
    engine: Engine,
    weights: InfinityHostWeights,
    batch: int,
    seed: int,
    *,
    text_tokens: int = TEXT_TOKENS,
    cfg_scale: float = CFG_SCALE,
    tau: float = TAU,
    top_p: float = TOP_P,
    forced: NDArray[np.int64] | None = None,
    on_logits: Callable[[Floats], object] = lambda logits: None,
) -> Pictures:
    """Generate a batch of random texts; features and uniforms are those of `random_inputs`.

    Args:
        text_tokens: Lt.
        forced: bits [B, L, D] to go on with instead of those sampled.
        on_logits: told the guided log-odds of each stage, [B, l, D].
    """
    features, uniforms = random_inputs(weights, batch, seed, text_tokens)
    learned = np.broadcast_to(weights.cfg_uncond[:text_tokens], features.shape)
    made = engine.begin({"features": np.concatenate((features, learned))})
    positions, channels = weights.up.shape[1], len(weights.word_weight)
    f_hat = np.zeros((batch, positions, channels), np.float32)
    taken, begin, f32 = [], 0, np.float32
    for si, length in enumerate(weights.stage_tokens):
        stage = slice(begin, begin + int(length))
        if si == 0:
            x = made["start"]
        else:
            first = int(weights.stage_tokens[0])
            tokens = weights.down[stage.start - first : stage.stop - first] @ f_hat
            x = np.tile(tokens @ weights.word_weight + weights.word_bias, (2, 1, 1))
        inputs = {"x": x, "level": weights.level[si], "cos": weights.cos[stage], "sin": weights.sin[stage]}
        log_odds = engine.stage(inputs)
        guided: Floats = (log_odds[:batch] * f32(cfg_scale) + log_odds[batch:] * f32(1 - cfg_scale)) / f32(tau)
        on_logits(guided)
        bits = sample_bits(guided, uniforms[:, stage], top_p) if forced is None else forced[:, stage]
        f_hat += weights.up[stage].T @ ((2 * bits - 1).astype(f32) * f32(channels**-0.5))
        taken.append(bits)
        begin = stage.stop
    height, width = map(int, weights.latent_size)
    latent = np.ascontiguousarray(f_hat.transpose(0, 2, 1)).reshape(batch, channels, height, width)
    return Pictures(np.concatenate(taken, axis=1), latent, decoded(engine, latent))


def random_inputs(weights: InfinityHostWeights, batch: int, seed: int, text_tokens: int) -> tuple[Floats, Floats]:
    """Features [B, Lt, Ct], as `nextscale bench` draws them, and uniforms [B, L, D] in [0, 1)."""
    shape = (batch, text_tokens, weights.cfg_uncond.shape[1])
    features = np.random.default_rng(seed).standard_normal(shape, np.float32)
    bits = (batch, len(weights.up), len(weights.word_weight))
    return features, np.random.default_rng([seed, 1]).random(bits, np.float32)


def sample_bits(log_odds: Floats, uniforms: Floats, top_p: float) -> NDArray[np.int64]:
    """One bit each, by the rule of `nextscale.models.infinity.reference.sample_bits`; all of one shape."""
    exact = log_odds.astype(np.float64)
    rarer = 1 / (1 + np.exp(np.abs(exact)))
    of_zero = np.where(exact > 0, rarer, 1 - rarer)
    bits = uniforms.astype(np.float64) >= of_zero
    if top_p:
        bits = np.where(rarer <= 1 - top_p, exact >= 0, bits)
    return bits.astype(np.int64)
