"""Lay out ONNX Runtime's headers and library as its release archive does, from package registries alone.

    python examples/cpp/fetch_onnxruntime.py OUT

The headers come from an npm package (API 29, good for release 1.29 or later), the library from the onnxruntime that
this Python has installed, so that C++ and Python run the same release. With the official release archive at hand, use
that instead. Linux only.
"""

import argparse
import hashlib
import importlib.util
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

PACKAGE = "com.github.asus4.onnxruntime@0.4.9"
SHA256 = "e59788788818fdde1b2e522e766a21ba0f7d8391de55737abf81e32cc801785d"
HEADERS = "package/Plugins/iOS~/onnxruntime.xcframework/ios-arm64/onnxruntime.framework/Headers/"
LICENCE = "package/LICENSE"


def fetch(out: Path) -> None:
    """Write out/include and out/lib; whatever was at `out` is replaced when both are complete."""
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}.") as name:
        folder = Path(name)
        made = folder / "onnxruntime"
        _extract_headers(_pack(folder), made / "include")
        _copy_library(made / "lib")
        if out.exists():
            out.rename(folder / "old")
        made.rename(out)


def _pack(folder: Path) -> Path:
    npm = shutil.which("npm")
    if npm is None:
        sys.exit("error: npm is needed to fetch the headers; install it, or give CMake the official release archive")
    command = [npm, "pack", "--silent", "--pack-destination", str(folder), PACKAGE]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    packed = list(folder.glob("*.tgz"))
    if done.returncode or len(packed) != 1:
        reason = (done.stderr.strip().splitlines() or ["no package came"])[-1]
        sys.exit(f"error: npm pack {PACKAGE} failed: {reason}")
    digest = hashlib.sha256(packed[0].read_bytes()).hexdigest()
    if digest != SHA256:
        sys.exit(f"error: {PACKAGE}: sha256 {digest}, expected {SHA256}: not the package that this script knows")
    return packed[0]


def _extract_headers(archive: Path, include: Path) -> None:
    include.mkdir(parents=True)
    with tarfile.open(archive) as package:
        for member in package:
            folder, _, name = member.name.rpartition("/")
            if member.isfile() and (f"{folder}/" == HEADERS or member.name == LICENCE):
                content = package.extractfile(member)
                assert content is not None
                (include / name).write_bytes(content.read())
    if not (include / "onnxruntime_cxx_api.h").is_file():
        sys.exit(f"error: {PACKAGE} has no onnxruntime_cxx_api.h")


def _copy_library(lib: Path) -> None:
    spec = importlib.util.find_spec("onnxruntime")
    if spec is None or spec.origin is None:
        sys.exit(f"error: {sys.executable} has no onnxruntime: pip install onnxruntime")
    libraries = list((Path(spec.origin).parent / "capi").glob("libonnxruntime.so.*"))
    if len(libraries) != 1:
        sys.exit(f"error: {Path(spec.origin).parent} has {len(libraries)} libonnxruntime.so.*, expected one")
    lib.mkdir()
    shutil.copyfile(libraries[0], lib / libraries[0].name)
    # The names under which a linker and a loader look for it.
    for name in ("libonnxruntime.so.1", "libonnxruntime.so"):
        os.symlink(libraries[0].name, lib / name)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("out", type=Path, metavar="OUT", help="the folder to make; CMake's ONNXRUNTIME_ROOT")
    out = parser.parse_args().out.absolute()
    fetch(out)
    print(out)


if __name__ == "__main__":
    main()
