"""What a figure was measured on: CPU, instruction sets, versions."""

import os
import platform
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnxruntime

from nextscale import __version__

# The integer and wide float instruction sets that decide which kernels ONNX Runtime takes.
_ISA = ("avx2", "avx_vnni", "avx512f", "avx512_vnni", "avx512_bf16", "amx_int8", "amx_bf16", "asimddp", "i8mm")
_CPUINFO = Path("/proc/cpuinfo")
_TOPOLOGY = Path("/sys/devices/system/cpu")


@dataclass(frozen=True)
class Machine:
    """The computer; `isa` holds those of the instruction sets that matter here, by Linux's names."""

    cpu: str
    isa: tuple[str, ...]
    logical_cpus: int
    system: str

    @property
    def has_int8_dot(self) -> bool:
        """Whether u8 x s8 products are exact and fast; without it they may saturate."""
        return any(name in self.isa for name in ("avx_vnni", "avx512_vnni", "amx_int8", "asimddp"))


def describe_machine(cpuinfo: Path = _CPUINFO) -> Machine:
    """This machine, as far as the operating system tells."""
    fields: dict[str, str] = {}
    if cpuinfo.is_file():
        for line in cpuinfo.read_text().splitlines():
            key, _, value = line.partition(":")
            fields.setdefault(key.strip(), value.strip())
    flags = set((fields.get("flags") or fields.get("Features") or "").split())
    return Machine(
        cpu=fields.get("model name") or platform.processor() or platform.machine(),
        isa=tuple(name for name in _ISA if name in flags),
        logical_cpus=len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1,
        system=f"{platform.system()} {platform.release()}",
    )


def physical_cpus(topology: Path = _TOPOLOGY) -> list[int]:
    """One logical CPU of each core that this process may run on, in order; all it may, where nobody tells.

    Args:
        topology: Linux's folder of CPUs.
    """
    if not hasattr(os, "sched_getaffinity"):
        return list(range(os.cpu_count() or 1))
    found: dict[str, int] = {}
    for cpu in sorted(os.sched_getaffinity(0)):
        siblings = topology / f"cpu{cpu}" / "topology" / "thread_siblings_list"
        found.setdefault(siblings.read_text().strip() if siblings.is_file() else str(cpu), cpu)
    return sorted(found.values())


def saturation_warning(recipe: str, machine: Machine | None = None) -> str | None:
    """A line for users of an integer bundle on a CPU whose u8 x s8 products may saturate; None where all is well.

    Without VNNI, x86 adds pairs of products in 16 bits (vpmaddubsw), which large codes overflow.
    """
    machine = machine or describe_machine()
    if recipe == "fp32" or machine.has_int8_dot:
        return None
    return (
        f"warning: {machine.cpu} has no VNNI instructions: integer products may saturate there, and pictures suffer; "
        "`nextscale verify` tells how much"
    )


def versions() -> dict[str, str]:
    """The versions that decide speed and rounding."""
    return {
        "nextscale": __version__,
        "onnxruntime": onnxruntime.__version__,
        "numpy": np.__version__,
        "python": platform.python_version(),
    }
