"""Pictures of several bundles from the same labels and seeds, side by side (the paper's Fig. A and B)."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from nextscale import __version__
from nextscale.evaluate.teacher_forced import evaluation_labels
from nextscale.runtime._bundle import Bundle
from nextscale.runtime._next_scale_loop import Generation, Generator
from nextscale.runtime._request import DEFAULT_CFG_SCALE
from nextscale.runtime._session import SessionOptions
from nextscale.runtime.image_io import make_grid, png_writer

FORCED_STAGES = 2
_LOSSLESS_UP_TO = 128  # pixels of a side; larger pictures are JPEG, or a phone could not load the page
_COLUMNS = 8


@dataclass(frozen=True)
class SheetSettings:
    """Which pictures.

    Attributes:
        images: of each bundle; 0 is none.
        seed: of the pictures, and of the classes' order.
        classes: ids or names to spread the images over; none is all.
        cfg_scale: guidance.
        batch_size: images at a time.
        session: threads and memory.
    """

    images: int = 16
    seed: int = 0
    classes: tuple[str, ...] = ()
    cfg_scale: float = DEFAULT_CFG_SCALE
    batch_size: int = 4
    session: SessionOptions | None = None

    def labels(self, bundle: Bundle) -> NDArray[np.int64]:
        """int64 [images]; raises ClassLabelError for a class that the model does not have."""
        if not self.classes:
            return evaluation_labels(bundle.model.num_classes, self.images, self.seed)
        chosen = np.array([bundle.class_label(name) for name in self.classes], np.int64)
        return chosen[np.sort(np.arange(self.images) % len(chosen))]


@dataclass(frozen=True)
class SheetRow:
    """One bundle's pictures.

    Attributes:
        bundle: which.
        images: uint8 [B, H, W, 3].
        same: share of the sampled tokens that are those of full precision; None without full precision.
    """

    bundle: Bundle
    images: NDArray[np.uint8]
    same: float | None


@dataclass(frozen=True)
class Sheet:
    """Pictures of bundles of one model, column by column of the same label and seed.

    Attributes:
        labels: int64 [B].
        settings: seed and guidance.
        forced_stages: stages whose tokens are those of full precision.
        rows: the first is full precision where there is one.
    """

    labels: NDArray[np.int64]
    settings: SheetSettings
    forced_stages: int
    rows: tuple[SheetRow, ...]

    @property
    def columns(self) -> int:
        return min(_COLUMNS, len(self.labels))

    def strips(self, row: SheetRow) -> list[tuple[bytes, str]]:
        """The row's pictures, up to 8 beside each other, as encoded images and their MIME types."""
        side = row.images.shape[1]
        apart = np.pad(row.images, ((0, 0), (0, 0), (0, max(1, side // 32)), (0, 0)), constant_values=255)
        return [
            _encoded(make_grid(apart[first : first + _COLUMNS], self.columns), self._parameters(row, first))
            for first in range(0, len(apart), _COLUMNS)
        ]

    def class_names(self) -> list[list[str]]:
        """The classes of each strip, each by the first of its synonyms."""
        names = [self.rows[0].bundle.class_name(label).partition(",")[0] for label in self.labels.tolist()]
        return [names[first : first + _COLUMNS] for first in range(0, len(names), _COLUMNS)]

    def _parameters(self, row: SheetRow, first: int) -> dict[str, Any]:
        return {
            "software": f"nextscale {__version__}",
            "bundle": row.bundle.manifest.name,
            "recipe": row.bundle.manifest.recipe["name"],
            "seed": self.settings.seed,
            "first_image": first,
            "cfg_scale": self.settings.cfg_scale,
            "classes": self.labels[first : first + _COLUMNS].tolist(),
            "forced_stages": self.forced_stages,
        }


def make_sheets(
    bundles: Sequence[Bundle],
    full_precision: Bundle | None,
    settings: SheetSettings,
    on_batch: Callable[[Bundle, int], object] = lambda bundle, images: None,
) -> list[Sheet]:
    """Generate the sheets of one model's bundles: from the first stage on, and after two forced stages.

    Args:
        bundles: of one model, in the order of the rows.
        full_precision: one of them; without it there is only the first sheet, and nothing to compare tokens with.
        settings: which pictures; at least one.
        on_batch: called after each batch with its bundle and its number of images.
    """
    labels = settings.labels(bundles[0])
    ordered = sorted(bundles, key=lambda bundle: bundle is not full_precision)
    model, original = bundles[0].model, None
    free: list[SheetRow] = []
    forced: list[SheetRow] = []
    prefix = model.stage_slices[min(FORCED_STAGES, model.num_stages) - 1].stop
    for bundle in ordered:
        generator = Generator(bundle, settings.session)
        made = _generate(generator, labels, settings, None, on_batch)
        if bundle is full_precision:
            original = made
            row = SheetRow(bundle, made.images, None)
            free.append(row)
            forced.append(row)
            continue
        free.append(SheetRow(bundle, made.images, _same(made, original, 0)))
        if original is not None:
            start = np.full((len(labels), model.num_tokens), -1, np.int64)
            start[:, :prefix] = original.token_maps[:, :prefix]
            made = _generate(generator, labels, settings, start, on_batch)
            forced.append(SheetRow(bundle, made.images, _same(made, original, prefix)))
    sheets = [Sheet(labels, settings, 0, tuple(free))]
    if len(forced) > 1 and prefix < model.num_tokens:
        sheets.append(Sheet(labels, settings, FORCED_STAGES, tuple(forced)))
    return sheets


def sheet_images(bundles: Sequence[Bundle], full_precision: Bundle | None, settings: SheetSettings) -> int:
    """How many pictures `make_sheets` generates, for progress."""
    again = len(bundles) - 1 if full_precision is not None else 0
    return settings.images * (len(bundles) + again)


def _generate(
    generator: Generator,
    labels: NDArray[np.int64],
    settings: SheetSettings,
    forced: NDArray[np.int64] | None,
    on_batch: Callable[[Bundle, int], object],
) -> Generation:
    parts = []
    for first in range(0, len(labels), settings.batch_size):
        batch = slice(first, first + settings.batch_size)
        parts.append(
            generator.generate(
                labels[batch],
                seed=settings.seed,
                first_image=first,
                cfg_scale=settings.cfg_scale,
                forced_tokens=None if forced is None else forced[batch],
            )
        )
        on_batch(generator.bundle, len(labels[batch]))
    return Generation(
        np.concatenate([part.images for part in parts]), np.concatenate([part.token_maps for part in parts]), labels
    )


def _same(made: Generation, original: Generation | None, first: int) -> float | None:
    """The share of tokens from `first` on that are equal."""
    if original is None:
        return None
    return float((made.token_maps[:, first:] == original.token_maps[:, first:]).mean())


def _encoded(image: NDArray[np.uint8], parameters: dict[str, Any]) -> tuple[bytes, str]:
    file = io.BytesIO()
    if image.shape[0] <= _LOSSLESS_UP_TO:
        png_writer(image, parameters)(file)
        return file.getvalue(), "image/png"
    Image.fromarray(image).save(file, format="JPEG", quality=92, subsampling=0)
    return file.getvalue(), "image/jpeg"
