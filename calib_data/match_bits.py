"""Probability matching of bits: ones become as frequent as they are probable, bit by bit and stage by stage.

Eq. 17 to 20 of "Shift-and-Sum Quantization for Visual Autoregressive Models" are about the entries of a codebook. A
token of D bits is one of 2^D, up to 2^56: next to none is expected as often as once, so that U of Eq. 19 is empty and
nothing moves. The paper does not say what Infinity has instead. This is our reading: each bit is a codebook of its own,
of the entries 0 and 1, at each stage (docs/quantization.md).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nextscale.calib_data._matching_report import MatchingFields


@dataclass(frozen=True)
class MatchedBits:
    """Bits of M tokens after matching, and what it took.

    Attributes:
        bits: uint8 [M, D].
        wanted: how many of all bits Eq. 19 wants flipped.
        moved: how many were.
        log_before, log_after: sum of the log-probabilities of what the flipped bits were, and are; nats.
    """

    bits: NDArray[np.uint8]
    wanted: int
    moved: int
    log_before: float
    log_after: float


def match_bits(bits: NDArray[np.uint8], probabilities: NDArray[np.float32], rng: np.random.Generator) -> MatchedBits:
    """Flip bits of the value that is too frequent.

    The other value is the only undersampled one, so that Eq. 20 gives it to whatever token moves, and leaves open which
    tokens do. They are drawn in proportion to the other value's probability, so that what moves stays plausible; bits
    that the sampler's filters decide never move.

    Args:
        bits: uint8 [M, D], sampled; not modified.
        probabilities: float32 [M, D], that a bit is 1, after the sampler's filters.
        rng: decides which tokens move.
    """
    matched, wanted, moved, before, after = bits.copy(), 0, 0, 0.0, 0.0
    # s_k - t_k of the value 1 (Eq. 17, 18), and the negative of that of 0.
    surplus = bits.sum(0, dtype=np.int64) - probabilities.sum(0, dtype=np.float64)
    for bit in np.flatnonzero(np.abs(surplus) >= 1):  # Eq. 19
        frequent = int(surplus[bit] > 0)
        count = int(np.rint(abs(surplus[bit])))
        of_one = probabilities[:, bit].astype(np.float64)
        rarer = 1 - of_one if frequent else of_one
        candidates = np.flatnonzero((bits[:, bit] == frequent) & (rarer > 0))
        # The first arrivals of Poisson processes: a draw without replacement.
        arrivals = rng.exponential(size=len(candidates)) / rarer[candidates]
        flipped = candidates[np.argsort(arrivals, kind="stable")[:count]]  # Eq. 20
        matched[flipped, bit] = 1 - frequent
        wanted += count
        moved += len(flipped)
        # A bit that was drawn from what float32 rounded to nothing has the smallest probability there is.
        before += float(np.log(np.maximum(1 - rarer[flipped], np.finfo(np.float32).tiny)).sum())
        after += float(np.log(rarer[flipped]).sum())
    return MatchedBits(matched, wanted, moved, before, after)


@dataclass(frozen=True)
class BitMatchingReport(MatchingFields):
    """Frequencies of ones at S stages, before and after matching.

    Attributes:
        tokens: int64 [S], of all images.
        target: float64 [S, D], t_k of the value 1.
        before, after: int64 [S, D], s_k of the value 1.
        wanted, moved: bits that should be flipped, and that were.
        log_before, log_after: log-probability of the flipped bits when sampled, and of what they became; sums, nats.
    """

    tokens: NDArray[np.int64]
    target: NDArray[np.float64]
    before: NDArray[np.int64]
    after: NDArray[np.int64]
    wanted: int = 0
    moved: int = 0
    log_before: float = 0.0
    log_after: float = 0.0

    def as_json(self) -> dict[str, Any]:
        """The figures: total variations, counts, mean log-probabilities of the flipped bits; None without any."""
        return {
            "total_variation": {
                name: {
                    "all": float((distances.mean(1) * self.tokens).sum() / self.tokens.sum()),
                    "stages": distances.mean(1).tolist(),
                }
                for name, distances in (
                    ("before", self._distances(self.before)),
                    ("after", self._distances(self.after)),
                )
            },
            "wanted": self.wanted,
            "moved": self.moved,
            "log_probability_of_moved": {
                "before": self.log_before / self.moved if self.moved else None,
                "after": self.log_after / self.moved if self.moved else None,
            },
        }

    def _distances(self, ones: NDArray[np.int64]) -> NDArray[np.float64]:
        """Total variation of each bit's two values, |s_1 - t_1| as a share of the tokens: float64 [S, D]."""
        distances: NDArray[np.float64] = np.abs(ones - self.target) / self.tokens[:, None]
        return distances
