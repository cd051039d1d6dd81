from pathlib import Path
from typing import Any

import pytest

from nextscale.runtime._machine import Machine, describe_machine, saturation_warning


def test_isa_flags_come_from_cpuinfo(tmp_path: Path) -> None:
    cpuinfo = tmp_path / "cpuinfo"
    cpuinfo.write_text(
        "processor\t: 0\nmodel name\t: A CPU\nflags\t\t: fpu avx2 avx512_vnni amx_int8\n\nprocessor\t: 1\n"
    )
    machine = describe_machine(cpuinfo)
    assert (machine.cpu, machine.isa) == ("A CPU", ("avx2", "avx512_vnni", "amx_int8"))
    assert machine.has_int8_dot


def test_a_machine_without_cpuinfo_is_described_too(tmp_path: Path) -> None:
    machine = describe_machine(tmp_path / "none")
    assert machine.isa == ()
    assert not machine.has_int8_dot
    assert machine.logical_cpus >= 1


VNNI, AVX2 = ("avx2", "avx512_vnni"), ("avx2", "avx512f")


@pytest.mark.parametrize(
    ("isa", "saturates"),
    [(VNNI, False), (AVX2, True), ((), False), (("asimddp",), False), (("avx2", "amx_int8"), False)],
)
def test_avx2_without_vnni_saturates(isa: tuple[str, ...], saturates: bool) -> None:
    assert Machine("A CPU", isa, 4, "Linux").saturates == saturates


INTEGER = {"name": "mine", "precision": "int8"}


@pytest.mark.parametrize(
    ("recipe", "isa", "warned"),
    [
        (INTEGER, AVX2, True),
        (INTEGER, VNNI, False),
        (INTEGER, (), False),
        ({"name": "mine"}, AVX2, False),
        ({**INTEGER, "saturation": {"products": 2, "can_saturate": {}}}, AVX2, False),
        ({**INTEGER, "saturation": {"products": 2, "can_saturate": {"head.weight": {}}}}, AVX2, True),
        ({**INTEGER, "saturation": "never"}, AVX2, True),
    ],
)
def test_a_cpu_that_saturates_is_named(recipe: dict[str, Any], isa: tuple[str, ...], warned: bool) -> None:
    warning = saturation_warning(recipe, Machine("Old CPU", isa, 4, "Linux"))
    assert (warning is not None) == warned
    assert warning is None or ("Old CPU has no VNNI" in warning and "--reduce-range" in warning)
