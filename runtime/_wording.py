"""Values in messages: on one short line, without control characters, numbers with the digits that tell them apart."""

import math
import reprlib

import numpy as np

from nextscale.runtime._text import printable

_SHOWN = 80
_REPR = reprlib.Repr()
_REPR.maxstring = _REPR.maxother = _REPR.maxlong = _SHOWN
_LONGEST_INTEGER = 256  # bits; Python converts no more than some thousand digits, and nobody reads them


def counted(count: int, what: str) -> str:
    """1 image, 2 images."""
    return f"{count} {what}" if count == 1 else f"{count} {what}s"


def shown_text(text: str, limit: int = _SHOWN) -> str:
    """Text with escapes for what is no printable character, cut after `limit` characters."""
    return printable(text[:limit]) + ("…" if len(text) > limit else "")


def shown_number(value: float) -> str:
    """A number with 15 digits, or with 17 where it takes those to tell it from its neighbours."""
    if isinstance(value, int) and value.bit_length() > _LONGEST_INTEGER:
        return f"about {'-' if value < 0 else ''}10^{round(value.bit_length() * math.log10(2))}"
    if isinstance(value, int):
        return str(value)
    text = f"{value:.15g}"
    return text if float(text) == value or value != value else f"{value:.17g}"


def shown_value(value: object) -> str:
    """Any value: arrays by their type and shape, others as Python writes them."""
    if isinstance(value, np.ndarray) and value.ndim:
        return f"{value.dtype} {list(value.shape)}"
    if isinstance(value, np.ndarray | np.generic):
        value = value.item()
    if isinstance(value, int) and not isinstance(value, bool):
        return shown_number(value)
    try:
        return shown_text(" ".join(_REPR.repr(value).split()))
    except ValueError:  # a huge integer within
        return type(value).__name__
