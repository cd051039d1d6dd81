"""The computer: its CPU and instruction sets, and whether integer products are exact on it."""

import platform
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nextscale.runtime._cpus import logical_cpus

# The integer and wide float instruction sets that decide which kernels ONNX Runtime takes.
_ISA = ("avx2", "avx_vnni", "avx512f", "avx512_vnni", "avx512_bf16", "amx_int8", "amx_bf16", "asimddp", "i8mm")
CPUINFO = Path("/proc/cpuinfo")


@dataclass(frozen=True)
class Machine:
    """The computer.

    Attributes:
        cpu: its name.
        isa: those of the instruction sets that matter here, by Linux's names.
        logical_cpus: those that this process may run on, and no more than its quota of CPU time, rounded up.
        system: the operating system and its release.
    """

    cpu: str
    isa: tuple[str, ...]
    logical_cpus: int
    system: str

    @property
    def has_int8_dot(self) -> bool:
        """Whether there are instructions for u8 x s8 products, which are exact and fast."""
        return any(name in self.isa for name in ("avx_vnni", "avx512_vnni", "amx_int8", "asimddp"))

    @property
    def saturates(self) -> bool:
        """Whether ONNX Runtime adds pairs of u8 x s8 products in 16 bits (vpmaddubsw), which large codes exceed."""
        return "avx2" in self.isa and not self.has_int8_dot


def describe_machine(cpuinfo: Path | None = None) -> Machine:
    """This machine, as far as the operating system tells."""
    cpuinfo = cpuinfo or CPUINFO
    fields: dict[str, str] = {}
    if cpuinfo.is_file():
        for line in cpuinfo.read_text().splitlines():
            key, _, value = line.partition(":")
            fields.setdefault(key.strip(), value.strip())
    flags = set((fields.get("flags") or fields.get("Features") or "").split())
    return Machine(
        cpu=fields.get("model name") or platform.processor() or platform.machine(),
        isa=tuple(name for name in _ISA if name in flags),
        logical_cpus=logical_cpus(),
        system=f"{platform.system()} {platform.release()}",
    )


def saturation_warning(recipe: Mapping[str, Any], machine: Machine | None = None) -> str | None:
    """A line for users of an integer bundle on a CPU whose u8 x s8 products saturate; None where all is well.

    Args:
        recipe: of the bundle's manifest; one that a build found never to saturate is well everywhere.
        machine: this one if it is not told.
    """
    found = recipe.get("saturation")
    if recipe.get("precision") != "int8" or (isinstance(found, dict) and found.get("can_saturate") == {}):
        return None
    machine = machine or describe_machine()
    if not machine.saturates:
        return None
    return (
        f"{machine.cpu} has no VNNI instructions: integer products saturate there, and pictures suffer; "
        "`nextscale evaluate` tells how much; a bundle built with --reduce-range is exact, and so are fused operators"
    )
