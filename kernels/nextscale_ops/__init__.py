"""The fused operators of nextscale, a library of custom operators for ONNX Runtime.

    options = onnxruntime.SessionOptions()
    options.register_custom_ops_library(str(nextscale_ops.library_path()))

Needs nothing but the library that lies beside this file.
"""

import ctypes
from functools import cache
from pathlib import Path

__all__ = ["isa", "library_path", "version"]

_NAMES = ("libnextscale_ops.so", "libnextscale_ops.dylib", "nextscale_ops.dll")


def library_path() -> Path:
    """The library's file, for `SessionOptions.register_custom_ops_library`.

    Raises:
        FileNotFoundError: the package was installed without it.
    """
    folder = Path(__file__).parent
    for name in _NAMES:
        if (folder / name).is_file():
            return folder / name
    raise FileNotFoundError(f"{folder}: no {_NAMES[0]} here; install nextscale-ops again")


def version() -> int:
    """The version of the operators; a bundle's manifest says which one its fused graphs need."""
    found: int = _library().nextscale_ops_version()
    return found


def isa() -> str | None:
    """The instruction set that kernels made from now on use, such as "avx512_vnni".

    NEXTSCALE_OPS_ISA forces one; None if it names none that this processor has.
    """
    of_library = _library().nextscale_ops_isa
    of_library.restype = ctypes.c_char_p
    name: bytes | None = of_library()
    return None if name is None else name.decode()


@cache
def _library() -> ctypes.CDLL:
    return ctypes.CDLL(str(library_path()))
