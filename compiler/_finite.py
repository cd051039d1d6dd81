"""A model whose values overflow is refused, not built: its logits, and its pictures before they are bytes."""

from __future__ import annotations

from collections.abc import Sequence

from nextscale.compiler.family import Family
from nextscale.runtime._bundle import Bundle
from nextscale.runtime._errors import NextscaleError
from nextscale.runtime._next_scale_loop import Generator
from nextscale.runtime._session import SessionOptions
from nextscale.runtime._verify import non_finite_stage


def require_finite_logits(bundle: Bundle, options: SessionOptions) -> None:
    """Run the generation that the bundle's manifest stores, at the strongest guidance that a request may ask for.

    Raises:
        NextscaleError: a logit is NaN or infinite.
    """
    bad = non_finite_stage(Generator(bundle, options))
    if bad is not None:
        name, precision = bundle.manifest.name, bundle.manifest.recipe["name"]
        raise NextscaleError(
            f"{name} in {precision}: logits are NaN or infinite in stage {bad}: what the transformer computes "
            "overflows float32; is its checkpoint sound?"
        )


def require_finite_picture(family: Family, tokens: Sequence[int]) -> None:
    """Decode the tokens of one image of the stored generation, row-major.

    Raises:
        NextscaleError: a pixel is NaN.
    """
    if not family.has_finite_picture(tokens):
        raise NextscaleError("pictures are NaN: what the decoder computes overflows float32; is its checkpoint sound?")
