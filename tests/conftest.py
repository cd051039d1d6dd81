"""Real bundles of a tiny model, built once for all tests; torch is imported only by tests that ask for them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from nextscale.runtime import Generator


@pytest.fixture(scope="session")
def fp32_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model in float32, to read."""
    from tiny_model import build_tiny

    return build_tiny(tmp_path_factory.mktemp("tiny") / "fp32", "fp32")


@pytest.fixture(scope="session")
def int8_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model in int8, to read."""
    from tiny_model import build_tiny

    return build_tiny(tmp_path_factory.mktemp("tiny") / "int8", "int8")


@pytest.fixture(scope="session")
def fp32_generator(fp32_bundle: Path) -> Generator:
    from tiny_model import ONE_THREAD

    from nextscale.runtime import Generator

    return Generator(fp32_bundle, ONE_THREAD)


@pytest.fixture(scope="session")
def int8_generator(int8_bundle: Path) -> Generator:
    from tiny_model import ONE_THREAD

    from nextscale.runtime import Generator

    return Generator(int8_bundle, ONE_THREAD)


@pytest.fixture(params=["fp32", "int8"])
def tiny_bundle(request: pytest.FixtureRequest) -> Path:
    """Each of the two bundles."""
    bundle: Path = request.getfixturevalue(f"{request.param}_bundle")
    return bundle
