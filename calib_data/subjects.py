"""What images are of: classes or texts, and sizes, as a bundle's requests take them."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from nextscale.runtime._manifest import Manifest

# One row of values for each image, whose length may differ with the size: int64 [L] or [L, d].
TokenRows = Sequence[NDArray[np.int64]] | NDArray[np.int64]


@dataclass(frozen=True)
class Subjects:
    """What N images are of.

    Attributes:
        sizes: int64 [N], the index of each image's size; 0 where a bundle has one.
        class_labels: int64 [N]; None where a model takes no classes.
        texts: the features of each image's text, float32 [Lt, Ct]; None where a model takes none.
    """

    sizes: NDArray[np.int64]
    class_labels: NDArray[np.int64] | None = None
    texts: tuple[NDArray[np.float32], ...] | None = None

    @classmethod
    def of_classes(cls, class_labels: NDArray[np.int64]) -> Subjects:
        """Images of classes, int64 [N], of a bundle's one size."""
        return cls(np.zeros(len(class_labels), np.int64), class_labels)

    def __len__(self) -> int:
        return len(self.sizes)

    def __getitem__(self, images: slice) -> Subjects:
        labels, texts = self.class_labels, self.texts
        return Subjects(
            self.sizes[images], None if labels is None else labels[images], None if texts is None else texts[images]
        )

    def pick(self, images: NDArray[np.int64]) -> Subjects:
        """Some of the images, in the given order: their numbers, int64 [n]."""
        labels, texts = self.class_labels, self.texts
        return Subjects(
            self.sizes[images],
            None if labels is None else labels[images],
            None if texts is None else tuple(texts[image] for image in images),
        )

    def digest(self) -> str:
        """What tells the sizes, classes and texts from others'."""
        digest = hashlib.sha256(self.sizes.tobytes())
        if self.class_labels is not None:
            digest.update(self.class_labels.tobytes())
        for text in self.texts or ():
            digest.update(repr(text.shape).encode() + text.tobytes())
        return digest.hexdigest()

    def batches(self, batch_size: int) -> Iterator[slice]:
        """Images that can be made together, in order: neighbours of one size, at most so many."""
        ends = [*(np.flatnonzero(np.diff(self.sizes)) + 1).tolist(), len(self)]
        for begin, end in zip([0, *ends], ends, strict=False):
            yield from (slice(first, min(first + batch_size, end)) for first in range(begin, end, batch_size))

    def settings(self, manifest: Manifest) -> dict[str, Any]:
        """Of a request for them all, which are of one size: class_labels, and the other inputs by name."""
        inputs: dict[str, Any] = {}
        features, size = manifest.input_of_kind("text_features"), manifest.input_of_kind("size")
        if features is not None and self.texts is not None:
            inputs[features.name] = list(self.texts)
        if size is not None:
            inputs[size.name] = int(self.sizes[0])
        return {"class_labels": self.class_labels, **({"inputs": inputs} if inputs else {})}

    def sampled(self, manifest: Manifest) -> TokenRows:
        """Token rows of -1, where all is sampled: int64 [N, L] where there is one size."""
        rows = [manifest.of_size(int(size)).forced_tokens.row_shape for size in self.sizes]
        if len(set(rows)) == 1:
            return np.full((len(rows), *rows[0]), -1, np.int64)
        return [np.full(row, -1, np.int64) for row in rows]


class SampledImages(Protocol):
    """N images with their tokens: `TokenMaps` of a codebook, `BitMaps` of bits."""

    @property
    def subjects(self) -> Subjects:
        """What they are of."""

    @property
    def token_maps(self) -> TokenRows:
        """Their tokens."""

    @property
    def settings(self) -> Mapping[str, Any]:
        """How they were made, for the manifest: plain JSON values."""

    def __len__(self) -> int:
        """N."""

    def save(self, folder: Path) -> None:
        """Make `folder`, complete or not at all."""
