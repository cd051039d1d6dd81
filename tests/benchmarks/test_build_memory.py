"""benchmarks/build_memory.py: memory of a process and its children by the steps that it prints, and the report."""

from __future__ import annotations

import sys
from collections.abc import Callable
from types import ModuleType

import pytest

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
MB = 10**6
# Steps of a build that holds 200 MB in its second one, 120 of them in a process that it starts.
BUILD = """
import subprocess, sys, time
print("weights 1000000"); print("one", flush=True); time.sleep(0.5)
print("two", flush=True); held = bytearray(80_000_000); held[::4096] = b"x" * len(held[::4096])
code = "import time; held = bytearray(120_000_000); held[::4096] = b'x' * len(held[::4096]); time.sleep(1.5)"
subprocess.run([sys.executable, "-c", code]); del held
print("three", flush=True); time.sleep(0.5)
print({end!r}, flush=True)
"""


@pytest.fixture(scope="module")
def build_memory(program: Callable[[str], ModuleType]) -> ModuleType:
    return program("build_memory")


def test_memory_is_that_of_the_step_and_of_what_it_started(build_memory: ModuleType) -> None:
    weights, steps = build_memory.watch([sys.executable, "-c", BUILD.format(end="built")])
    assert weights == MB
    assert [step.name for step in steps] == ["filling the model", "one", "two", "three"]
    _, one, two, three = steps
    assert 200 * MB < two.anonymous - one.anonymous < 300 * MB
    assert abs(three.anonymous - one.anonymous) < 20 * MB
    for step in steps[1:]:
        assert step.anonymous + step.from_files >= step.resident > step.anonymous > 0
        assert step.from_files > 0
    assert two.seconds > 1.4
    assert two.begin < three.begin


def test_a_build_that_ends_early_is_told(build_memory: ModuleType) -> None:
    with pytest.raises(SystemExit, match="the build failed in step: three"):
        build_memory.watch([sys.executable, "-c", BUILD.format(end="three")])


def test_the_report_names_both_peaks(build_memory: ModuleType) -> None:
    settings = build_memory.Settings("infinity-2b", "0.06M", "default", 2, False, True, 2, "out")
    steps = [
        build_memory.Step("writing", 0.0, 10.0, 3 * 10**9, 8 * 10**9, 10 * 10**9),
        build_memory.Step("comparing", 10.0, 20.0, 5 * 10**9, 1 * 10**9, 6 * 10**9),
    ]
    lines = build_memory.report(settings, 4 * 10**9, steps)
    assert "- peak of resident memory: 10.00 GB, 2.50 of the weights (writing)" in lines
    assert "- peak of anonymous memory: 5.00 GB, 1.25 of the weights (comparing)" in lines
    assert "- built with 2 images of calibration, with the encoder" in lines
    assert lines[-1] == "| comparing | 10 | 20 | 5.00 | 1.00 | 6.00 |"
