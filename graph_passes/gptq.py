"""Weights to integers so that the errors of rounding make up for each other (Frantar et al. 2022, "GPTQ").

The error of a layer's outputs over inputs x [K] with second moments H = E[x x'] is, for codes Q and D = W - scale Q,
E|D x|^2 = tr(D H D'). With H = R diag(p) R', R lower triangular with ones on its diagonal, it is

    sum over j of p_j |(D R)_j|^2,  (D R)_j = w_j + sum over i > j of d_i R_ij - scale q_j

So columns are rounded from the last to the first, each after what the errors behind it ask of it. These are the codes
of GPTQ, which updates all weights left after each, by the inverse of H; this form needs one factor and no inverse.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

# Of the mean diagonal of the moments, added to the diagonal.
DAMPING = 0.01
# Columns that correct each other one by one; what all behind them ask is one product of matrices.
BLOCK = 128
# Codes at which rows end: one number for all, or [out].
Ends = int | NDArray[np.integer[Any]]


def gptq(
    weight: NDArray[np.float32], moments: NDArray[np.floating[Any]], scale: NDArray[np.float32], qmin: Ends, qmax: Ends
) -> NDArray[np.int8]:
    """Codes by which scale * codes @ x is near weight @ x for the inputs x that were observed.

    Inputs of large moments come first, while all others can still make up for their errors. An input that was always
    zero is rounded to nearest, and so is a row that GPTQ brings no nearer: the error of no row is larger than that of
    rounding to nearest. BLOCK and the number of threads change a code only where a weight is within float64's rounding
    of the middle between two codes. Takes about 32 K^2 bytes.

    Args:
        weight: float32 [out, K].
        moments: second moments of the inputs, or a multiple of them, [K, K]; symmetric, one triangle of it is read.
        scale: the step of each row, float32 [out], above zero.
        qmin, qmax: the smallest and the largest code, within int8: of all rows, or of each, [out].
    Returns:
        int8 [out, K].
    Raises:
        ValueError: shapes do not fit, a number is not finite, or no inputs have such moments.
    """
    out, size = weight.shape
    if moments.shape != (size, size) or scale.shape != (out,):
        found = f"{list(moments.shape)} and {list(scale.shape)}"
        raise ValueError(f"expected moments [{size}, {size}] and a scale [{out}] of the weight's shape, found {found}")
    for name, array in (("weight", weight), ("moments", moments), ("scale", scale)):
        if not np.isfinite(array).all():
            raise ValueError(f"expected finite numbers in {name}")
    order = np.argsort(np.diagonal(moments), kind="stable")
    ratios, pivots = _factors(moments[np.ix_(order, order)])
    codes, left = _greedy(weight[:, order], ratios, scale, qmin, qmax)
    nearest = _codes(weight, scale[:, None], *(np.asarray(end)[..., None] for end in (qmin, qmax)))
    left_by_nearest = (weight - nearest * np.float64(scale)[:, None])[:, order] @ ratios
    better = np.square(left) @ pivots < np.square(left_by_nearest) @ pivots
    nearest[np.ix_(better, order)] = codes[better]
    return nearest


def _factors(moments: NDArray[np.floating[Any]]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """R [K, K] and p [K] of the damped moments, in units of their mean diagonal."""
    mean = np.diagonal(moments).mean(dtype=np.float64)
    damped = moments / (abs(mean) or 1.0)
    damped[np.diag_indices_from(damped)] += DAMPING
    try:
        factor = np.linalg.cholesky(damped)
    except np.linalg.LinAlgError:
        raise ValueError("no inputs have these moments: they are not positive semidefinite") from None
    roots = np.diagonal(factor).copy()
    factor /= roots
    return factor, np.square(roots)


def _greedy(
    weight: NDArray[np.float32], ratios: NDArray[np.float64], scale: NDArray[np.float32], qmin: Ends, qmax: Ends
) -> tuple[NDArray[np.int8], NDArray[np.float64]]:
    """The codes [out, K], and D R; within transposed, so that a column is contiguous."""
    wanted = weight.T.astype(np.float64)
    codes, errors, left = np.empty(wanted.shape, np.int8), np.empty_like(wanted), np.empty_like(wanted)
    for end in range(len(wanted), 0, -BLOCK):
        start = max(end - BLOCK, 0)
        asked = ratios[end:, start:end].T @ errors[end:]
        for j in reversed(range(start, end)):
            target = wanted[j] + asked[j - start] + ratios[j + 1 : end, j] @ errors[j + 1 : end]
            codes[j] = _codes(target.astype(np.float32), scale, qmin, qmax)
            rounded = codes[j] * np.float64(scale)
            errors[j], left[j] = wanted[j] - rounded, target - rounded
    return codes.T, left.T


def _codes(values: NDArray[np.float32], scale: NDArray[np.float32], qmin: Ends, qmax: Ends) -> NDArray[np.int8]:
    """The nearest, as of all weights (`WeightQParams.quantize`)."""
    return np.clip(np.round(values / scale), qmin, qmax).astype(np.int8)
