"""How far a benchmark is."""

from __future__ import annotations

import sys


def log(step: str, done: int = 0, total: int = 0) -> None:
    """Tell the user on stderr; of many images every sixteenth."""
    if not total or done % 16 == 0:
        print(step, f"{done}/{total}" if total else "", file=sys.stderr, flush=True)
