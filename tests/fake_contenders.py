"""Contenders that generate nothing: what `fake_worker.py` does as it is told."""

import json
import sys
from pathlib import Path
from typing import Any

from nextscale.measure.contender import Contender

_PROGRAM = Path(__file__).with_name("fake_worker.py")


def fake_contender(name: str, **settings: Any) -> Contender:
    """One whose process has these settings."""
    return Contender(name, (sys.executable, str(_PROGRAM), json.dumps({"name": name, **settings})))
