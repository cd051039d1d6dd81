"""What the reports of matching have in common: they are joined over stages, and kept in files as arrays."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from dataclasses import Field

    from typing_extensions import Self


class MatchingFields:
    """A dataclass of arrays with a row for each stage, and of numbers that are sums over the stages."""

    __dataclass_fields__: ClassVar[dict[str, Field[Any]]]

    @classmethod
    def join(cls, parts: Sequence[Self]) -> Self:
        """One report of several stages, or groups of them."""
        fields: dict[str, Any] = {}
        for name in cls.__dataclass_fields__:
            values = [getattr(part, name) for part in parts]
            fields[name] = np.concatenate(values) if isinstance(values[0], np.ndarray) else sum(values)
        return cls(**fields)

    def arrays(self) -> dict[str, NDArray[Any]]:
        """The fields as arrays, for an .npz."""
        return {name: np.asarray(value) for name, value in vars(self).items()}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, NDArray[Any]]) -> Self:
        """What `arrays` gave."""
        found = {name: arrays[name] for name in cls.__dataclass_fields__}
        fields: dict[str, Any] = {name: array if array.ndim else array.item() for name, array in found.items()}
        return cls(**fields)
