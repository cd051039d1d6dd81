"""nextscale-ops as it is handed on: what its library shows and hides, its Python package, its wheel."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import venv
from pathlib import Path

import numpy as np
import pytest
from operator_session import Operator
from soak import in_soak

ROOT = Path(__file__).parents[2]
KERNELS = ROOT / "kernels"
HEADERS = ROOT / "build" / "third_party" / "onnxruntime" / "include"
USE = """
import sys
import numpy as np
import nextscale_ops
import onnxruntime

options = onnxruntime.SessionOptions()
options.register_custom_ops_library(str(nextscale_ops.library_path()))
session = onnxruntime.InferenceSession(sys.argv[1], options, providers=["CPUExecutionProvider"])
x = np.arange(24, dtype=np.float32).reshape(1, 2, 12)
[codes] = session.run(None, {"x": x, "scale": np.float32([2]), "zero_point": np.uint8([1])})
print(codes.ravel().tolist())
"""
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


def quantize(library: Path) -> Operator:
    x = np.arange(24, dtype=np.float32).reshape(1, 2, 12)
    inputs = {"x": x, "scale": np.float32([2]), "zero_point": np.uint8([1])}
    return Operator(library, "Quantize", inputs, ["codes"], ranges="static")


def test_the_installed_package_runs_an_operator() -> None:
    """What `make ops` installs."""
    nextscale_ops = pytest.importorskip("nextscale_ops")
    [codes] = quantize(nextscale_ops.library_path())()
    assert codes.ravel().tolist() == [int(np.rint(i / 2)) + 1 for i in range(24)]


@pytest.mark.skipif(not in_soak(), reason="takes minutes and a network: for make soak")
def test_a_wheel_for_older_systems_runs_in_an_environment_of_its_own(ops_library: Path, tmp_path: Path) -> None:
    build = [sys.executable, str(KERNELS / "build_wheel.py"), str(tmp_path / "dist"), "--headers", str(HEADERS)]
    done = subprocess.run(build, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    _, wheel = done.stdout.split()
    assert re.fullmatch(
        r"nextscale_ops-[\d.]+-py3-none-manylinux_2_\d+_\w+(\.manylinux_2_28_\w+)?\.whl", Path(wheel).name
    )
    venv.create(tmp_path / "environment", with_pip=True)
    python = str(tmp_path / "environment" / "bin" / "python")
    subprocess.run([python, "-m", "pip", "install", "--quiet", wheel, "onnxruntime"], check=True)
    model = tmp_path / "model.onnx"
    model.write_bytes(quantize(ops_library).model.SerializeToString())
    done = subprocess.run([python, "-c", USE, str(model)], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, f"{[int(np.rint(i / 2)) + 1 for i in range(24)]}\n"), done.stderr
