"""Reconstructed units in a folder, one file each, so that an interrupted reconstruction continues."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nextscale.calib_data._work_folder import open_work
from nextscale.runtime._errors import NextscaleError
from nextscale.runtime._npz import read_npz
from nextscale.runtime.image_io import npz_writer, write_files


@dataclass(frozen=True)
class Learned:
    """What a unit learned: bool [out, in] by layer, and figures."""

    up: Mapping[str, NDArray[np.bool_]]
    report: Mapping[str, Any] = field(default_factory=dict)


class UnitStore:
    """Finished units of one reconstruction.

    Args:
        folder: made if it is missing; None keeps nothing.
        fingerprint: plain JSON values that an earlier run in the folder must agree in.
    Raises:
        NextscaleError: the folder holds a run of another fingerprint.
        OutputError: it cannot be made.
    """

    def __init__(self, folder: Path | None, fingerprint: Mapping[str, Any]) -> None:
        self.folder = folder
        if folder is not None:
            open_work(folder, fingerprint)

    def load(self, unit: str, shapes: Mapping[str, tuple[int, ...]]) -> Learned | None:
        """What an earlier run learned; None if it did not come to this unit.

        Args:
            unit: its name.
            shapes: [out, in] of its layers.
        Raises:
            NextscaleError: what is there is damaged.
        """
        if self.folder is None or not (path := self.folder / f"{unit}.npz").exists():
            return None
        try:
            arrays = read_npz(path, (*shapes, "report"))
            report = json.loads(str(arrays.pop("report")))
        except (ValueError, RecursionError):
            report = None
        except NextscaleError as error:
            raise NextscaleError(f"{error}; remove it") from None
        if not isinstance(report, dict) or any(
            arrays[name].dtype != np.bool_ or arrays[name].shape != shape for name, shape in shapes.items()
        ):
            raise NextscaleError(f"{path}: damaged: not a unit's rounding and report; remove it")
        return Learned(arrays, report)

    def save(self, unit: str, learned: Learned) -> None:
        if self.folder is not None:
            arrays: dict[str, Any] = {**learned.up, "report": np.array(json.dumps(learned.report))}
            write_files({self.folder / f"{unit}.npz": npz_writer(arrays)})
