"""A step for each channel of what a convolution reads, folded into its weights.

An integer product has one scale for all that it sums. But x_c w_c = (x_c / s_c) (s_c w_c): where the channels of x have
steps s_c of their own, the weights take them, and the product stays as it was. One zero point z serves all channels, so
that a channel from lo to hi needs the step max(hi / (255 - z), -lo / z).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from nextscale.graph_passes.qparams import Range

Floats = NDArray[np.float32]
QMAX = 255
TINY = np.finfo(np.float32).tiny


def channel_steps(observed: Range, energy: NDArray[np.floating]) -> tuple[Floats, int]:
    """Steps float32 [C] and the zero point that lose the least.

    Rounding x_c adds an error of variance s_c^2 / 12, which the weights multiply: the sum of s_c^2 energy_c is least.

    Args:
        observed: of each channel, [C].
        energy: the sum of the squares of the weights that read each channel, [C].
    """
    low, high = (np.maximum(end, 0).astype(np.float64) for end in (-observed.minimum, observed.maximum))
    zero_points = np.arange(QMAX + 1)
    with np.errstate(divide="ignore", invalid="ignore"):  # at either end, one side alone has codes
        below, above = low / zero_points[:, None], high / (QMAX - zero_points[:, None])
    steps = np.fmax(np.where(low > 0, below, 0), np.where(high > 0, above, 0))
    # Channels that no weight reads count a little: their steps must be finite, too.
    lost = (steps**2) @ np.maximum(energy.astype(np.float64), TINY)
    best = int(np.argmin(lost))
    found = steps[best].astype(np.float32)
    # A channel that was always zero has the least of the others' steps: a larger one would blow up its weights, and
    # with them the scale by which the weights of all channels are rounded.
    alive = found >= TINY
    return np.where(alive, found, found[alive].min() if alive.any() else np.float32(1)), best
