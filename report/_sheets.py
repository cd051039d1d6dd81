"""Pictures of several bundles from the same classes or prompts and seeds, side by side (the paper's Fig. A and B)."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from nextscale import __version__
from nextscale.calib_data.subjects import Subjects
from nextscale.calib_data.text_subjects import takes_text, text_subjects
from nextscale.evaluate.teacher_forced import evaluation_labels
from nextscale.runtime._bundle import Bundle
from nextscale.runtime._errors import RequestError
from nextscale.runtime._manifest import Manifest
from nextscale.runtime._next_scale_loop import Generation, Generator
from nextscale.runtime._request import Request
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
        prompts: the same of bundles of text; None: those that builds calibrate with.
        area, ratio: of bundles of several sizes; None is as in the first.
        cfg_scale: guidance; None is the bundles'.
        batch_size: images at a time.
        session: threads and memory.
    """

    images: int = 16
    seed: int = 0
    classes: tuple[str, ...] = ()
    prompts: tuple[str, ...] | None = None
    area: str | None = None
    ratio: str | None = None
    cfg_scale: float | None = None
    batch_size: int = 4
    session: SessionOptions | None = None

    def labels(self, bundle: Bundle) -> NDArray[np.int64]:
        """int64 [images]; raises ClassLabelError for a class that the model does not have."""
        if not self.classes:
            return evaluation_labels(bundle.model.num_classes, self.images, self.seed)
        chosen = np.array([bundle.class_label(name) for name in self.classes], np.int64)
        return chosen[np.sort(np.arange(self.images) % len(chosen))]

    def size(self, manifest: Manifest) -> int:
        """The index of the size; raises RequestError for one that is not built."""
        return manifest.choose_size(self.area, self.ratio)

    def require(self, bundle: Bundle) -> None:
        """Refuse what the bundle cannot draw, before anything is loaded.

        Raises:
            ClassLabelError, RequestError: a class, a prompt or a size that it does not know or have.
        """
        self.size(bundle.manifest)
        if not takes_text(bundle.manifest):
            if self.prompts is not None:
                raise RequestError(f"prompts: {bundle.manifest.name} makes pictures of classes")
            self.labels(bundle)
        elif self.classes:
            raise RequestError(f"classes: {bundle.manifest.name} makes pictures of prompts")
        elif self.prompts is not None:
            Request.create(bundle, prompts=self.prompts)

    def subjects(self, bundle: Bundle) -> tuple[Subjects, tuple[str, ...]]:
        """What the pictures are of, and how a caption names each."""
        if not takes_text(bundle.manifest):
            labels = self.labels(bundle)
            names = (bundle.class_name(label).partition(",")[0] for label in labels.tolist())
            return Subjects.of_classes(labels), tuple(names)
        generator, size = Generator(bundle, self.session), self.size(bundle.manifest)
        subjects, prompts = text_subjects(generator, self.prompts, self.images, self.seed, size)
        return subjects, prompts or tuple(f"text {number}" for number in range(1, self.images + 1))


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
    """Pictures of bundles of one model, column by column of the same class or prompt and seed.

    Attributes:
        subjects: what the B pictures of a row are of.
        names: the same in words.
        settings: seed.
        cfg_scale: guidance.
        forced_stages: stages whose tokens are those of full precision.
        rows: the first is full precision where there is one.
    """

    subjects: Subjects
    names: tuple[str, ...]
    settings: SheetSettings
    cfg_scale: float
    forced_stages: int
    rows: tuple[SheetRow, ...]

    @property
    def columns(self) -> int:
        return min(_COLUMNS, len(self.subjects))

    def strips(self, row: SheetRow) -> list[tuple[bytes, str]]:
        """The row's pictures, up to 8 beside each other, as encoded images and their MIME types."""
        side = row.images.shape[1]
        apart = np.pad(row.images, ((0, 0), (0, 0), (0, max(1, side // 32)), (0, 0)), constant_values=255)
        return [
            _encoded(make_grid(apart[first : first + _COLUMNS], self.columns), self._parameters(row, first))
            for first in range(0, len(apart), _COLUMNS)
        ]

    def captions(self) -> list[tuple[str, ...]]:
        """The classes of each strip, each by the first of its synonyms, or the prompts."""
        return [self.names[first : first + _COLUMNS] for first in range(0, len(self.names), _COLUMNS)]

    def _parameters(self, row: SheetRow, first: int) -> dict[str, Any]:
        last = first + _COLUMNS
        labels = self.subjects.class_labels
        of = {"prompts": self.names[first:last]} if labels is None else {"classes": labels[first:last].tolist()}
        return {
            "software": f"nextscale {__version__}",
            "bundle": row.bundle.manifest.name,
            "recipe": row.bundle.manifest.recipe["name"],
            "seed": self.settings.seed,
            "first_image": first,
            "cfg_scale": self.cfg_scale,
            **of,
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
    ordered = sorted(bundles, key=lambda bundle: bundle is not full_precision)
    reads_prompts = (bundle for bundle in ordered if "text_encoder" in bundle.manifest.graphs)
    subjects, names = settings.subjects(next(reads_prompts, ordered[0]))
    manifest = bundles[0].manifest.of_size(settings.size(bundles[0].manifest))
    cfg_scale = manifest.default_cfg_scale if settings.cfg_scale is None else settings.cfg_scale
    draw = _Drawing(subjects, settings, cfg_scale, on_batch)
    model, original = manifest.model, None
    free: list[SheetRow] = []
    forced: list[SheetRow] = []
    prefix = model.stage_slices[min(FORCED_STAGES, model.num_stages) - 1].stop
    for bundle in ordered:
        generator = Generator(bundle, settings.session)
        made = draw.pictures(generator, None)
        if bundle is full_precision:
            original = made
            row = SheetRow(bundle, made.images, None)
            free.append(row)
            forced.append(row)
            continue
        free.append(SheetRow(bundle, made.images, _same(made, original, 0)))
        if original is not None:
            start = np.full_like(original.token_maps, -1)
            start[:, :prefix] = original.token_maps[:, :prefix]
            made = draw.pictures(generator, start)
            forced.append(SheetRow(bundle, made.images, _same(made, original, prefix)))
    sheets = [Sheet(subjects, names, settings, cfg_scale, 0, tuple(free))]
    if len(forced) > 1 and prefix < model.num_tokens:
        sheets.append(Sheet(subjects, names, settings, cfg_scale, FORCED_STAGES, tuple(forced)))
    return sheets


def sheet_images(bundles: Sequence[Bundle], full_precision: Bundle | None, settings: SheetSettings) -> int:
    """How many pictures `make_sheets` generates, for progress."""
    again = len(bundles) - 1 if full_precision is not None else 0
    return settings.images * (len(bundles) + again)


@dataclass(frozen=True)
class _Drawing:
    """What all bundles draw."""

    subjects: Subjects
    settings: SheetSettings
    cfg_scale: float
    on_batch: Callable[[Bundle, int], object]

    def pictures(self, generator: Generator, forced: NDArray[np.int64] | None) -> Generation:
        parts = []
        for batch in self.subjects.batches(self.settings.batch_size):
            parts.append(
                generator.generate(
                    seed=self.settings.seed,
                    first_image=batch.start,
                    cfg_scale=self.cfg_scale,
                    forced_tokens=None if forced is None else forced[batch],
                    **self.subjects[batch].settings(generator.bundle.manifest),
                )
            )
            self.on_batch(generator.bundle, len(parts[-1].images))
        return Generation(
            np.concatenate([part.images for part in parts]),
            np.concatenate([part.token_maps for part in parts]),
            np.concatenate([part.class_labels for part in parts]),
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
