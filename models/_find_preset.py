"""Find a preset by its name."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import TypeVar

from nextscale.runtime._errors import NextscaleError

Preset = TypeVar("Preset")


def find_preset(presets: Mapping[str, Preset], name: str, what: str = "preset") -> Preset:
    """The preset called `name`; `what` it is, for the message.

    Raises:
        NextscaleError: there is none; the message suggests the nearest.
    """
    if name in presets:
        return presets[name]
    near = difflib.get_close_matches(name.lower().replace("_", "-"), presets, n=1, cutoff=0.5)
    suggestion = f"did you mean {near[0]}? " if near else ""
    raise NextscaleError(f"no {what} {name!r}: {suggestion}The presets are {', '.join(presets)}")
