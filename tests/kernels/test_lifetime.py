"""Sessions that come and go, and sessions at the same time."""

from __future__ import annotations

import gc
import re
import threading
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from operator_session import Operator
from soak import in_soak

MIB = 1 << 20
SIZE = 1024  # of weights: 1 MiB of codes, and as much packed


def resident() -> int:
    """Bytes of this process's memory."""
    status = Path("/proc/self/status")
    if not status.is_file():
        pytest.skip("this system does not tell a process's memory")
    [line] = [line for line in status.read_text().splitlines() if line.startswith("VmRSS:")]
    return int(line.split()[1]) * 1024


def layer(library: Path, rows: int = 2, threads: int = 2, seed: int = 0) -> Operator:
    """A linear layer whose ranges are found at run time, so that it takes memory of all kinds."""
    rng = np.random.default_rng(seed)
    inputs = {
        "codes": rng.integers(0, 256, (rows, 8, SIZE)).astype(np.uint8),
        "scale": np.array(0.1, np.float32),
        "zero_point": np.array(3, np.uint8),
        "weight": rng.integers(-128, 128, (SIZE, SIZE)).astype(np.int8),
        "weight_scale": np.array(0.01, np.float32),
    }
    outputs = ["", "codes", "", "scale", "zero_point"]
    constants = ["weight", "weight_scale"]
    return Operator(library, "Linear", inputs, outputs, constants, threads=threads, ranges="image", image_rows=2)


def test_sessions_leave_no_memory_behind(ops_library: Path) -> None:
    """Of 1,000 in `make soak`, packed weights that stay would be 1 GiB."""
    sessions = 1000 if in_soak() else 60
    for _ in range(20):  # allocators find their size
        layer(ops_library)()
    gc.collect()
    before = resident()
    for _ in range(sessions):
        layer(ops_library)()
    gc.collect()
    assert resident() - before < 16 * MIB


def resident_of(file: Path) -> int:
    """Bytes of a mapped file that are in this process's memory."""
    found, of_file = 0, False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if re.match(r"[0-9a-f]+-[0-9a-f]+ ", line):
            of_file = line.endswith(f" {file}")
        elif of_file and line.startswith("Rss:"):
            found += int(line.split()[1]) * 1024
    return found


@pytest.mark.skipif(not Path("/proc/self/smaps").is_file(), reason="this system does not tell a mapping's memory")
def test_packed_weights_are_in_memory_once(ops_library: Path, tmp_path: Path) -> None:
    """Their file's pages are given back; who reads the file's memory again finds what was there."""
    operator = layer(ops_library)
    path, weights = tmp_path / "layer.onnx", tmp_path / "weights.data"
    onnx.save_model(operator.model, path, save_as_external_data=True, location=weights.name, size_threshold=1 << 16)
    settings = onnxruntime.SessionOptions()
    settings.register_custom_ops_library(str(ops_library))
    sessions = [onnxruntime.InferenceSession(path, settings, providers=["CPUExecutionProvider"]) for _ in range(2)]
    assert f" {weights}\n" in Path("/proc/self/maps").read_text()
    assert resident_of(weights) < SIZE * SIZE / 16
    for session in sessions:
        for found, expected in zip(session.run(None, operator.feeds), operator(), strict=True):
            np.testing.assert_array_equal(found, expected)


def test_threads_leave_no_memory_behind(ops_library: Path) -> None:
    """Kernels keep memory for each thread, as long as it lives; callers' threads are among them."""
    operator = layer(ops_library, rows=64, threads=1)
    run = [operator] * (500 if in_soak() else 50)

    def in_a_thread(call: Operator) -> None:
        thread = threading.Thread(target=call)
        thread.start()
        thread.join()

    for call in run[:10]:
        in_a_thread(call)
    before = resident()
    for call in run:
        in_a_thread(call)
    assert resident() - before < 16 * MIB


def test_two_sessions_at_once(ops_library: Path) -> None:
    """Other weights, the same threads of the callers, and results as of each alone."""
    operators = [layer(ops_library, rows=rows, seed=seed) for rows, seed in ((2, 0), (6, 1))]
    expected = [operator() for operator in operators]
    wrong: list[str] = []

    def repeat(number: int) -> None:
        for turn in range(20):
            which = (number + turn) % 2
            found = operators[which]()
            if not all(np.array_equal(a, b) for a, b in zip(found, expected[which], strict=True)):
                wrong.append(f"session {which}, thread {number}, turn {turn}")

    threads = [threading.Thread(target=repeat, args=[number]) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_a_session_outlives_the_settings_and_others(ops_library: Path) -> None:
    first, second = layer(ops_library), layer(ops_library, seed=1)
    expected = second()
    del first
    gc.collect()
    for a, b in zip(expected, second(), strict=True):
        np.testing.assert_array_equal(a, b)


def test_registering_twice_does_no_harm(ops_library: Path) -> None:
    options = onnxruntime.SessionOptions()
    options.register_custom_ops_library(str(ops_library))
    other = onnxruntime.SessionOptions()
    other.register_custom_ops_library(str(ops_library))
    del options, other
    gc.collect()
    layer(ops_library)()
