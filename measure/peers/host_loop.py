"""Next-scale generation around a peer's engine: embeddings, sampling and f_hat in NumPy, the rest in the engine.

Runs in environments that lack torch and onnxruntime, so it imports NumPy alone.
Symbols: B images, l tokens of a stage, L tokens of all stages, C width, V codebook entries, Cvae latent channels.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from typing_extensions import Self

Floats = NDArray[np.float32]
Inputs = Mapping[str, Floats]

CFG_SCALE = 4.0
TOP_K = 900
TOP_P = 0.96


class Engine(Protocol):
    """What a peer brings: the transformer and the decoder.

    Attributes:
        versions: of the libraries that decide its speed.
        compiles: the first batch of a new size compiles, and is not to be timed.
    """

    versions: dict[str, str]
    compiles: bool

    def begin(self, inputs: Inputs) -> Inputs:
        """Start a batch of 2B rows, without keys and values yet, and tell what its stages do not read.

        Args:
            inputs: of the class or the text: here the class "embedding" [2B, C].
        """

    def stage(self, inputs: Inputs) -> Floats:
        """The next stage, to logits [2B, l, V].

        Args:
            inputs: its own: here "x", its tokens, embedded, [2B, l, C].
        """

    def decode(self, f_hat: Floats) -> Floats:
        """f_hat [B, Cvae, H, W] to pictures [B, 3, H, W] in [-1, 1]."""


class Pictures(NamedTuple):
    """token_maps int64 [B, L], f_hat float32 [B, Cvae, H, W], images uint8 [B, H, W, 3]."""

    token_maps: NDArray[np.int64]
    f_hat: Floats
    images: NDArray[np.uint8]


@dataclass(frozen=True)
class HostArrays:
    """A dataclass of arrays that is kept in an .npz file."""

    @classmethod
    def load(cls, path: Path) -> Self:
        with np.load(path) as arrays:
            return cls(**{item.name: arrays[item.name] for item in fields(cls)})

    def save(self, path: Path) -> None:
        arrays: dict[str, Any] = {item.name: getattr(self, item.name) for item in fields(self)}
        np.savez(path, **arrays)


@dataclass(frozen=True)
class HostWeights(HostArrays):
    """The small tensors that the loop around the engine needs.

    Attributes:
        patch_nums: int64 [S].
        class_embedding: [num_classes + 1, C]; the last row is the null class.
        first: what stage 0 adds to the class embedding, [l, C].
        position: of each token, [L, C].
        word_weight, word_bias: latent to width, [Cvae, C] and [C].
        codebook: [V, Cvae].
        up: upsampling, [L, H*W], a stage's rows for its tokens.
        down: downsampling, [L - l of stage 0, H*W].
        phi_weight, phi_bias: each stage's phi as one 3x3 convolution, [S, 9, Cvae, Cvae] (in, out) and [S, Cvae].
    """

    patch_nums: NDArray[np.int64]
    class_embedding: Floats
    first: Floats
    position: Floats
    word_weight: Floats
    word_bias: Floats
    codebook: Floats
    up: Floats
    down: Floats
    phi_weight: Floats
    phi_bias: Floats


def generate(
    engine: Engine,
    weights: HostWeights,
    batch: int,
    seed: int,
    *,
    cfg_scale: float = CFG_SCALE,
    top_k: int = TOP_K,
    top_p: float = TOP_P,
    forced: NDArray[np.int64] | None = None,
    on_logits: Callable[[Floats], object] = lambda logits: None,
) -> Pictures:
    """Generate a batch of random classes; labels and uniforms are those of `random_inputs`.

    Args:
        forced: tokens [B, L] to go on with instead of those sampled.
        on_logits: told the guided logits of each stage, [B, l, V].
    """
    labels, uniforms = random_inputs(weights, batch, seed)
    null = np.full_like(labels, len(weights.class_embedding) - 1)
    embedding = weights.class_embedding[np.concatenate((labels, null))]
    engine.begin({"embedding": embedding})
    side, channels = int(weights.patch_nums[-1]), weights.codebook.shape[1]
    f_hat = np.zeros((batch, side, side, channels), np.float32)
    token_maps = []
    begin, last = 0, len(weights.patch_nums) - 1
    for si, pn in enumerate(weights.patch_nums):
        stage = slice(begin, begin + int(pn * pn))
        if si == 0:
            x = embedding[:, None] + weights.first
        else:
            rows = slice(stage.start - len(weights.first), stage.stop - len(weights.first))
            latent = weights.down[rows] @ f_hat.reshape(batch, side * side, channels)
            x = np.tile(latent @ weights.word_weight + weights.word_bias, (2, 1, 1))
        logits = engine.stage({"x": x + weights.position[stage]})
        t = np.float32(cfg_scale * si / last)
        guided = (1 + t) * logits[:batch] - t * logits[batch:]
        on_logits(guided)
        if forced is None:
            tokens = sample(guided.reshape(-1, guided.shape[-1]), uniforms[:, stage].reshape(-1), top_k, top_p)
            token_map = tokens.reshape(batch, -1)
        else:
            token_map = forced[:, stage]
        h = weights.up[stage].T @ weights.codebook[token_map]
        f_hat += _phi(h.reshape(f_hat.shape), weights.phi_weight[si], weights.phi_bias[si])
        token_maps.append(token_map)
        begin = stage.stop
    latent = np.ascontiguousarray(f_hat.transpose(0, 3, 1, 2))
    return Pictures(np.concatenate(token_maps, axis=1), latent, decoded(engine, latent))


def decoded(engine: Engine, latent: Floats) -> NDArray[np.uint8]:
    """Images uint8 [B, H, W, 3] of a latent [B, Cvae, h, w]."""
    pictures = engine.decode(latent)
    return np.rint(np.clip((pictures + 1) * 127.5, 0, 255)).astype(np.uint8).transpose(0, 2, 3, 1)


def random_inputs(weights: HostWeights, batch: int, seed: int) -> tuple[NDArray[np.int64], Floats]:
    """Labels int64 [B], as `nextscale bench` draws them, and uniforms [B, L] in [0, 1)."""
    labels = np.random.default_rng(seed).integers(len(weights.class_embedding) - 1, size=batch)
    return labels, np.random.default_rng([seed, 1]).random((batch, len(weights.position)), np.float32)


def sample(logits: Floats, uniforms: Floats, top_k: int, top_p: float) -> NDArray[np.int64]:
    """One token a row, by the rule of `nextscale.models.var.reference.sample`.

    Args:
        logits: [N, V].
        uniforms: [N], in [0, 1).
        top_k: how many entries to keep; 0 keeps all.
        top_p: how much probability to keep; 0 keeps all.
    """
    vocab_size = logits.shape[1]
    kept = min(top_k or vocab_size, vocab_size)
    largest = logits.max(1, keepdims=True)
    descending = np.sort(np.partition(logits, vocab_size - kept, axis=1)[:, vocab_size - kept :], axis=1)[:, ::-1]
    threshold = descending[:, -1]
    if top_p:
        mass = np.exp(descending - largest)
        before = np.cumsum(mass, axis=1) - mass
        count = (before < top_p * mass.sum(1, keepdims=True)).sum(1)
        threshold = descending[np.arange(len(logits)), count - 1]
    probabilities = np.where(logits >= threshold[:, None], np.exp(logits - largest), np.float32(0))
    cumulative = np.cumsum(probabilities, axis=1, dtype=np.float64)
    return (cumulative > uniforms[:, None].astype(np.float64) * cumulative[:, -1:]).argmax(1)


def _phi(h: Floats, weight: Floats, bias: Floats) -> Floats:
    """A 3x3 convolution of [B, H, W, Cvae], padded with zeros: nine shifted matrix products."""
    _, height, width, _ = h.shape
    padded = np.pad(h, ((0, 0), (1, 1), (1, 1), (0, 0)))
    out = np.broadcast_to(bias, h.shape).copy()
    for tap in range(9):
        y, x = divmod(tap, 3)
        out += padded[:, y : y + height, x : x + width] @ weight[tap]
    return out
