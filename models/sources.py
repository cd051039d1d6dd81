"""What a model to build is, whatever its family: each family's `sources.py` makes them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from nextscale.runtime._errors import NextscaleError
from nextscale.runtime._manifest import ModelInfo, is_plain_name


class Source(Protocol):
    """A model in torch, and what its bundle says about it."""

    @property
    def name(self) -> str:
        """Of the bundle."""

    @property
    def description(self) -> str:
        """For the card: a sentence of where the weights come from."""

    @property
    def licence(self) -> str:
        """Of the weights."""

    def model_info(self) -> ModelInfo:
        """As the manifest has it."""

    @property
    def class_names(self) -> Sequence[str] | None:
        """One for each class; None where they have no names, or the model no classes."""


def require_plain_name(name: str) -> str:
    """A bundle's name, if it can be one.

    Raises:
        NextscaleError: it is blank, not printable, or no file name on some system.
    """
    if not name.strip() or not is_plain_name(name):
        raise NextscaleError(
            f'the name {name!r} cannot name a bundle: expected printable text without /\\:*?"<>|; give another --name'
        )
    return name
