"""Token maps as a folder: what calibration samples and every later step reads."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nextscale.calib_data.subjects import Subjects
from nextscale.runtime._errors import NextscaleError
from nextscale.runtime._manifest import ModelInfo
from nextscale.runtime._npz import read_npz
from nextscale.runtime._outputs import Writer, atomic_folder, write_files
from nextscale.runtime._regular_file import require_regular
from nextscale.runtime.image_io import npz_writer

SCHEMA = 1
ARRAYS, MANIFEST = "token_maps.npz", "manifest.json"
NO_FILES: Mapping[str, Writer] = MappingProxyType({})


@dataclass(frozen=True)
class TokenMaps:
    """Images as tokens.

    Attributes:
        class_labels: int64 [N].
        token_maps: int64 [N, L], stages in order, row-major.
        settings: how they were made, for the manifest: plain JSON values.
        further: more files to save beside them, by name.
    """

    class_labels: NDArray[np.int64]
    token_maps: NDArray[np.int64]
    settings: Mapping[str, Any]
    further: Mapping[str, Writer] = field(default_factory=dict, repr=False, compare=False)

    def __len__(self) -> int:
        """N, the number of images."""
        return len(self.class_labels)

    @property
    def subjects(self) -> Subjects:
        """What the images are of."""
        return Subjects.of_classes(self.class_labels)

    def save(self, folder: Path, further: Mapping[str, Writer] = NO_FILES) -> None:
        """Make `folder`, complete or not at all.

        Args:
            folder: must not exist.
            further: yet more files to write into it, by name.
        Raises:
            OutputError: the folder exists or cannot be written.
        """
        manifest = {"schema": SCHEMA, "images": len(self), "tokens": self.token_maps.shape[1], **self.settings}
        text = json.dumps(manifest, indent=1) + "\n"
        arrays = {"class_labels": self.class_labels, "token_maps": self.token_maps}
        files: dict[str, Writer] = {ARRAYS: npz_writer(arrays), MANIFEST: lambda file: file.write(text.encode())}
        files |= {**self.further, **further}
        with atomic_folder(folder) as partial:
            write_files({partial / name: writer for name, writer in files.items()})

    @classmethod
    def load(cls, folder: Path, model: ModelInfo) -> TokenMaps:
        """Read token maps and check that they are of such a model.

        Raises:
            NextscaleError: no token maps there, damaged ones, newer ones, or those of another model.
        """
        if not folder.is_dir():
            raise NextscaleError(f"{folder}: no such folder; expected one made by `nextscale calibrate`")
        settings = _read_manifest(folder / MANIFEST)
        return replace(cls.from_arrays(folder / ARRAYS, model), settings=settings)

    @classmethod
    def from_arrays(cls, path: Path, model: ModelInfo) -> TokenMaps:
        """The same of an .npz with class_labels and token_maps, whoever made it.

        Raises:
            NextscaleError: it cannot be read, or is not of such a model.
        """
        arrays = read_npz(path, ("class_labels", "token_maps"))
        labels, token_maps = arrays["class_labels"], arrays["token_maps"]
        images = len(labels) if labels.ndim == 1 else 0
        _check(path, "class_labels", labels, (max(images, 1),), model.num_classes)
        _check(path, "token_maps", token_maps, (images, model.num_tokens), model.vocab_size)
        return cls(labels, token_maps, {})


def _read_manifest(path: Path) -> dict[str, Any]:
    require_regular(path)
    try:
        manifest = json.loads(path.read_bytes())
    except OSError as error:
        raise NextscaleError(f"{path}: cannot be read: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        raise NextscaleError(f"{path}: no JSON: {error}") from None
    schema = manifest.get("schema") if isinstance(manifest, dict) else None
    if schema != SCHEMA:
        raise NextscaleError(f"{path}: expected token maps of schema {SCHEMA}, found {schema}")
    return {name: value for name, value in manifest.items() if name not in ("schema", "images", "tokens")}


def _check(path: Path, name: str, array: NDArray[Any], shape: tuple[int, ...], limit: int) -> None:
    """Whether the array is int64, of the shape, and in [0, limit)."""
    if array.dtype != np.int64 or array.shape != shape:
        raise NextscaleError(
            f"{path}: {name}: expected int64 {list(shape)}, found {array.dtype} {list(array.shape)}; "
            "the token maps must be of this model"
        )
    if array.min() < 0 or array.max() >= limit:
        raise NextscaleError(
            f"{path}: {name}: expected 0 to {limit - 1}, found {array.min()} to {array.max()}; "
            "the token maps must be of this model"
        )
