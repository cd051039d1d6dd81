from pathlib import Path

import pytest

from nextscale.runtime import Generator


@pytest.fixture(scope="session")
def generator(fake_bundle: Path) -> Generator:
    return Generator(fake_bundle)
