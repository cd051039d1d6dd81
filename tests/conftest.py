"""Bundles for all tests: a fake one, and real ones of a tiny model; torch is imported only by tests that need it."""

from __future__ import annotations

import os
import shutil
import signal
import threading
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from fake_bundle import write_fake_bundle
from fake_sizes_bundle import write_fake_sizes_bundle
from fake_text_bundle import write_fake_text_bundle
from hypothesis import settings
from ops_library import ops_library  # noqa: F401  a fixture
from saturating import SATURATES

import nextscale  # noqa: F401  before a test's file imports onnxruntime: it turns telemetry off

if TYPE_CHECKING:
    from nextscale.runtime import Generator


# What a shell runs in the background ignores Ctrl-C, and so would the commands that tests interrupt.
signal.signal(signal.SIGINT, signal.default_int_handler)

# `make soak` takes this one.
settings.register_profile("soak", max_examples=2000, deadline=None)


@pytest.fixture(scope="session")
def fake_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle to read; use `damaged` to change one."""
    return write_fake_bundle(tmp_path_factory.mktemp("bundles") / "fake")


@pytest.fixture(scope="session")
def fake_v1_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same bundle with a manifest of schema 1, to read."""
    return write_fake_bundle(tmp_path_factory.mktemp("bundles") / "fake-v1", schema=1)


@pytest.fixture(scope="session")
def fake_text_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle of text, bits and oblong stages, to read."""
    return write_fake_text_bundle(tmp_path_factory.mktemp("bundles") / "fake-text")


@pytest.fixture(scope="session")
def fake_sizes_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle of three sizes, of prompts and with an encoder, to read."""
    return write_fake_sizes_bundle(tmp_path_factory.mktemp("bundles") / "fake-sizes")


@pytest.fixture(scope="session")
def fake_encoder_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The fake bundle with an encoder, to read."""
    return write_fake_bundle(tmp_path_factory.mktemp("bundles") / "fake-encoder", encoder=True)


@pytest.fixture
def damaged(fake_bundle: Path, tmp_path: Path) -> Path:
    """A copy of the bundle that the test may change."""
    return shutil.copytree(fake_bundle, tmp_path / "damaged")


def write_nothing(pipe: Path) -> None:
    os.close(os.open(pipe, os.O_WRONLY))  # which makes no file, where the pipe has gone


@pytest.fixture
def make_fifo() -> Callable[[Path], Path]:
    """Make a named pipe. Whoever opens it finds it empty, instead of waiting for ever."""

    def make(path: Path) -> Path:
        path.unlink(missing_ok=True)
        os.mkfifo(path)
        threading.Thread(target=write_nothing, args=(path.absolute(),), daemon=True).start()
        return path

    return make


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


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Numbers of integer products are those of CPUs that compute them exactly."""
    if SATURATES:
        reason = pytest.mark.skip(reason="this CPU has no VNNI: ONNX Runtime's u8 x s8 products saturate")
        for item in items:
            if item.get_closest_marker("exact_products") is not None:
                item.add_marker(reason)
