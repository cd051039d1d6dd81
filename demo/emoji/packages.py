"""The npm packages that pictures and words come from, pinned by version and hash, and their files."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import tarfile
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nextscale.runtime._errors import NextscaleError


@dataclass(frozen=True)
class Package:
    """A release of an npm package; `sha256` is of its archive."""

    name: str
    version: str
    sha256: str

    @property
    def archive(self) -> str:
        """The file name that npm gives the archive."""
        return f"{self.name.removeprefix('@').replace('/', '-')}-{self.version}.tgz"

    def __str__(self) -> str:
        return f"{self.name}@{self.version}"


ICONS = Package("@iconify/json", "2.2.535", "1a545f86fa224d6531d8fb101dcbe83aac2b28689a21cbed6fc68318a5af4d91")
FLUENT_3D = Package(
    "@lobehub/fluent-emoji-3d", "1.1.0", "c1bb7eee7de090205a232518a9ab4adb3df458bfbe8a1f78232991194c8b2e58"
)
NAMES = Package("emojibase-data", "17.0.0", "d01d0e2ca4e22cb402679532155342c71e2e871f25c32223c013b8b166ebdf5a")


def fetch(package: Package, cache: Path) -> Path:
    """The package's archive in a folder, downloaded by npm if it is not there.

    Raises:
        NextscaleError: npm is missing or fails, or the archive is another than the pinned one.
    """
    path = cache / package.archive
    if not path.exists():
        cache.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=cache) as folder:
            _pack(package, folder).rename(path)
    found = hashlib.sha256(path.read_bytes()).hexdigest()
    if found != package.sha256:
        raise NextscaleError(f"{path}: sha256 {found}, expected {package.sha256} of {package}; delete it and try again")
    return path


def _pack(package: Package, folder: str) -> Path:
    npm = shutil.which("npm")
    if npm is None:
        raise NextscaleError(f"npm is needed to fetch {package}; install it")
    command = [npm, "pack", "--loglevel", "error", "--ignore-scripts", "--pack-destination", folder, str(package)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    path = Path(folder, package.archive)
    if done.returncode or not path.exists():
        reason = "; ".join(done.stderr.strip().splitlines()[:2]) or "no package came"
        raise NextscaleError(f"npm pack {package} failed: {reason}")
    return path


def files(archive: Path, wanted: Callable[[str], bool]) -> Iterator[tuple[str, bytes]]:
    """Names within the package, and contents, of the files that are wanted, in the archive's order."""
    with tarfile.open(archive) as content:
        for member in content:
            name = member.name.partition("/")[2]
            if member.isfile() and wanted(name):
                file = content.extractfile(member)
                assert file is not None
                yield name, file.read()


def json_files(archive: Path, names: set[str]) -> dict[str, Any]:
    """Some of a package's JSON files by their names.

    Raises:
        NextscaleError: one is missing.
    """
    found = {name: json.loads(text) for name, text in files(archive, names.__contains__)}
    if missing := sorted(names - found.keys()):
        raise NextscaleError(f"{archive} has no {missing[0]}")
    return found
