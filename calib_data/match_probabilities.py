"""Probability matching: sampled tokens are reassigned until codebook entries are as frequent as they are probable.

"Shift-and-Sum Quantization for Visual Autoregressive Models", Sec. 3.2.2, Eq. 17 to 20. A few hundred images hold too
few tokens for thousands of entries: their frequencies are far from their probabilities by chance.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nextscale.calib_data._matching_report import MatchingFields

FREQUENCIES = "frequencies.npz"  # the file of `MatchingReport.frequencies` beside token maps
Kept = Callable[[int], tuple[NDArray[np.int64], NDArray[np.float64]]]


@dataclass(frozen=True)
class Matched:
    """Tokens after matching, and what it took.

    Attributes:
        tokens: int64 [M].
        moved: int64 [n], the tokens that were reassigned, in the order in which they were.
        wanted: how many Eq. 19 wants reassigned.
        immovable: tokens that were tried but hold no undersampled entry among their kept ones.
        log_before, log_after: float64 [n], log-probability of a moved token's entry, nats.
    """

    tokens: NDArray[np.int64]
    moved: NDArray[np.int64]
    wanted: int
    immovable: int
    log_before: NDArray[np.float64]
    log_after: NDArray[np.float64]


def match_probabilities(
    tokens: NDArray[np.int64], kept: Kept, p_hat: NDArray[np.float64], rng: np.random.Generator
) -> Matched:
    """Reassign tokens of oversampled entries to undersampled ones.

    Tokens are visited in random order. An entry leaves U once it lacks less than one token. A token that cannot move
    leaves its turn to another that holds the same entry; it need not be tried again, as U only shrinks.

    Args:
        tokens: int64 [M], sampled entries of all N*T tokens; not modified.
        kept: for a token in [0, M), the entries it may be sampled from, int64 [n], and their probabilities
            p_k(i, j) > 0, float64 [n]; the entry it holds is among them.
        p_hat: float64 [V], Eq. 17.
        rng: decides the tokens and their new entries.
    """
    s = np.bincount(tokens, minlength=len(p_hat))
    t = len(tokens) * p_hat  # Eq. 18
    oversampled, undersampled = s - t >= 1, t - s >= 1  # Eq. 19
    surplus = np.where(oversampled, np.rint(s - t), 0).astype(np.int64)
    wanted = int(surplus.sum())
    matched, moved, logs, immovable = tokens.copy(), [], [], 0
    for token in rng.permutation(np.flatnonzero(oversampled[tokens])):
        if not undersampled.any():
            break
        entry = tokens[token]
        if not surplus[entry]:
            continue
        ids, p = kept(int(token))
        candidates = undersampled[ids]
        if not candidates.any():
            immovable += 1
            continue
        cumulated = p[candidates].cumsum()  # Eq. 20, times the sum over U
        drawn = cumulated.searchsorted(rng.random() * cumulated[-1], side="right")
        chosen = np.flatnonzero(candidates)[min(drawn, len(cumulated) - 1)]
        target = ids[chosen]
        matched[token] = target
        surplus[entry] -= 1
        s[entry] -= 1
        s[target] += 1
        undersampled[target] = t[target] - s[target] >= 1
        moved.append(token)
        logs.append((p[ids == entry][0], p[chosen]))
    log_before, log_after = np.log(np.array(logs).reshape(-1, 2)).T
    return Matched(matched, np.array(moved, np.int64), wanted, immovable, log_before, log_after)


@dataclass(frozen=True)
class MatchingReport(MatchingFields):
    """Frequencies of the entries at S stages, before and after matching.

    Attributes:
        target: float64 [S, V], t_k of each stage.
        before, after: int64 [S, V], s_k of each stage.
        wanted, moved, immovable: tokens that should move, did, and were tried but could not.
        log_before, log_after: log-probability of the moved tokens' entries when sampled, summed, nats.
    """

    target: NDArray[np.float64]
    before: NDArray[np.int64]
    after: NDArray[np.int64]
    wanted: int = 0
    moved: int = 0
    immovable: int = 0
    log_before: float = 0.0
    log_after: float = 0.0

    def frequencies(self) -> dict[str, NDArray[Any]]:
        """The frequencies as arrays, for FREQUENCIES."""
        return {"target": self.target, "before": self.before, "after": self.after}

    def as_json(self) -> dict[str, Any]:
        """The figures: total variations, counts, mean log-probabilities of the moved tokens; None without any."""
        return {
            "total_variation": {
                name: {
                    "all": float(total_variation(self.target.sum(0), counts.sum(0))),
                    "stages": total_variation(self.target, counts).tolist(),
                }
                for name, counts in (("before", self.before), ("after", self.after))
            },
            "wanted": self.wanted,
            "moved": self.moved,
            "immovable": self.immovable,
            "log_probability_of_moved": {
                "before": self.log_before / self.moved if self.moved else None,
                "after": self.log_after / self.moved if self.moved else None,
            },
        }


def total_variation(target: NDArray[np.float64], counts: NDArray[np.int64]) -> NDArray[np.float64]:
    """Half the sum of |s_k - t_k| as a share of all tokens: [..., V] twice -> float64 [...]."""
    distance: NDArray[np.float64] = np.abs(counts - target).sum(-1) / 2 / counts.sum(-1)
    return distance
