"""How far a bundle's predictions are from full precision, token for token.

Sampled pictures of two bundles soon differ in everything, since one token that changes changes all after it. So the
reference samples token maps, every bundle is fed those (teacher forcing), and the distributions over the codebook are
compared place by place. Where tokens are bits, a token's KL is the sum of its bits', and it agrees as far as they do.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from nextscale.calib_data.subjects import Subjects
from nextscale.runtime._errors import NextscaleError
from nextscale.runtime._manifest import Manifest
from nextscale.runtime._next_scale_loop import Generator, StageResult

Name = TypeVar("Name", bound=Hashable)
_ROWS = 16  # distributions at a time: all bundles' logarithms of them stay in the cache

# What a KL is worth: the demo model's figures in docs/results.md.
KL_IN_WORDS = (
    "Is that KL good? 0 is full precision. Photographs of the demo at 0.006 nats a token are no farther from full "
    "precision's than those of another seed; FID-E, 58 in full precision, is 5 higher at 0.08, and 33 higher at 1.8."
)


@dataclass(frozen=True)
class Agreement:
    """One bundle against the reference.

    Attributes:
        kl: mean KL(reference || bundle) of the guided distributions, nats per token.
        kl_stderr: its standard error over images; NaN of one image.
        top1: share of the tokens whose likeliest entry is the reference's; of bits, share of the bits.
        stage_kl, stage_top1: the same for each stage, float64 [S].
        images: number of images.
    """

    kl: float
    kl_stderr: float
    top1: float
    stage_kl: NDArray[np.float64]
    stage_top1: NDArray[np.float64]
    images: int


@dataclass(frozen=True)
class ByImage:
    """The same before it is summarized: sums over a stage's tokens.

    Attributes:
        divergence: float64 [N, S], of the KL.
        agreeing: float64 [N, S], of equal likeliest entries, or of the share of equal bits.
        sizes: float64 [S], tokens of each stage; [N, S] of a bundle of several sizes, zeros behind an image's last.
    """

    divergence: NDArray[np.float64]
    agreeing: NDArray[np.float64]
    sizes: NDArray[np.float64]

    @property
    def kl(self) -> NDArray[np.float64]:
        """Nats per token of each image: float64 [N]."""
        kl: NDArray[np.float64] = self.divergence.sum(1) / self.sizes.sum(-1)
        return kl

    @property
    def top1(self) -> NDArray[np.float64]:
        """The share of each image's tokens whose likeliest entry is the reference's: float64 [N]."""
        top1: NDArray[np.float64] = self.agreeing.sum(1) / self.sizes.sum(-1)
        return top1


@dataclass(frozen=True)
class Sampled:
    """Images that the reference sampled, at a time.

    Attributes:
        images: which of all.
        settings: of their request.
        tokens: int64 [B, L], or [B, L, d] where tokens are bits.
        logits: of each stage, float32 [B, l, V] or [B, l, d].
    """

    images: slice
    settings: Mapping[str, Any]
    tokens: NDArray[np.int64]
    logits: Sequence[NDArray[np.float32]]


def evaluation_labels(num_classes: int, images: int, seed: int) -> NDArray[np.int64]:
    """N labels spread evenly over the classes, in an order drawn from the seed: int64 [N]."""
    return np.resize(np.random.default_rng([seed, 1]).permutation(num_classes), images).astype(np.int64)


def teacher_forced(
    reference: Generator,
    candidates: Mapping[str, Generator],
    *,
    images: int = 256,
    seed: int = 1,
    cfg_scale: float | None = None,
    batch_size: int = 4,
    subjects: Subjects | None = None,
    on_images: Callable[[int], object] = lambda done: None,
) -> dict[str, Agreement]:
    """Compare bundles of one model with the reference on token maps that the reference samples.

    Args:
        reference: the full-precision bundle.
        candidates: bundles of the same model, by name.
        images: N, spread over the classes.
        seed: of the labels and of the sampled token maps; calibration uses 0 by default, so these images are new to it.
        cfg_scale: guidance, for sampling and for the compared distributions; None is the reference's default.
        batch_size: images at a time.
        subjects: what the images are of, where the model takes no classes.
        on_images: called with the number of images finished.
    Raises:
        NextscaleError: a candidate is of another model.
    """
    found = teacher_forced_pairs(
        reference,
        candidates,
        {name: (None, name) for name in candidates},
        images=images,
        seed=seed,
        cfg_scale=cfg_scale,
        batch_size=batch_size,
        subjects=subjects,
        on_images=on_images,
    )
    return {name: summarize(by_image.divergence, by_image.agreeing, by_image.sizes) for name, by_image in found.items()}


def teacher_forced_pairs(
    reference: Generator,
    candidates: Mapping[str, Generator],
    pairs: Mapping[str, tuple[str | None, str]],
    *,
    images: int | range,
    seed: int = 1,
    cfg_scale: float | None = None,
    batch_size: int = 4,
    subjects: Subjects | None = None,
    on_images: Callable[[int], object] = lambda done: None,
) -> dict[str, ByImage]:
    """Compare any two of some bundles with each other, all of them on token maps that the reference samples.

    Args:
        reference: the full-precision bundle.
        candidates: bundles of the same model, by name.
        pairs: by a name for the result, p and q of KL(p || q): candidates, or None for the reference.
        images: N, or which of them: the same images have the same labels and token maps in any range.
        seed, cfg_scale, batch_size, subjects, on_images: as for `teacher_forced`.
    Returns:
        the figures of each pair before they are summarized; all are of the same images.
    Raises:
        NextscaleError: a candidate is of another model.
    """
    manifest = reference.bundle.manifest
    for name, candidate in candidates.items():
        if candidate.bundle.manifest.models != manifest.models:
            raise NextscaleError(f"{name}: not the model of {reference.bundle.path}; compare bundles of one model")
    wanted = images if isinstance(images, range) else range(images)
    if subjects is None:
        subjects = Subjects.of_classes(evaluation_labels(manifest.model.num_classes, wanted.stop, seed))
    sampled = sample(reference, subjects, wanted, seed=seed, cfg_scale=cfg_scale, batch_size=batch_size)
    sizes = _tokens_of_stages(manifest, subjects)
    return _compare(sampled, candidates, pairs, sizes, wanted, on_images)


def sample(
    reference: Generator,
    subjects: Subjects,
    images: range,
    *,
    seed: int = 1,
    cfg_scale: float | None = None,
    batch_size: int = 4,
    **filters: Any,
) -> Iterator[Sampled]:
    """What the reference samples, batch after batch; arguments are as for `teacher_forced_pairs`.

    Args:
        filters: further settings of a request that decide how is sampled, such as tau and top_p.
    """
    manifest = reference.bundle.manifest
    for batch in subjects[images.start : images.stop].batches(batch_size):
        first, end = images.start + batch.start, images.start + batch.stop
        settings = subjects[first:end].settings(manifest)
        settings |= {"first_image": first, "seed": seed, "cfg_scale": cfg_scale, **filters}
        stages = list(_stream(settings, reference, None))
        tokens = np.concatenate([stage.tokens for stage in stages], axis=1)
        yield Sampled(slice(first, end), settings, tokens, [stage.outputs["logits"] for stage in stages])


def agreement(
    sampled: Iterable[Sampled],
    candidate: Generator,
    subjects: Subjects,
    on_images: Callable[[int], object] = lambda done: None,
) -> Agreement:
    """Compare one bundle with what was sampled of all subjects, which needs no session of the reference any more."""
    sizes, wanted = _tokens_of_stages(candidate.bundle.manifest, subjects), range(len(subjects))
    found = _compare(sampled, {"": candidate}, {"": (None, "")}, sizes, wanted, on_images)[""]
    return summarize(found.divergence, found.agreeing, found.sizes)


def _compare(
    sampled: Iterable[Sampled],
    candidates: Mapping[str, Generator],
    pairs: Mapping[str, tuple[str | None, str]],
    sizes: NDArray[np.float64],
    wanted: range,
    on_images: Callable[[int], object],
) -> dict[str, ByImage]:
    """`teacher_forced_pairs` of what was sampled; sizes are those of all subjects."""
    # [pair][image][stage]
    divergence: dict[str, list[NDArray[np.float64]]] = {name: [] for name in pairs}
    agreeing: dict[str, list[NDArray[np.float64]]] = {name: [] for name in pairs}
    for batch in sampled:
        tokens, num_stages = batch.tokens, len(batch.logits)
        logits: dict[str | None, Sequence[NDArray[np.float32]]] = {None: batch.logits}
        for name, candidate in candidates.items():
            logits[name] = [stage.outputs["logits"] for stage in _stream(batch.settings, candidate, tokens)]
        likeliest = {name: [_likeliest(stage, tokens.ndim) for stage in found] for name, found in logits.items()}
        by_stage = [
            _divergences({name: found[stage] for name, found in logits.items()}, list(pairs.values()), tokens.ndim)
            for stage in range(num_stages)
        ]
        further = ((0, 0), (0, sizes.shape[-1] - num_stages))  # stages that images of this size do not have
        for place, (name, (expected, found)) in enumerate(pairs.items()):
            divergence[name].append(np.pad(np.stack([stage[place].sum(1) for stage in by_stage], 1), further))
            both = zip(likeliest[expected], likeliest[found], strict=True)
            agreeing[name].append(np.pad(np.stack([_equal(p, q) for p, q in both], 1), further))
        on_images(batch.images.stop - wanted.start)
    of_images = sizes if sizes.ndim == 1 else sizes[wanted.start : wanted.stop]
    return {
        name: ByImage(np.concatenate(divergence[name]), np.concatenate(agreeing[name]), of_images) for name in pairs
    }


def _tokens_of_stages(manifest: Manifest, subjects: Subjects) -> NDArray[np.float64]:
    """`ByImage.sizes` of the images."""
    tokens = [[float(height * width) for height, width in model.stage_sizes] for model in manifest.models]
    if len(tokens) == 1:
        return np.array(tokens[0])
    used = [tokens[size] for size in subjects.sizes]
    longest = max(map(len, used))
    return np.array([row + [0.0] * (longest - len(row)) for row in used])


def _stream(
    settings: Mapping[str, Any], generator: Generator, tokens: NDArray[np.int64] | None
) -> Iterator[StageResult]:
    """The stages of a batch with their logits, sampled, or forced where `tokens` [B, L] is given."""
    forced = generator.bundle.manifest.forced_tokens.name
    inputs = {**settings.get("inputs", {}), forced: tokens}
    return generator.stream(**{**settings, "inputs": inputs}, outputs=["logits"])


def _likeliest(logits: NDArray[np.float32], token_axes: int) -> NDArray[Any]:
    """Of tokens [B, l] the likeliest entries; of tokens [B, l, d], which are bits, the likeliest values."""
    return logits.argmax(-1) if token_axes == 2 else logits > 0


def _equal(p: NDArray[Any], q: NDArray[Any]) -> NDArray[np.float64]:
    """Sum over the tokens of a stage of those that are equal, or of the share of their bits: [B]."""
    equal = (p == q).astype(np.float64)
    summed: NDArray[np.float64] = (equal if equal.ndim == 2 else equal.mean(-1)).sum(1)
    return summed


def summarize(divergence: NDArray[np.float64], agreeing: NDArray[np.float64], sizes: NDArray[np.float64]) -> Agreement:
    """Means over tokens, and the standard error over images.

    Args:
        divergence, agreeing: float64 [N, S], sums over a stage's tokens of the KL and of equal likeliest entries.
        sizes: float64 [S] or [N, S], as `ByImage` has them.
    """
    by_image = divergence.sum(1) / sizes.sum(-1)
    stderr = by_image.std(ddof=1) / np.sqrt(len(by_image)) if len(by_image) > 1 else np.nan
    tokens = np.broadcast_to(sizes, divergence.shape).sum(0)
    return Agreement(
        kl=float(by_image.mean()),
        kl_stderr=float(stderr),
        top1=float(agreeing.sum() / tokens.sum()),
        stage_kl=divergence.sum(0) / tokens,
        stage_top1=agreeing.sum(0) / tokens,
        images=len(by_image),
    )


def kl_divergence(p_logits: NDArray[np.float32], q_logits: NDArray[np.float32]) -> NDArray[np.float64]:
    """KL(p || q) of softmax distributions over the last axis, in nats: [B, l, V] twice -> [B, l]."""
    return _divergences({"p": p_logits, "q": q_logits}, [("p", "q")])[0]


def bit_divergence(p_logits: NDArray[np.float32], q_logits: NDArray[np.float32]) -> NDArray[np.float64]:
    """KL(p || q) of tokens of independent bits, in nats: log-odds of 1, [B, l, d] twice -> [B, l].

    The sum over the bits of p1 (log p1 - log q1) + p0 (log p0 - log q0), with log p1 = -log(1 + exp(-log-odds)).
    """
    p, q = p_logits.astype(np.float64), q_logits.astype(np.float64)
    found: NDArray[np.float64] = np.zeros(p.shape[:-1])
    for sign in (-1.0, 1.0):
        log_p, log_q = -np.logaddexp(0, sign * p), -np.logaddexp(0, sign * q)
        found += (np.exp(log_p) * (log_p - log_q)).sum(-1)
    return found


def _divergences(
    logits: Mapping[Name, NDArray[np.float32]], pairs: Sequence[tuple[Name, Name]], token_axes: int = 2
) -> list[NDArray[np.float64]]:
    """KL(p || q) of each pair of names: [B, l, V] each, or [B, l, d] of bits -> [B, l] each."""
    if token_axes == 3:
        return [bit_divergence(logits[p], logits[q]) for p, q in pairs]
    names = {name for pair in pairs for name in pair}
    shape = np.broadcast_shapes(*(logits[name].shape for name in names))
    rows = {name: np.broadcast_to(logits[name], shape).reshape(-1, shape[-1]) for name in names}
    found = np.empty((len(pairs), math.prod(shape[:-1])))
    for first in range(0, found.shape[1], _ROWS):
        log = {name: _log_softmax(every[first : first + _ROWS]) for name, every in rows.items()}
        weight = {name: np.exp(log[name]) for name in {p for p, _ in pairs}}
        for place, (p, q) in enumerate(pairs):
            found[place, first : first + _ROWS] = (weight[p] * (log[p] - log[q])).sum(-1)
    return [pair.reshape(shape[:-1]) for pair in found]


def _log_softmax(logits: NDArray[np.float32]) -> NDArray[np.float64]:
    shifted = logits.astype(np.float64) - logits.max(-1, keepdims=True)
    normalized: NDArray[np.float64] = shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))
    return normalized


def as_json(agreements: Mapping[str, Agreement]) -> dict[str, dict[str, float | int | Sequence[float] | None]]:
    """Plain numbers and lists, for a JSON file; None is no number."""
    return {
        name: {
            "kl": a.kl,
            "kl_stderr": None if np.isnan(a.kl_stderr) else a.kl_stderr,
            "top1": a.top1,
            "stage_kl": a.stage_kl.tolist(),
            "stage_top1": a.stage_top1.tolist(),
            "images": a.images,
        }
        for name, a in agreements.items()
    }
