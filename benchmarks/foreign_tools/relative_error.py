"""How far a model's outputs are from another's, in one number."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from foreign_tools.feeds import Arrays


def relative_error(exact: Sequence[Arrays], found: Sequence[Arrays]) -> float:
    """The norm of the difference over the norm, of all samples together; the mean over outputs of floats.

    Args:
        exact, found: of each sample, the outputs by name, of the same shapes.
    """
    errors = []
    for name, array in exact[0].items():
        if array.dtype.kind == "f":
            signal = sum(float(np.square(one[name], dtype=np.float64).sum()) for one in exact)
            noise = sum(
                float(np.square(one[name] - other[name], dtype=np.float64).sum())
                for one, other in zip(exact, found, strict=True)
            )
            errors.append(math.sqrt(noise / signal))
    return float(np.mean(errors))
