"""Python values of a caller, checked: what they are before what they say."""

from operator import index
from typing import Any, SupportsIndex

import numpy as np

from nextscale.runtime._errors import NextscaleError, RequestError
from nextscale.runtime._wording import shown_value


def whole_number(value: SupportsIndex) -> int:
    """An integer of any type; a truth value is none.

    Raises:
        TypeError: the value is no integer.
    """
    if is_truth_value(value):
        raise TypeError("a truth value")
    return index(value)


def require_integer(name: str, value: Any, error: type[NextscaleError] = RequestError) -> int:
    """An integer of any type; the error names what it is of."""
    try:
        return whole_number(value)
    except TypeError:
        raise error(f"{name} {shown_value(value)}: expected an integer") from None


def is_truth_value(value: object) -> bool:
    """Whether a value is Python's or NumPy's True or False."""
    return isinstance(value, bool | np.bool_)
