"""Images of texts as bits: what calibration samples of a model whose tokens are bits, and keeps in a folder."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nextscale.calib_data.subjects import Subjects
from nextscale.runtime._errors import NextscaleError
from nextscale.runtime._npz import read_npz
from nextscale.runtime._outputs import Writer, atomic_folder, write_files
from nextscale.runtime._sizes import Size, SizeInfo, sizes_in_words
from nextscale.runtime.image_io import npz_writer

ARRAYS, SETTINGS = "bit_maps.npz", "settings.json"


@dataclass(frozen=True)
class BitMaps:
    """Images as bits.

    Attributes:
        subjects: what the N images are of: texts and sizes.
        token_maps: int64 [L, D] of each, stages in order, row-major.
        stage_sizes: height and width of each stage's map, of each size that the bundle has, in its order.
        settings: how they were made, for the manifest: plain JSON values.
    """

    subjects: Subjects
    token_maps: tuple[NDArray[np.int64], ...]
    stage_sizes: tuple[tuple[Size, ...], ...]
    settings: Mapping[str, Any]

    def __len__(self) -> int:
        """N, the number of images."""
        return len(self.subjects)

    def save(self, folder: Path) -> None:
        """Make `folder`, complete or not at all.

        Raises:
            OutputError: the folder exists or cannot be written.
        """
        texts = self.subjects.texts
        assert texts is not None
        arrays = {
            "sizes": self.subjects.sizes,
            "stage_sizes": _padded(self.stage_sizes),
            "text_lengths": np.array([len(text) for text in texts]),
            "texts": np.concatenate(texts),
            "bits": np.packbits(np.concatenate([bits.ravel() for bits in self.token_maps]).astype(np.uint8)),
        }
        text = json.dumps(self.settings, indent=1) + "\n"
        files: dict[str, Writer] = {ARRAYS: npz_writer(arrays), SETTINGS: lambda file: file.write(text.encode())}
        with atomic_folder(folder) as partial:
            write_files({partial / name: writer for name, writer in files.items()})

    @classmethod
    def load(cls, folder: Path, text_channels: int, token_bits: int, sizes: Sequence[SizeInfo]) -> BitMaps:
        """Read what `save` wrote of a model.

        Args:
            folder: made by `save`.
            text_channels: Ct of the model.
            token_bits: D of the model.
            sizes: that it is built for, in their order.
        Raises:
            NextscaleError: it cannot be read, is damaged, or is of another model or of other sizes.
        """
        if not folder.is_dir():
            raise NextscaleError(f"{folder}: no such folder; expected one made by `nextscale calibrate`")
        path = folder / ARRAYS
        arrays = read_npz(path, ("sizes", "stage_sizes", "text_lengths", "texts", "bits"))
        stage_sizes = tuple(size.stage_sizes for size in sizes)
        if not np.array_equal(arrays["stage_sizes"], _padded(stage_sizes)):
            raise NextscaleError(
                f"{path}: pictures of other sizes, or of these in another order; expected {sizes_in_words(sizes)}: "
                "calibrate with a bundle of the same sizes"
            )
        try:
            settings = json.loads((folder / SETTINGS).read_bytes())
            subjects, rows = _subjects(arrays, text_channels, len(sizes)), []
            begin, bits = 0, np.unpackbits(arrays["bits"]).astype(np.int64)
            for size in subjects.sizes:
                end = begin + token_bits * sum(height * width for height, width in stage_sizes[size])
                rows.append(bits[begin:end].reshape(-1, token_bits))
                begin = end
            if not isinstance(settings, dict) or len(bits) - begin not in range(8):
                raise ValueError(f"{len(bits)} bits, expected {begin}")
        except (OSError, ValueError, IndexError, TypeError, RecursionError) as error:
            raise NextscaleError(f"{path}: damaged, or of another model ({error}); remove {folder}") from None
        return cls(subjects, tuple(rows), stage_sizes, settings)


def _padded(stage_sizes: Sequence[Sequence[Size]]) -> NDArray[np.int64]:
    """One array, int64 [sizes, S, 2] for the most stages S; zeros behind a size's last."""
    found = np.zeros((len(stage_sizes), max(map(len, stage_sizes)), 2), np.int64)
    for row, stages in zip(found, stage_sizes, strict=True):
        row[: len(stages)] = stages
    return found


def _subjects(arrays: Mapping[str, NDArray[Any]], text_channels: int, num_sizes: int) -> Subjects:
    """What the images are of.

    Raises:
        ValueError: texts are not of the model.
    """
    sizes, lengths, texts = (arrays[name] for name in ("sizes", "text_lengths", "texts"))
    if texts.dtype != np.float32 or texts.shape != (lengths.sum(), text_channels):
        raise ValueError(f"texts are {texts.dtype} {list(texts.shape)}")
    if sizes.shape != lengths.shape or not np.isin(sizes, np.arange(num_sizes)).all():
        raise ValueError(f"{len(lengths)} texts, sizes {sizes.min()} to {sizes.max()}")
    return Subjects(sizes, texts=tuple(np.split(texts, np.cumsum(lengths)[:-1])))
