"""The variants of a bundle's graphs that can run here, each as options that ask for it alone."""

from __future__ import annotations

from dataclasses import replace

from nextscale.runtime._bundle import Bundle
from nextscale.runtime._manifest import FUSED, STOCK
from nextscale.runtime._operators import choose_variant
from nextscale.runtime._session import SessionOptions


def each_variant(bundle: Bundle, options: SessionOptions) -> list[SessionOptions]:
    """With ops "auto" the stock graphs and, where they can run, the fused ones; else what the options ask for.

    Raises:
        NextscaleError: the options ask for fused operators that cannot run, or for a library that is none.
    """
    if options.ops != "auto":
        choose_variant(bundle, options.ops, options.ops_library)
        return [options]
    found = choose_variant(bundle, options.ops, options.ops_library)
    return [replace(options, ops=STOCK), *([replace(options, ops=FUSED)] if found.variant == FUSED else [])]
