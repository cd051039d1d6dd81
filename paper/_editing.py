"""What Table 3 edits and measures on one bundle, kept in a folder and continued from there.

Symbols: N photographs; h, w the latent's sides.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from nextscale.evaluate._kept_figures import file_of, kept_file, measure_on
from nextscale.paper._class_scores import ClassScore
from nextscale.paper._photographs import NO_LABEL, Photographs
from nextscale.runtime._edit import Mask, blend, default_feather, forced_tokens, pixel_mask
from nextscale.runtime._manifest import ModelInfo
from nextscale.runtime._next_scale_loop import Generator
from nextscale.runtime._npz import checked, read_npz
from nextscale.runtime._request import DEFAULT_CFG_SCALE, DEFAULT_TOP_P
from nextscale.runtime._uniforms import uniforms
from nextscale.runtime.image_io import write_files

INPAINTING, OUTPAINTING, CLASS_EDITING = "inpainting", "outpainting", "class editing"
TASKS = (INPAINTING, OUTPAINTING, CLASS_EDITING)
WHOLE, REGION = f"{CLASS_EDITING} whole", f"{CLASS_EDITING} region"
# Of which photographs the results of each task are kept as pictures, for Fig. D: rows 1-3, 4-6 and 7-8.
PICTURED = {INPAINTING: range(3), OUTPAINTING: range(3, 6), CLASS_EDITING: range(6, 8)}
AGAIN = "measure that bundle again"
SIDE_SHARE = 0.5  # of the picture's sides: a quarter of its area


class Distance(Protocol):
    """How different pictures are: `Lpips`, or one in a test."""

    name: str

    def __call__(self, first: NDArray[np.uint8], second: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Of B pairs, uint8 [B, H, W, 3]: [B]."""


