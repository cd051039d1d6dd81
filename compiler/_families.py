"""The families that are built, one for each kind of source."""

from __future__ import annotations

from nextscale.compiler.family import Family
from nextscale.compiler.infinity_family import InfinityFamily
from nextscale.compiler.var_family import VARFamily
from nextscale.models.infinity.sources import InfinitySource
from nextscale.models.sources import Source
from nextscale.models.var.sources import VARSource


def family_of(source: Source) -> Family:
    """How to build the source.

    Raises:
        TypeError: it is of no family.
    """
    match source:
        case VARSource():
            return VARFamily(source)
        case InfinitySource():
            return InfinityFamily(source)
    raise TypeError(f"no family builds a {type(source).__name__}")
