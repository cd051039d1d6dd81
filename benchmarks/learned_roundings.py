"""The demo model's learned roundings: which there are, and how to have them.

    python benchmarks/learned_roundings.py             compare benchmarks/roundings with recorded.json there
    python benchmarks/learned_roundings.py --restore   bring what is missing from git's history, bit for bit

The exit code is 0 if all are there with the recorded bits.
"""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import click
from safetensors.numpy import load_file

from nextscale.runtime.image_io import write_files

ROUNDINGS = Path(__file__).parent / "roundings"
RECORDED = ROUNDINGS / "recorded.json"


@dataclass(frozen=True)
class Recorded:
    """A rounding of the published figures.

    Attributes:
        commit: the last one with the file.
        sha256: of the file, whose metadata also hold the seconds that learning took.
        tensors: `tensors_sha256` of it.
        theta, places: of shift-and-sum; None without.
    """

    commit: str
    sha256: str
    tensors: str
    theta: float | None = None
    places: tuple[int, ...] | None = None


@cache
def recorded() -> dict[str, Recorded]:
    """The roundings of the published figures, by recipe."""
    document = json.loads(RECORDED.read_text(encoding="utf-8"))
    return {
        name: Recorded(document["commit"], **entry | {"places": tuple(entry["places"]) if "places" in entry else None})
        for name, entry in document["roundings"].items()
    }


def tensors_sha256(path: Path) -> str:
    """One hash of the names, dtypes, shapes and bytes of all tensors."""
    digest = hashlib.sha256()
    for name, values in sorted(load_file(path).items()):
        digest.update(f"{name} {values.dtype} {values.shape}".encode())
        digest.update(values.tobytes())
    return digest.hexdigest()


def require_rounding(path: Path) -> Path:
    """The path {recipe}.safetensors, if the file is there; otherwise the program ends with what to run for it.

    Raises:
        click.ClickException: it is not.
    """
    if not path.exists():
        learn = f"`python benchmarks/reconstruct_demo.py --recipes {path.stem}` learns it"
        restore = "`python benchmarks/learned_roundings.py --restore` brings it from git's history, "
        raise click.ClickException(f"{path}: no such file; {restore if path.stem in recorded() else ''}{learn}")
    return path


def restore(path: Path) -> None:
    """Write one recorded file as git's history has it.

    Raises:
        click.ClickException: this clone has no such commit.
    """
    entry = recorded()[path.stem]
    source = f"{entry.commit}:benchmarks/roundings/{path.name}"
    done = subprocess.run(["git", "show", source], cwd=ROUNDINGS, capture_output=True, check=False)
    if done.returncode != 0 or hashlib.sha256(done.stdout).hexdigest() != entry.sha256:
        raise click.ClickException(
            f"this clone does not have {source}; `git fetch --unshallow` brings a shallow one's history, "
            f"`python benchmarks/reconstruct_demo.py --recipes {path.stem}` learns it"
        )
    write_files({path: lambda file: file.write(done.stdout)})


def state(path: Path) -> str:
    """How a file is, compared with the recorded one."""
    entry = recorded()[path.stem]
    if not path.exists():
        return "missing"
    if hashlib.sha256(path.read_bytes()).hexdigest() == entry.sha256:
        return "as recorded"
    return "as recorded, of another run" if tensors_sha256(path) == entry.tensors else "other bits"


@click.command(help=__doc__, context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--restore", "wants_missing", is_flag=True, help="Bring missing files from git's history.")
def main(wants_missing: bool) -> None:
    paths = [ROUNDINGS / f"{name}.safetensors" for name in recorded()]
    if wants_missing:
        for path in paths:
            if not path.exists():
                restore(path)
    states = {path: state(path) for path in paths}
    for path, found in states.items():
        click.echo(f"{path.stem}: {found}")
    if "missing" in states.values():
        click.echo(
            "missing ones: `python benchmarks/learned_roundings.py --restore` brings them from git's history, "
            "`python benchmarks/reconstruct_demo.py --recipes NAME,NAME` learns them",
            err=True,
        )
    sys.exit(not all(found.startswith("as recorded") for found in states.values()))


if __name__ == "__main__":
    main()
