"""nextscale-ops as it is handed on: what its library shows and hides, its Python package, its wheel."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
KERNELS = ROOT / "kernels"
CALLS = "import nextscale_ops as ops; print(ops.library_path(), ops.version(), ops.isa())"


@pytest.fixture
def package(ops_library: Path, tmp_path: Path) -> Path:
    """A folder with the Python package and its library, as a wheel has them."""
    shutil.copytree(KERNELS / "nextscale_ops", tmp_path / "nextscale_ops")
    shutil.copy(ops_library, tmp_path / "nextscale_ops" / "libnextscale_ops.so")
    return tmp_path


def run(folder: Path, isa: str = "") -> subprocess.CompletedProcess[str]:
    variables = {**os.environ, "NEXTSCALE_OPS_ISA": isa, "PYTHONPATH": str(folder)}
    return subprocess.run([sys.executable, "-c", CALLS], env=variables, capture_output=True, text=True, check=False)


def symbols(path: Path, *options: str) -> list[tuple[str, str]]:
    """Kind and name of each."""
    if shutil.which("nm") is None:
        pytest.skip("no nm here")
    done = subprocess.run(["nm", "-C", *options, str(path)], capture_output=True, text=True, check=True)
    found = [re.fullmatch(r"[0-9a-f ]+ (\w) (.+)", line) for line in done.stdout.splitlines()]
    return [(match[1], match[2]) for match in found if match]


def test_the_package_tells_its_library(package: Path) -> None:
    done = run(package, "portable")
    assert (done.stderr, done.stdout) == ("", f"{package}/nextscale_ops/libnextscale_ops.so 1 portable\n")
    assert run(package, "vax").stdout.endswith(" 1 None\n")


def test_a_package_without_its_library_says_so(package: Path) -> None:
    (package / "nextscale_ops" / "libnextscale_ops.so").unlink()
    done = run(package)
    assert "no libnextscale_ops.so here; install nextscale-ops again" in done.stderr


def test_the_library_shows_its_three_functions_alone(ops_library: Path) -> None:
    names = {name for _, name in symbols(ops_library, "--dynamic", "--defined-only")}
    assert names == {"RegisterCustomOps", "nextscale_ops_version", "nextscale_ops_isa"}


def test_no_code_of_an_instruction_set_can_be_taken_for_anothers(ops_library: Path) -> None:
    """A linker keeps one of several weak functions of a name, be it made of instructions that a processor lacks."""
    objects = list(ops_library.parent.glob("**/src/isa/*.o"))
    if not objects:
        pytest.skip("this library was built elsewhere")
    for path in objects:
        weak = {name for kind, name in symbols(path) if kind in "WVu"}
        assert weak <= {"DW.ref.__gxx_personality_v0"}, path.name  # an address, of what unwinds the stack


def test_one_version_and_one_licence() -> None:
    project = (KERNELS / "pyproject.toml").read_text()
    cmake = (KERNELS / "CMakeLists.txt").read_text()
    [version] = re.findall(r'^version = "(.+)"$', project, re.MULTILINE)
    assert re.findall(r"^project\(\w+ VERSION (\S+) ", cmake, re.MULTILINE) == [version]
    assert (KERNELS / "LICENSE").read_bytes() == (ROOT / "LICENSE").read_bytes()


@pytest.mark.skipif(shutil.which("cmake") is None, reason="no cmake here")
def test_without_headers_cmake_says_what_to_do(tmp_path: Path) -> None:
    """As from an sdist that was packed without them."""
    sources = shutil.copytree(KERNELS, tmp_path / "kernels")
    command = ["cmake", "-S", str(sources), "-B", str(tmp_path / "build"), "-DCMAKE_SYSTEM_PREFIX_PATH=/nowhere"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert "give the folder of ONNX Runtime's headers as -DONNXRUNTIME_INCLUDE" in " ".join(done.stderr.split())
