"""Networks of tests are small: their convolutions are taken, however little work they are."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from nextscale.foreign import survey


@pytest.fixture(scope="module", autouse=True)
def no_convolution_is_too_little_work() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(survey, "LEAST_WORK", 0)
        yield
