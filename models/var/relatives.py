"""Model families that are near VAR and are not read here, by names that only they have."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

RELATIVES = {
    "Infinity, which takes text": "text_proj_for_sos",
    "Infinity's BSQ VAE": r"quantizer\.lfq",
    "Switti, which takes text": "text_pooler",
    "a VQGAN of taming-transformers, without VAR's scales": r"encoder\.mid\.attn_1\.q",
}


def relative_of(names: Iterable[str], relatives: Mapping[str, str] = RELATIVES) -> str | None:
    """The family that tensors of these names look like, or None.

    Args:
        names: of the tensors.
        relatives: families by what they are called in errors, and a pattern of a word that only their names have.
    """
    names = list(names)
    for family, word in relatives.items():
        if any(re.search(rf"(^|\.){word}\.", name) for name in names):
            return family
    return None
