"""Which of the paper's VARs a checkpoint is."""

from __future__ import annotations

from collections.abc import Sequence

from nextscale.runtime._errors import NextscaleError
from nextscale.runtime._manifest import ModelInfo

HEAD = 64  # channels; a VAR of depth d has d heads


def require_depth(table: str, depths: Sequence[int], model: ModelInfo) -> None:
    """Raise NextscaleError unless a model is of one of a table's sizes.

    Args:
        table: the paper's number of it.
        depths: of its models.
        model: that is to be measured.
    """
    if model.depth not in depths or model.embed_dim != HEAD * model.depth:
        known = ", ".join(f"VAR-d{depth} ({depth} blocks of {HEAD * depth})" for depth in depths)
        raise NextscaleError(
            f"the model has {model.depth} blocks of {model.embed_dim}; Table {table} is of {known}, or of the demo "
            "model: give a checkpoint of such a size, or none"
        )
