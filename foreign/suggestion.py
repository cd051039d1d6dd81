"""Which few operators to leave in float: those that lose most of what the outputs lose."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass

from nextscale.foreign.compare import Difference
from nextscale.foreign.own_errors import Error
from nextscale.measure.statistics import Interval

MOST = 5
# Of the squares of all effects: a suggestion has to be worth its time.
LEAST_SHARE = 0.2
ENOUGH = 0.6


@dataclass(frozen=True)
class Suggestion:
    """A few operators left in float, and what that was seen to do.

    Attributes:
        names: of the operators; a recipe file says `"NAME" = "float"` for each under [layers].
        outputs: what the outputs lose then, by name.
        ratio: how many times as fast as float the model is then; None where it was not measured.
    """

    names: tuple[str, ...]
    outputs: Mapping[str, Difference]
    ratio: Interval | None


def most_costly(effects: Mapping[str, Error], names: Collection[str], count: int) -> tuple[str, ...]:
    """At most so many of some operators, those of the largest effects first; of none that has no effect.

    Args:
        effects: on the outputs, by operator, of each alone.
        names: those that may be chosen.
        count: how many.
    """
    known = [name for name in names if name in effects and effects[name].relative > 0]
    return tuple(sorted(known, key=lambda name: -effects[name].relative)[:count])


def stand_out(effects: Mapping[str, Error], names: Collection[str]) -> tuple[str, ...]:
    """The fewest of some operators, at most MOST, whose effects add up to ENOUGH of all; () where none stand out.

    Errors of different operators are independent, so that their squares add up.
    """
    total = sum(effect.relative**2 for effect in effects.values())
    if math.isinf(total):  # beside it no other is anything
        return tuple(name for name in most_costly(effects, names, MOST) if math.isinf(effects[name].relative))
    share, chosen = 0.0, list[str]()
    for name in most_costly(effects, names, MOST):
        if share >= ENOUGH * total:
            break
        share += effects[name].relative ** 2
        chosen.append(name)
    return tuple(chosen) if share > LEAST_SHARE * total else ()
