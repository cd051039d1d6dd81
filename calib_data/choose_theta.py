"""Choose the threshold of attentive tokens under a budget of extra operations (Sec. 4.1)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from nextscale.calib_data.attention_scores import EDGES, THETA_STEPS, ScoreStatistics
from nextscale.graph_passes.layer_facts import StageFacts
from nextscale.models.bit_operations import (
    BitWidths,
    Cost,
    aggregate_cost,
    duplicate_cost,
    keys,
    model_cost,
    score_cost,
)
from nextscale.runtime._errors import NextscaleError
from nextscale.runtime._manifest import ModelInfo

# As published, 2n shifted copies; or the token and one row of what its rounding left, whatever n is.
Form = Literal["duplicate", "residual"]
FORMS: tuple[Form, ...] = ("duplicate", "residual")
OVERFLOW = 1e-3


@dataclass(frozen=True)
class Overhead:
    """What shift-and-sum at one theta adds to an image and row: a column of Table B.

    Attributes:
        theta: the threshold.
        form: how attentive tokens are expanded.
        scores: Eq. 11.
        duplicate: duplicate & shift.
        aggregate: Eq. 13.
        share: their operations together, relative to the model's.
        max_order: the largest kernel order n; 0 if no token is attentive.
    """

    theta: float
    form: Form
    scores: Cost
    duplicate: Cost
    aggregate: Cost
    share: float
    max_order: int

    @property
    def total(self) -> Cost:
        return self.scores + self.duplicate + self.aggregate


@dataclass(frozen=True)
class ThetaChoice:
    """The smallest theta within a budget, or one that was given.

    Attributes:
        theta: a token is attentive if its score (Eq. 11) is above.
        form: how attentive tokens are expanded.
        budget: extra operations allowed, relative to the model's; of a theta that was given, what it costs.
        extra_share: extra operations expected.
        max_order: the largest kernel order n (Eq. 14) seen.
        rows: for each stage, the extra rows a head needs so that at most a share `overflow` of heads has more
            attentive tokens.
        overflow: that share.
        images: images that the choice was made from.
    """

    theta: float
    form: Form
    budget: float
    extra_share: float
    max_order: int
    rows: tuple[int, ...]
    overflow: float
    images: int


def kernel_order(scores: ArrayLike, theta: float) -> NDArray[np.int64]:
    """n = 2^(ceil(log2(score / theta)) - 1) where score > theta, else 0 (Eq. 14); then score / 2n <= theta (Eq. 15).

    Args:
        scores: float32, any shape.
        theta: above 0; compared as float32.
    """
    # Exact: the quotient of two different float32 is no power of two in float64, and frexp rounds nothing.
    mantissa, exponent = np.frexp(np.asarray(scores, np.float32).astype(np.float64) / np.float64(np.float32(theta)))
    order = np.where(mantissa == 0.5, exponent - 2, exponent - 1)
    return np.where(order >= 0, 2 ** np.maximum(order, 0).astype(np.int64), 0)


def overhead(
    statistics: ScoreStatistics,
    model: ModelInfo,
    facts: StageFacts,
    bits: BitWidths,
    theta: float,
    form: Form = "duplicate",
) -> Overhead:
    """What `theta`, a multiple of 1e-4 above 0, costs on average.

    Raises:
        ValueError: theta is off the grid.
    """
    return _overhead(statistics, statistics.above(), model, facts, bits, theta_index(theta), form)


def attentive_shares(statistics: ScoreStatistics, model: ModelInfo, thetas: Sequence[float]) -> NDArray[np.float64]:
    """The share of each stage's tokens whose score is above theta (Fig. 2, left): float64 [len(thetas), S].

    Raises:
        ValueError: a theta is off the grid.
    """
    shares: NDArray[np.float64] = statistics.above()[:, [theta_index(theta) for theta in thetas]].T / (
        statistics.samples * keys(model)
    )
    return shares


def choose_theta(
    statistics: ScoreStatistics,
    model: ModelInfo,
    facts: StageFacts,
    bits: BitWidths,
    budget: float = 0.01,
    form: Form = "duplicate",
    overflow: float = OVERFLOW,
    text_tokens: int = 0,
) -> ThetaChoice:
    """The smallest theta of 1e-4, 2e-4, ... 1 whose extra operations are within `budget` times the model's.

    Orders, and with them the operations, never grow with theta, so the grid is searched by bisection.

    Args:
        statistics: of images of one size.
        model, facts: at that size.
        bits: of the recipe.
        budget: extra operations allowed, relative to the model's.
        form: how attentive tokens are expanded.
        overflow: share of heads that may have more attentive tokens than rows.
        text_tokens: that integer attention to a text sees, whose scores are among the statistics; 0: none is.
    Raises:
        NextscaleError: Eq. 11 alone is over the budget.
    """
    above = statistics.above()

    def found(index: int) -> Overhead:
        return _overhead(statistics, above, model, facts, bits, index, form, text_tokens)

    least = found(THETA_STEPS)
    if least.share > budget:
        raise NextscaleError(
            f"a budget of {budget:.2%} is too small: the scores alone (Eq. 11) cost {least.share:.2%} of the operations"
        )
    too_small, index = 0, THETA_STEPS
    while index - too_small > 1:
        middle = (too_small + index) // 2
        too_small, index = (too_small, middle) if found(middle).share <= budget else (middle, index)
    return _choice(statistics, found(index), budget, overflow)


def theta_at(
    statistics: ScoreStatistics,
    model: ModelInfo,
    facts: StageFacts,
    bits: BitWidths,
    theta: float,
    form: Form = "duplicate",
    overflow: float = OVERFLOW,
) -> ThetaChoice:
    """A theta that is given, a multiple of 1e-4 above 0, with as many places as `choose_theta` would give it.

    Args are those of `choose_theta`.

    Raises:
        ValueError: theta is off the grid.
    """
    found = overhead(statistics, model, facts, bits, theta, form)
    return _choice(statistics, found, found.share, overflow)


def _choice(statistics: ScoreStatistics, found: Overhead, budget: float, overflow: float) -> ThetaChoice:
    rows = statistics.budgets(theta_index(found.theta), overflow)
    return ThetaChoice(found.theta, found.form, budget, found.share, found.max_order, rows, overflow, statistics.images)


def theta_index(theta: float) -> int:
    """The index of theta among EDGES.

    Raises:
        ValueError: theta is no multiple of 1e-4 above 0 and up to 1.
    """
    index = round(theta * THETA_STEPS)
    if not 1 <= index <= THETA_STEPS or EDGES[index] != np.float32(theta):
        raise ValueError(f"theta {theta} is no multiple of {1 / THETA_STEPS} above 0 and up to 1")
    return index


def _overhead(
    statistics: ScoreStatistics,
    above: NDArray[np.int64],
    model: ModelInfo,
    facts: StageFacts,
    bits: BitWidths,
    index: int,
    form: Form,
    text_tokens: int = 0,
) -> Overhead:
    # Tokens above theta, 2 theta, 4 theta, ...: 2n is 2 above theta and doubles at each (Eq. 14).
    octaves = [above[:, index << m] for m in range((THETA_STEPS // index).bit_length())]
    rows = 2 * statistics.images
    tokens = octaves[0] / rows
    copies = 2 * tokens
    if form == "duplicate":
        copies = copies + sum(2**m * octave for m, octave in enumerate(octaves[1:], 1)) / rows
    costs = (
        score_cost(model, text_tokens),
        duplicate_cost(model, tokens, copies),
        aggregate_cost(model, bits, tokens, copies),
    )
    share = sum(cost.operations for cost in costs) / model_cost(model, facts, bits, text_tokens).operations
    max_order = max((2**m for m, octave in enumerate(octaves) if octave.any()), default=0)
    return Overhead(index / THETA_STEPS, form, *costs, share, max_order)
