"""Whether `make soak` runs the tests: those that take long for every commit then do more."""

from hypothesis import settings


def in_soak() -> bool:
    """Whether hypothesis draws as many examples as its profile "soak" says (conftest.py)."""
    return bool(settings.default.max_examples >= 2000)
