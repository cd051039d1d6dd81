"""Models that packages build in PyTorch, exported in a process that sees those packages."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

from progress import log

from foreign_subjects.packages import run_program
from nextscale.runtime._outputs import atomic_folder

TOOLS = Path(__file__).parents[1] / "foreign_tools"


def export(program: str, seen: Path, folder: Path, **arguments: Any) -> Path:
    """The file that a program of foreign_tools writes, with this environment's torch; it is not written again.

    Args:
        program: its name.
        seen: a folder of packages that this environment lacks.
        folder: where model.onnx goes.
        arguments: of the program's main, beside "out".
    Raises:
        NextscaleError: it failed.
    """
    if not folder.exists():
        log(f"{program}: exporting")
        with atomic_folder(folder) as made:
            command = (sys.executable, str(TOOLS / f"{program}.py"), json.dumps({**arguments, "out": str(made)}))
            run_program(command, {**os.environ, "PYTHONPATH": os.pathsep.join([*sys.path, str(seen)])})
    return folder / "model.onnx"
