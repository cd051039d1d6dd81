"""Versions that figures were measured with, and figures as JSON holds them."""

from __future__ import annotations

import math
import platform
from typing import Any

import numpy as np
import onnxruntime

from nextscale import __version__


def versions() -> dict[str, str]:
    """The versions that decide speed and rounding."""
    return {
        "nextscale": __version__,
        "onnxruntime": onnxruntime.__version__,
        "numpy": np.__version__,
        "python": platform.python_version(),
    }


def finite(value: Any) -> Any:
    """What JSON can hold: lists for tuples, null for what is not finite."""
    if isinstance(value, dict):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
