"""Tests on CPUs without VNNI, where ONNX Runtime's u8 x s8 products saturate (evaluate/saturation.py)."""

from nextscale.runtime._machine import describe_machine

SATURATES = describe_machine().saturates


def without_warning(stderr: str) -> str:
    """What a program wrote to stderr besides the line that warns of such a CPU."""
    return "".join(line for line in stderr.splitlines(keepends=True) if "has no VNNI instructions" not in line)
