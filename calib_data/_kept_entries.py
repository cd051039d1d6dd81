"""The probabilities a token is sampled from, kept sparsely and on disk: all of them together are too many to hold."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from nextscale.runtime._errors import NextscaleError
from nextscale.runtime._npz import read_npz
from nextscale.runtime.image_io import npz_writer, write_files


def kept_probabilities(logits: NDArray[np.float32], top_k: int, top_p: float) -> NDArray[np.float64]:
    """What the sampler draws from: docs/bundle.md's kept entries, normalised over them, 0 for all others.

    Args:
        logits: float32 [n, V], after guidance.
        top_k: 0 (off) to V.
        top_p: 0 (off) to 1.
    Returns:
        float64 [n, V], rows of sum 1.
    """
    descending = -np.sort(-logits, axis=-1)
    smallest = descending[:, top_k - 1 if top_k else -1]
    maximum = logits.max(-1, keepdims=True).astype(np.float64)
    if top_p:
        mass = np.where(descending >= smallest[:, None], np.exp(descending - maximum), 0)
        cumulated = mass.cumsum(-1)
        better = cumulated - mass
        # Entries before the first of a run of equals are kept or dropped with it, so the last kept is a threshold.
        count = (better < float(np.float32(top_p)) * cumulated[:, -1:]).sum(-1)
        smallest = np.maximum(smallest, descending[np.arange(len(logits)), count - 1])
    weights = np.where(logits >= smallest[:, None], np.exp(logits - maximum), 0)
    probabilities: NDArray[np.float64] = weights / weights.sum(-1, keepdims=True)
    return probabilities


class Spool:
    """Sampled tokens and their kept entries, a file of each for each batch of images.

    A batch is there when its .npz is: it is written last, and moved into place when complete.

    Args:
        folder: made when missing.
        images: N.
        length: l, tokens of an image.
        vocab_size: V.
        batch_size: images of a batch; the last may be smaller.
    """

    def __init__(self, folder: Path, images: int, length: int, vocab_size: int, batch_size: int) -> None:
        self.folder, self.images, self.length = folder, images, length
        self.vocab_size, self.batch_size = vocab_size, batch_size
        self._entry = np.dtype([("id", np.uint16 if vocab_size <= 2**16 else np.uint32), ("p", np.float32)])
        self._offsets: dict[int, NDArray[np.int64]] = {}
        folder.mkdir(exist_ok=True)

    @property
    def firsts(self) -> range:
        """The first image of each batch."""
        return range(0, self.images, self.batch_size)

    def has(self, first: int) -> bool:
        """Whether the batch that begins with image `first` is there."""
        return self._path(first, "npz").exists()

    def sparse(self, probabilities: NDArray[np.float64], tokens: NDArray[np.int64]) -> list[NDArray[np.void]]:
        """The entries that may be sampled, and the one that was.

        The sampled one is always among them, though the graph's float32 sums may keep one more than float64 does.

        Args:
            probabilities: float64 [n, V].
            tokens: int64 [n].
        Returns:
            n arrays of (id, p), ids ascending, each p above 0.
        """
        keep = probabilities > 0
        keep[np.arange(len(tokens)), tokens] = True
        rows, ids = keep.nonzero()
        entries = np.empty(len(ids), self._entry)
        entries["id"] = ids
        entries["p"] = np.maximum(probabilities[rows, ids], np.finfo(np.float32).tiny)
        return np.split(entries, np.cumsum(keep.sum(-1))[:-1])

    def write(self, first: int, tokens: NDArray[np.int64], entries: list[NDArray[np.void]]) -> None:
        """Write a batch: int64 [b, l], and the entries of its b*l tokens in that order.

        Raises:
            OutputError: it cannot be written.
        """
        flat, counts = np.concatenate(entries), np.array([len(row) for row in entries], np.int64)
        write_files(
            {
                self._path(first, "npy"): lambda file: np.save(file, flat),
                self._path(first, "npz"): npz_writer({"tokens": tokens, "counts": counts}),
            }
        )

    def tokens(self) -> NDArray[np.int64]:
        """The tokens of all batches, int64 [N, l]."""
        return np.concatenate([self._read(first)[0] for first in self.firsts])

    def sums(self, stage_of_token: NDArray[np.int64], num_stages: int) -> NDArray[np.float64]:
        """Sum of p over the tokens of a stage, one batch in memory at a time: int64 [l] -> float64 [S, V]."""
        sums = np.zeros(num_stages * self.vocab_size)
        for first in self.firsts:
            tokens, counts = self._read(first)
            entries = self._map(first)
            stages = np.repeat(np.tile(stage_of_token, len(tokens)), counts)
            sums += np.bincount(stages * self.vocab_size + entries["id"], entries["p"], len(sums))
        return sums.reshape(num_stages, self.vocab_size)

    def kept(self, token: int) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """The kept entries of a token in [0, N*l): ids int64 [n], ascending, and p float64 [n]."""
        image, place = divmod(token, self.length)
        first = image - image % self.batch_size
        if first not in self._offsets:
            self._offsets[first] = np.concatenate([[0], np.cumsum(self._read(first)[1])])
        row = (image - first) * self.length + place
        begin, end = self._offsets[first][row : row + 2]
        entries = np.array(self._map(first)[begin:end])
        return entries["id"].astype(np.int64), entries["p"].astype(np.float64)

    def _read(self, first: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Tokens [b, l] and counts [b*l] of a batch."""
        arrays = read_npz(self._path(first, "npz"), ("tokens", "counts"))
        return arrays["tokens"], arrays["counts"]

    def _map(self, first: int) -> NDArray[np.void]:
        path = self._path(first, "npy")
        try:
            return np.load(path, mmap_mode="r", allow_pickle=False)
        except (OSError, ValueError, EOFError) as error:
            raise NextscaleError(f"{path}: cannot be read ({error}); remove {self.folder.parent}") from None

    def _path(self, first: int, suffix: str) -> Path:
        return self.folder / f"{first:06}.{suffix}"
