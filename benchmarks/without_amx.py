"""Run a command on a Xeon with AMX as if it had VNNI alone.

    python benchmarks/without_amx.py nextscale table-c --threads 2

Linux lends a process the tiles when it asks for them (arch_prctl, ARCH_REQ_XCOMP_PERM). A seccomp filter refuses that
to the command and all that it starts, so that ONNX Runtime, oneDNN and nextscale-ops take the kernels of a processor
without AMX; oneDNN, which OpenVINO and PyTorch multiply by, is told so as well. /proc/cpuinfo, and reports that read
it, still name AMX. Bfloat16 products outside the tiles stay.
"""

from __future__ import annotations

import ctypes
import os
import platform
import struct
import sys

ARCH_PRCTL, REQUEST_PERMISSION = 158, 0x1023
SET_SECCOMP, FILTER, SET_NO_NEW_PRIVILEGES = 22, 2, 38
ALLOW, REFUSE = 0x7FFF0000, 0x00050001  # the latter with EPERM
AUDIT_ARCH_X86_64 = 0xC000003E
LOAD, EQUALS, RETURN = 0x20, 0x15, 0x06  # of classic BPF: a word, a jump, an end
SYSTEM_CALL, ARCHITECTURE, FIRST_ARGUMENT = 0, 4, 16  # offsets in struct seccomp_data

PROGRAM = (  # operation, jumps where equal and where not, operand
    (LOAD, 0, 0, ARCHITECTURE),
    (EQUALS, 0, 5, AUDIT_ARCH_X86_64),
    (LOAD, 0, 0, SYSTEM_CALL),
    (EQUALS, 0, 3, ARCH_PRCTL),
    (LOAD, 0, 0, FIRST_ARGUMENT),
    (EQUALS, 0, 1, REQUEST_PERMISSION),
    (RETURN, 0, 0, REFUSE),
    (RETURN, 0, 0, ALLOW),
)


class _Filter(ctypes.Structure):
    """struct sock_fprog"""

    _fields_ = (("length", ctypes.c_ushort), ("program", ctypes.c_char_p))


def refuse_tiles() -> None:
    """Refuse AMX to this process from now on, and to all that it starts.

    Raises:
        OSError: the system refuses the filter.
    """
    code = b"".join(struct.pack("HBBI", *instruction) for instruction in PROGRAM)
    libc = ctypes.CDLL(None, use_errno=True)
    for arguments in (
        (SET_NO_NEW_PRIVILEGES, 1, 0, 0, 0),
        (SET_SECCOMP, FILTER, ctypes.byref(_Filter(len(PROGRAM), code))),
    ):
        if libc.prctl(*arguments):
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


def main() -> None:
    if len(sys.argv) < 2 or sys.argv[1].startswith("-"):
        sys.exit(__doc__)
    if platform.system() != "Linux" or platform.machine() != "x86_64":
        sys.exit("error: AMX is refused by a filter of Linux on x86-64, which this is not")
    try:
        refuse_tiles()
    except OSError as error:
        sys.exit(f"error: the system takes no filter of system calls: {error.strerror}")
    os.environ["ONEDNN_MAX_CPU_ISA"] = "AVX512_CORE_BF16"
    try:
        os.execvp(sys.argv[1], sys.argv[1:])
    except OSError as error:
        sys.exit(f"error: {sys.argv[1]}: {error.strerror}")


if __name__ == "__main__":
    main()
