"""The demo models' files, which are a distribution of their own, so that an app is deployed without them."""

from __future__ import annotations

from types import ModuleType

from nextscale.runtime._errors import NextscaleError


def demo_files() -> ModuleType:
    """The package `nextscale_demo`.

    Raises:
        NextscaleError: it is not installed.
    """
    try:
        import nextscale_demo
    except ModuleNotFoundError as error:
        if error.name != "nextscale_demo":
            raise
        raise NextscaleError(
            "the demo models are not installed: in a checkout, pip install ./demo/nextscale-demo"
        ) from None
    return nextscale_demo
