"""The error of attention's product in several bundles, kept in a folder and gone on with there."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from nextscale.calib_data.subjects import Subjects
from nextscale.evaluate._kept_figures import bundle_sha256, file_of, kept_file, measure_on
from nextscale.evaluate._noise_correlation import PAIRS
from nextscale.evaluate.attention_error import AttentionError, attention_errors
from nextscale.evaluate.teacher_forced import evaluation_labels, sample
from nextscale.runtime._bundle import Bundle
from nextscale.runtime._manifest import ModelInfo
from nextscale.runtime._next_scale_loop import Generator
from nextscale.runtime._npz import checked, read_npz
from nextscale.runtime._session import SessionOptions
from nextscale.runtime.image_io import npz_writer, write_files

# Images between which an interrupted run can have lost what it measured; each time the graph is loaded again.
TOGETHER = 8

# Of `AttentionError`, what is added up for each stage and block.
SUMS = ("exact", "error", "weights_part", "values_part", "unexplained", "elements")

OnImages = Callable[[str, int, int], object]


@dataclass(frozen=True)
class Observing:
    """What attention is observed on.

    Attributes:
        images: their number, spread over the classes.
        seed: of labels and tokens.
        cfg_scale: guidance, for sampling.
    """

    images: int
    seed: int
    cfg_scale: float


class ObservedAttention:
    """Bundles of one model of classes, each fed the token maps that full precision samples.

    Args:
        original: the full-precision bundle.
        observing: images.
        work: an existing folder that keeps token maps and errors.
        options: threads and memory.
        on_images: told what is made, and how many of how many images are finished.
    """

    def __init__(
        self, original: Bundle, observing: Observing, work: Path, options: SessionOptions, on_images: OnImages
    ) -> None:
        self._original, self._observing, self._work = original, observing, work
        self._options, self._on_images = options, on_images
        labels = evaluation_labels(original.model.num_classes, observing.images, observing.seed)
        self._subjects = Subjects.of_classes(labels)
        self._tokens: NDArray[np.int64] | None = None

    def error(self, name: str, bundle: Bundle) -> AttentionError:
        """Of a bundle: what an earlier call left, and the images that are missing of it.

        Args:
            name: what `on_images` is told of.
            bundle: of the same model.
        Raises:
            NextscaleError: see `attention_errors`; or a file of an earlier call is damaged.
        """
        path, count = _file(self._original, bundle, self._observing, self._work), self._observing.images
        found = _read(path, self._original.model, self._observing)
        tokens = self._token_maps() if found is None or found.images < count else None

        def measure(part: range) -> None:
            nonlocal found
            assert tokens is not None
            (more,) = attention_errors(
                self._original,
                [bundle],
                self._options,
                images=len(part),
                seed=self._observing.seed,
                cfg_scale=self._observing.cfg_scale,
                subjects=self._subjects[part.start : part.stop],
                token_maps=tokens[part.start : part.stop],
                on_images=lambda done: tell(part.start + done),
            )
            found = more if found is None else found + more

        def keep() -> None:
            assert found is not None
            arrays = {item.name: np.asarray(getattr(found, item.name)) for item in fields(found)}
            write_files({path: npz_writer(arrays)})

        def tell(done: int) -> None:
            self._on_images(f"{name}: observing attention", done, count)

        measure_on(0 if found is None else found.images, count, TOGETHER, measure, keep, tell)
        assert found is not None
        return found

    def _token_maps(self) -> NDArray[np.int64]:
        """What full precision samples, int64 [N, L]; once for all bundles, and again for more images."""
        if self._tokens is not None:
            return self._tokens
        path = _tokens_file(self._original, self._observing, self._work)
        rows = _read_tokens(path, self._original)
        if len(rows) < self._observing.images:
            self._sample(rows, path)
        self._tokens = np.stack(rows[: self._observing.images])
        return self._tokens

    def _sample(self, rows: list[NDArray[np.int64]], path: Path) -> None:
        """The rows that are missing, image by image; they are kept in a file of that path."""
        generator, count = Generator(self._original, self._options), self._observing.images
        seed, cfg_scale = self._observing.seed, self._observing.cfg_scale

        def measure(part: range) -> None:
            for batch in sample(generator, self._subjects, part, seed=seed, cfg_scale=cfg_scale, batch_size=1):
                rows.extend(batch.tokens)

        def keep() -> None:
            write_files({path: npz_writer({"token_maps": np.stack(rows)})})

        measure_on(
            len(rows), count, 1, measure, keep, lambda done: self._on_images("sampling in full precision", done, count)
        )


def kept_images(original: Bundle, bundle: Bundle, observing: Observing, work: Path) -> int:
    """Of how many of the images `ObservedAttention` has kept a bundle's error in the folder `work`."""
    found = _read(_file(original, bundle, observing, work), original.model, observing)
    return 0 if found is None else found.images


def kept_token_maps(original: Bundle, observing: Observing, work: Path) -> int:
    """How many of the token maps that `ObservedAttention` samples are kept in the folder `work`."""
    return len(_read_tokens(_tokens_file(original, observing, work), original))


def _tokens_file(original: Bundle, observing: Observing, work: Path) -> Path:
    settings = {"seed": observing.seed, "cfg_scale": observing.cfg_scale}
    return file_of(original, work, settings, "{bundle}-{digest}-tokens.npz")


def _read_tokens(path: Path, original: Bundle) -> list[NDArray[np.int64]]:
    """Token maps [L]; none where there is no such file."""
    if not path.exists():
        return []
    with kept_file(path, "sample again"):
        known = checked(read_npz(path), "token_maps", "i", (None, original.model.num_tokens))
        if known.min(initial=0) < 0 or known.max(initial=0) >= original.model.vocab_size:
            raise ValueError(f"token_maps: expected 0 to {original.model.vocab_size - 1}")
    return list(known.astype(np.int64))


def _file(original: Bundle, bundle: Bundle, observing: Observing, work: Path) -> Path:
    settings = {"reference": bundle_sha256(original), **asdict(observing)}
    return file_of(bundle, work, settings, "{bundle}-{digest}-attention.npz")


def _read(path: Path, model: ModelInfo, observing: Observing) -> AttentionError | None:
    if not path.exists():
        return None
    with kept_file(path, "measure that bundle again"):
        arrays, shape = read_npz(path), (model.num_stages, model.depth)
        images = int(checked(arrays, "images", "iu", ()))
        if not 0 < images <= observing.images:
            raise ValueError(f"of {images} images")
        return AttentionError(
            **{name: checked(arrays, name, "f", shape) for name in SUMS},
            pairs=checked(arrays, "pairs", "f", (*shape, len(PAIRS), 6)),
            images=images,
        )
