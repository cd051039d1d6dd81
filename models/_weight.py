"""A weight that may not be in memory yet."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

# A tensor, or what makes it each time it is needed: a changed copy of a large weight need not be held.
Weight = Tensor | Callable[[], Tensor]
