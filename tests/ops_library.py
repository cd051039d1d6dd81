"""The library of operators, built once from kernels/."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest
from filelock import FileLock

ROOT = Path(__file__).parents[1]
OPTIONS = ("-DNEXTSCALE_OPS_EMULATED=ON", "-DNEXTSCALE_OPS_TESTS=ON")
HEADERS = ROOT / "build" / "third_party" / "onnxruntime" / "include"


@pytest.fixture(scope="session")
def ops_library() -> Path:
    """The library with emulated tiles; NEXTSCALE_OPS_LIBRARY names one that was built elsewhere."""
    if given := os.environ.get("NEXTSCALE_OPS_LIBRARY"):
        return Path(given)
    missing = [tool for tool in ("cmake", "c++") if shutil.which(tool) is None]
    if missing or not HEADERS.is_dir():
        pytest.skip(f"nothing to build the operators with: no {missing[0] if missing else HEADERS}")
    build = ROOT / "build" / "kernels-test"
    build.mkdir(parents=True, exist_ok=True)
    with FileLock(build / "lock"):  # tests run in several processes
        for command in (
            ["cmake", "-S", str(ROOT / "kernels"), "-B", str(build), *OPTIONS],
            ["cmake", "--build", str(build), "--parallel", "2"],
        ):
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    return next(build.glob("*nextscale_ops.*[!t]"))