@dataclass(frozen=True)
class Measures:
    """What judges an edited picture.

    Attributes:
        distances: to the photograph, by the name of their column.
        class_score: how much it is of the photograph's class; None: class editing is left out.
    """

    distances: Mapping[str, Distance]
    class_score: ClassScore | None = None

    @property
    def columns(self) -> tuple[str, ...]:
        """Names of all figures of a picture."""
        found = [f"{task} {name}" for task in (INPAINTING, OUTPAINTING) for name in self.distances]
        return (*found, *((WHOLE, REGION) if self.class_score is not None else ()))

    @property
    def tasks(self) -> tuple[str, ...]:
        """Those that are measured."""
        return TASKS if self.class_score is not None else TASKS[:2]

    def known(self, labels: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Of which photographs the class can be scored, [B] of labels [B]."""
        score = self.class_score
        return np.array([score is not None and label != NO_LABEL and score.knows(label) for label in labels], np.bool_)


@dataclass(frozen=True)
class Editing:
    """How photographs are edited: everything that decides the pictures, beside the bundle.

    Attributes:
        seed: of the tokens that are sampled.
        region_seed: of the boxes' places, and of the choice of photographs.
        cfg_scale, top_k, top_p: as in `Generator.generate`.
        batch_size: photographs at a time.
    """

    seed: int = 0
    region_seed: int = 0
    cfg_scale: float = DEFAULT_CFG_SCALE
    top_k: int | None = None
    top_p: float = DEFAULT_TOP_P
    batch_size: int = 8


@dataclass(frozen=True)
class EditResults:
    """Figures of n photographs.

    Attributes:
        figures: float64 [n] by column; NaN where a photograph has no class that can be scored.
        pictures: uint8 [k, H, W, 3] by task, of those `PICTURED`.
        numbers: which photographs those are, int64 [k] by task.
    """

    figures: Mapping[str, NDArray[np.float64]]
    pictures: Mapping[str, NDArray[np.uint8]] = field(default_factory=dict)
    numbers: Mapping[str, NDArray[np.int64]] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(next(iter(self.figures.values())))

    def extended(self, other: EditResults) -> EditResults:
        """These photographs, and then the others."""
        both = zip((self.figures, self.pictures, self.numbers), (other.figures, other.pictures, other.numbers),
                   strict=True)  # fmt: skip
        return EditResults(*({key: np.concatenate([ours[key], theirs[key]]) for key in ours} for ours, theirs in both))

    def first(self, count: int) -> EditResults:
        """Of the first photographs alone."""
        kept = {task: numbers < count for task, numbers in self.numbers.items()}
        return EditResults(
            {column: values[:count] for column, values in self.figures.items()},
            {task: pictures[kept[task]] for task, pictures in self.pictures.items()},
            {task: numbers[kept[task]] for task, numbers in self.numbers.items()},
        )


def regions(model: ModelInfo, count: int, seed: int) -> NDArray[np.bool_]:
    """Boxes of half the latent's sides at places of a seed, True within, bool [N, h, w].

    The first boxes of a larger N are those of a smaller one.
    """
    lines, columns = model.latent_size
    tall, wide = (max(1, round(side * SIDE_SHARE)) for side in model.latent_size)
    places = np.random.default_rng(seed).random((count, 2)) * (lines - tall + 1, columns - wide + 1)
    found = np.zeros((count, lines, columns), np.bool_)
    for box, (y, x) in zip(found, places.astype(np.int64), strict=True):
        box[y : y + tall, x : x + wide] = True
    return found


def remade(task: str, region: Mask) -> Mask:
    """Which positions of the latent a task makes anew: the box, or, outpainting, all but it."""
    return ~region if task == OUTPAINTING else region


def edited(
    generator: Generator,
    images: NDArray[np.uint8],
    token_maps: NDArray[np.int64],
    masks: NDArray[np.bool_],
    labels: NDArray[np.int64],
    numbers: Sequence[int],
    editing: Editing,
) -> NDArray[np.uint8]:
    """Several photographs, each with a mask of its own, as `Generator.edit` makes them one by one; blended as there.

    Args:
        generator: the bundle.
        images: uint8 [B, H, W, 3].
        token_maps: what the bundle's encoder makes of them, int64 [B, L].
        masks: positions of the latent that are made anew, bool [B, h, w].
        labels: int64 [B]; num_classes is no class.
        numbers: of the photographs, which choose the uniforms.
        editing: seed, guidance and filters.
    """
    model = generator.bundle.model
    forced = [forced_tokens(maps[None], mask, 0, model) for maps, mask in zip(token_maps, masks, strict=True)]
    made = generator.generate(
        labels,
        forced_tokens=np.concatenate(forced),
        uniforms=uniforms(editing.seed, numbers, model.num_tokens),
        cfg_scale=editing.cfg_scale,
        top_k=editing.top_k,
        top_p=editing.top_p,
    ).images
    return np.stack(
        [
            blend(old, new, pixel_mask(mask, model), default_feather(model))
            for old, new, mask in zip(images, made, masks, strict=True)
        ]
    )


def edit_results(
    generator: Generator,
    photographs: Photographs,
    measures: Measures,
    editing: Editing,
    work: Path,
    on_images: Callable[[int], object] = lambda done: None,
) -> EditResults:
    """Edit the photographs with a bundle and measure each result.

    The folder `work` keeps the figures in one file a bundle and setting, written every 30 seconds and at the end; a
    later call with the same photographs, or with more behind them, goes on from there.

    Args:
        generator: the bundle.
        photographs: N of them.
        measures: what judges the pictures.
        editing: how.
        work: an existing folder.
        on_images: called with the number of photographs finished, those of earlier calls included.
    Raises:
        NextscaleError: the bundle has no encoder, or the folder's file is damaged.
    """
    path, digests = _path(generator, measures, editing, work), photographs.digests()
    results = _continued(path, measures, digests, generator.bundle.model.image_size)
    boxes = regions(generator.bundle.model, len(photographs), editing.region_seed)

    def measure(part: range) -> None:
        nonlocal results
        found = _measured(generator, photographs, boxes, part, measures, editing)
        with kept_file(path, AGAIN):
            results = found if results is None else results.extended(found)

    def keep() -> None:
        assert results is not None
        _write(path, results, digests)

    begin = 0 if results is None else len(results)
    measure_on(begin, len(photographs), editing.batch_size, measure, keep, on_images)
    assert results is not None  # there are at least two photographs
    return results.first(len(photographs))


def seconds_per_photograph(
    generator: Generator, photographs: Photographs, measures: Measures, editing: Editing
) -> float:
    """Of one batch, behind one that warms up."""
    boxes = regions(generator.bundle.model, len(photographs), editing.region_seed)
    part = range(min(editing.batch_size, len(photographs)))
    _measured(generator, photographs, boxes, part, measures, editing)
    begun = time.monotonic()
    _measured(generator, photographs, boxes, part, measures, editing)
    return (time.monotonic() - begun) / len(part)


def finished(generator: Generator, photographs: Photographs, measures: Measures, editing: Editing, work: Path) -> int:
    """How many of the photographs an earlier run has left figures of."""
    path = _path(generator, measures, editing, work)
    results = _continued(path, measures, photographs.digests(), generator.bundle.model.image_size)
    return 0 if results is None else min(len(results), len(photographs))


def _measured(
    generator: Generator,
    photographs: Photographs,
    boxes: NDArray[np.bool_],
    part: range,
    measures: Measures,
    editing: Editing,
) -> EditResults:
    """Those photographs edited by each task, and measured."""
    model, chosen = generator.bundle.model, np.array(part)
    images, labels = photographs.images[chosen], photographs.labels[chosen]
    token_maps = generator.encode(images)
    figures = {column: np.full(len(chosen), np.nan) for column in measures.columns}
    pictures, numbers = dict[str, NDArray[np.uint8]](), dict[str, NDArray[np.int64]]()
    score = measures.class_score
    for task in measures.tasks:
        takes_class = task == CLASS_EDITING
        taken = np.arange(len(chosen))
        if takes_class:
            taken = taken[measures.known(labels)]
        shown = np.isin(chosen[taken], PICTURED[task])
        numbers[task] = chosen[taken][shown]
        pictures[task] = np.zeros((0, *model.image_size, 3), np.uint8)
        if not len(taken):
            continue
        masks = np.stack([remade(task, box) for box in boxes[chosen[taken]]])
        given = labels[taken] if takes_class else np.full(len(taken), model.num_classes)
        made = edited(generator, images[taken], token_maps[taken], masks, given, chosen[taken].tolist(), editing)
        pictures[task] = made[shown]
        if takes_class:
            assert score is not None
            figures[WHOLE][taken] = score(made, labels[taken])
            figures[REGION][taken] = score(np.stack([*boxes_alone(made, masks, model)]), labels[taken])
        else:
            for name, distance in measures.distances.items():
                figures[f"{task} {name}"][taken] = distance(made, images[taken])
    return EditResults(figures, pictures, numbers)


def boxes_alone(images: NDArray[np.uint8], masks: NDArray[np.bool_], model: ModelInfo) -> Iterator[NDArray[np.uint8]]:
    """The boxes alone, all of one size."""
    for image, mask in zip(images, masks, strict=True):
        inside = pixel_mask(mask, model)
        yield image[inside.any(1)][:, inside.any(0)]


def _path(generator: Generator, measures: Measures, editing: Editing, work: Path) -> Path:
    """The file of a bundle's content and all settings that decide the figures of a photograph."""
    settings = {
        "operators": generator.ops.variant,
        "measures": {name: distance.name for name, distance in measures.distances.items()},
        "classifier": None if measures.class_score is None else measures.class_score.name,
        **{name: value for name, value in asdict(editing).items() if name != "batch_size"},
    }
    return file_of(generator.bundle, work, settings, f"{{bundle}}-seed{editing.seed}-{{digest}}.npz")


def _write(path: Path, results: EditResults, digests: NDArray[np.uint64]) -> None:
    arrays: dict[str, NDArray[Any]] = {"photographs": digests[: len(results)]}
    arrays |= {f"figures/{column}": values for column, values in results.figures.items()}
    arrays |= {f"pictures/{task}": values for task, values in results.pictures.items()}
    arrays |= {f"numbers/{task}": values for task, values in results.numbers.items()}
    write_files({path: lambda file: np.savez(file, **arrays)})  # type: ignore[arg-type]


def _continued(
    path: Path, measures: Measures, digests: NDArray[np.uint64], size: tuple[int, int]
) -> EditResults | None:
    """What an earlier call left of these photographs, of pictures of a size [H, W], or None.

    Raises:
        NextscaleError: the file is damaged.
    """
    if not path.exists():
        return None
    with kept_file(path, AGAIN):
        arrays = read_npz(path)
        known = checked(arrays, "photographs", "u", (None,))
        if not len(known):
            raise ValueError("of no photographs")
        figures = {key: checked(arrays, f"figures/{key}", "f", known.shape, finite=False) for key in measures.columns}
        numbers = {task: checked(arrays, f"numbers/{task}", "i", (None,)) for task in measures.tasks}
        pictures = {
            task: checked(arrays, f"pictures/{task}", "u", (len(found), *size, 3)) for task, found in numbers.items()
        }
        if any(found.dtype != np.uint8 for found in pictures.values()):
            raise ValueError("pictures are of no bytes")
    count = min(len(known), len(digests))
    # Of other photographs: begun again.
    return EditResults(figures, pictures, numbers) if np.array_equal(known[:count], digests[:count]) else None
