"""Memory or threads that end inside ONNX Runtime are one line that says so, at load and at a run."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from nextscale.runtime._session import first_line, is_shortage

# With so many bytes more than the process has when all is imported, and after loading if it shall load. In a thread of
# its own, where a call into ONNX Runtime needs no other.
PROGRAM = """
import re, resource, sys, threading
from nextscale.runtime import Generator, NextscaleError, SessionOptions
bundle, extra, load, arena, images, in_main = sys.argv[1], *map(int, sys.argv[2:])
generator = Generator(bundle, SessionOptions(threads=1, memory_arena=bool(arena)))
if load:
    generator.load("generate")
def generate():
    with open("/proc/self/status") as status:
        has = int(re.search(r"VmData:\\s+(\\d+)", status.read())[1]) * 1024
    resource.setrlimit(resource.RLIMIT_DATA, (has + extra,) * 2)
    try:
        generator.generate([1] * images)
    except NextscaleError as error:
        print(type(error).__name__, error)
if in_main:
    generate()
else:
    thread = threading.Thread(target=generate)
    thread.start()
    thread.join()
"""


def short_of_memory(
    bundle: Path, extra: int, load: bool, arena: bool = True, images: int = 1, in_main: bool = False
) -> str:
    command = [sys.executable, "-c", PROGRAM, bundle, extra, int(load), int(arena), images, int(in_main)]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False)
    assert done.stderr == ""
    return done.stdout


@pytest.mark.parametrize("arena", [True, False])
def test_a_run_without_memory(fake_bundle: Path, arena: bool) -> None:
    line = short_of_memory(fake_bundle, 20 << 20, load=True, arena=arena, images=20_000)
    found = re.fullmatch(r"NextscaleError \S+generate\.onnx: onnxruntime failed: out of memory: (.*) need less\n", line)
    assert found is not None, line
    assert found[1] == "fewer images at a time, fewer threads or no memory arena"


def test_loading_without_memory_is_no_fault_of_the_bundle(fake_bundle: Path) -> None:
    # How much a load takes beyond what Python holds already differs between systems.
    left = (3 << 19, 1 << 20, 3 << 18, 1 << 19)
    line = next(line for extra in left if (line := short_of_memory(fake_bundle, extra, load=False)))
    assert re.fullmatch(r"NextscaleError \S+: onnxruntime \S+ cannot load it: out of memory: [^\n]+\n", line), line


def test_where_no_thread_can_be_started_the_main_thread_works(fake_bundle: Path) -> None:
    line = short_of_memory(fake_bundle, 1 << 18, load=False, in_main=True)
    assert re.fullmatch(r"NextscaleError [^\n]*: out of memory: [^\n]+\n", line), line


def test_the_command_line_says_it_in_one_line(fp32_bundle: Path, tmp_path: Path) -> None:
    limit = f"import resource; resource.setrlimit(resource.RLIMIT_DATA, ({300 << 20},) * 2); "
    run = "import sys; from nextscale.cli.main import main; sys.exit(main())"
    request = ["--class", "1", "--count", "4000", "--batch", "4000", "--threads", "1", "--out", tmp_path / "a.png"]
    command = [sys.executable, "-c", limit + run, "generate", fp32_bundle, *request]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert re.fullmatch(r"error: [^\n]*out of memory[^\n]*need less\n", done.stderr), done.stderr
    assert done.stdout == ""
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("message", "line"),
    [
        (
            "[ONNXRuntimeError] : 6 : RUNTIME_EXCEPTION : Exception during initialization: std::bad_alloc",
            "out of memory:",
        ),
        ("bfc_arena.cc:360 Failed to allocate memory for requested buffer of size 512000", "out of memory:"),
        (
            "PosixThread pthread_create failed, error code: 11 error msg: Resource temporarily",
            "the system starts no more",
        ),
    ],
)
def test_what_onnxruntime_says_of_a_shortage(message: str, line: str) -> None:
    error = RuntimeError(message)
    assert is_shortage(error)
    assert first_line(error).startswith(line)
    assert not is_shortage(RuntimeError("Invalid rank for input: class_labels"))
