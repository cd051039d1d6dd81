"""kernels_check (kernels/tests) in every way that this machine can build and run it, some seconds each.

python benchmarks/kernels_soak.py [--seconds N]
"""

from __future__ import annotations

import secrets
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import click

ROOT = Path(__file__).parents[1]
ARM = ("-DCMAKE_SYSTEM_NAME=Linux", "-DCMAKE_SYSTEM_PROCESSOR=aarch64", "-DCMAKE_CXX_COMPILER=aarch64-linux-gnu-g++")
QEMU_ARM = ("qemu-aarch64", "-L", "/usr/aarch64-linux-gnu")
SANITIZERS = ("-DCMAKE_CXX_FLAGS_RELEASE=-O1",)


@dataclass(frozen=True)
class Flavor:
    """A way to build kernels_check, and to run it.

    Attributes:
        name: for people, and of the build's folder.
        options: of CMake.
        runner: what runs the program, before its arguments.
        needs: programs that must be there.
    """

    name: str
    options: tuple[str, ...] = ()
    runner: tuple[str, ...] = ()
    needs: tuple[str, ...] = ()


FLAVORS = (
    Flavor("gcc", ("-DCMAKE_CXX_COMPILER=g++",), needs=("g++",)),
    Flavor("clang", ("-DCMAKE_CXX_COMPILER=clang++",), needs=("clang++",)),
    Flavor("address and undefined", ("-DNEXTSCALE_OPS_SANITIZE=address,undefined", *SANITIZERS)),
    Flavor("thread", ("-DNEXTSCALE_OPS_SANITIZE=thread", *SANITIZERS)),
    Flavor("arm", ARM, QEMU_ARM, ("aarch64-linux-gnu-g++", "qemu-aarch64")),
    Flavor("before AVX", (), ("qemu-x86_64", "-cpu", "Nehalem"), ("qemu-x86_64",)),
    Flavor("AVX2", (), ("qemu-x86_64", "-cpu", "Haswell"), ("qemu-x86_64",)),
)


def soak(seconds: float) -> Iterator[tuple[str, bool | None, str]]:
    """Build and run each flavor.

    Yields:
        its name; whether all was the same, or None where it was not run; the seed and the instruction sets, or what
        failed or is missing.
    """
    for flavor in FLAVORS:
        missing = [tool for tool in ("cmake", *flavor.needs) if shutil.which(tool) is None]
        if missing:
            yield flavor.name, None, f"not run: no {missing[0]} here"
            continue
        build = ROOT / "build" / "kernels-soak" / "-".join(flavor.name.split() if flavor.options else ["plain"])
        options = ("-DNEXTSCALE_OPS_TESTS=ON", "-DNEXTSCALE_OPS_EMULATED=ON", *flavor.options)
        program = [*flavor.runner, str(build / "kernels_check")]
        for command in (
            ["cmake", "-S", str(ROOT / "kernels"), "-B", str(build), *options],
            ["cmake", "--build", str(build), "--target", "kernels_check", "--parallel", "2"],
            [*program, "--seconds", str(seconds), "--seed", str(secrets.randbelow(10**9))],
        ):
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode != 0:
                yield flavor.name, False, " ".join((done.stderr or done.stdout).split())[-500:]
                break
        else:
            seed, *cases = done.stdout.splitlines()
            yield flavor.name, True, f"{seed}; {cases[-1].partition(': ')[2]} of each kernel"


@click.command(help=__doc__, context_settings={"help_option_names": ["-h", "--help"], "show_default": True})
@click.option("--seconds", default=60.0, help="Of each flavor, after its build.")
def main(seconds: float) -> None:
    failed = False
    for name, passed, detail in soak(seconds):
        print(f"{name}: {detail}", flush=True)
        failed |= passed is False
    sys.exit(failed)


if __name__ == "__main__":
    main()
