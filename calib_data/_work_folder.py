"""Folders that keep finished work: what began in one goes on with the same settings, and with no others."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from nextscale.runtime._errors import NextscaleError, OutputError
from nextscale.runtime._scratch import remove_left_scratch
from nextscale.runtime.image_io import write_files

SETTINGS = "settings.json"
NAMED = 3  # differing settings that a refusal names


def open_work(folder: Path, settings: Mapping[str, Any]) -> bool:
    """Begin in a new folder, or go on in one of the same settings.

    Args:
        folder: made when missing, with its `SETTINGS`.
        settings: plain JSON values, nested at will, that an earlier run there must have had.
    Returns:
        Whether an earlier run is gone on with.
    Raises:
        NextscaleError: the folder has other settings, damaged ones or none.
        OutputError: it cannot be written.
    """
    path = folder / SETTINGS
    text = json.dumps(settings, indent=1) + "\n"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        remove_left_scratch(folder)
        resumed = any(folder.iterdir())
    except OSError as error:
        raise OutputError(f"{folder}: cannot be made ({error.strerror}); choose another --out") from None
    if not resumed:
        write_files({path: lambda file: file.write(text.encode())})
        return False
    try:
        found = _flat(json.loads(path.read_bytes()))
    except (OSError, ValueError, AttributeError, RecursionError):
        found = None
    if found is None:
        state = "damaged" if path.exists() else "missing"
        raise NextscaleError(f"{path}: {state}; remove {folder} or choose another --out")
    differing = differences(found, _flat(json.loads(text)))
    if differing:
        further = f" and {len(differing) - NAMED} more" if len(differing) > NAMED else ""
        raise NextscaleError(
            f"{folder}: was begun with {', '.join(differing[:NAMED])}{further}; give the same again to go on, or "
            "remove it to begin again"
        )
    return True


def differences(found: Mapping[str, Any], expected: Mapping[str, Any]) -> list[str]:
    """One text for each key whose values are not the same: "weights.bits 4 instead of 6"."""
    return [
        f"{key} {found.get(key, 'unset')} instead of {expected.get(key, 'unset')}"
        for key in {**expected, **found}
        if found.get(key) != expected.get(key)
    ]


def _flat(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """{"recipe": {"weights": {"bits": 4}}} as {"recipe.weights.bits": 4}."""
    found = dict[str, Any]()
    for key, value in settings.items():
        found |= _flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {prefix + key: value}
    return found
