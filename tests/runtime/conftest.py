import shutil
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1]))

from fake_bundle import write_fake_bundle

from nextscale.runtime import Generator


@pytest.fixture(scope="session")
def fake_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle to read; use `damaged` to change one."""
    return write_fake_bundle(tmp_path_factory.mktemp("bundles") / "fake")


@pytest.fixture
def damaged(fake_bundle: Path, tmp_path: Path) -> Path:
    """A copy of the bundle that the test may change."""
    return shutil.copytree(fake_bundle, tmp_path / "damaged")


@pytest.fixture(scope="session")
def generator(fake_bundle: Path) -> Generator:
    return Generator(fake_bundle)
