"""The instruction sets that the library of operators can be tested on here."""

from __future__ import annotations

from pathlib import Path

import pytest
from operator_session import ISAS, has_instruction_set


@pytest.fixture(params=ISAS)
def isa(request: pytest.FixtureRequest, ops_library: Path) -> str:
    """Each instruction set that this processor has."""
    name: str = request.param
    if not has_instruction_set(ops_library, name):
        pytest.skip(f"this processor has no {name}")
    return name
