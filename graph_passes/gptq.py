"""Round weights so that the errors make up for each other (Frantar et al., 2022, GPTQ)."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

DAMPING = 0.01  # of the mean moment


def gptq(
    weight: NDArray[np.float32], moments: NDArray[np.float64], scale: NDArray[np.float32], qmin: int, qmax: int
) -> NDArray[np.int8]:
    """Codes s8 [out, K] of a weight [out, K] in steps `scale` [out]; moments [K, K] of what it is multiplied by."""
    damped = moments.astype(np.float64)
    damped[np.diag_indices(len(damped))] += DAMPING * damped.diagonal().mean()
    order = np.argsort(-damped.diagonal(), kind="stable")
    factor = np.linalg.cholesky(np.linalg.inv(damped[np.ix_(order, order)])).T
    left = weight[:, order].astype(np.float64)
    codes = np.zeros(left.shape, np.int8)
    for i in range(len(order)):
        codes[:, order[i]] = found = np.clip(np.round(left[:, i] / scale), qmin, qmax)
        error = (left[:, i] - found * scale) / factor[i, i]
        left[:, i + 1 :] -= error[:, None] * factor[i, i + 1 :]
    return codes
