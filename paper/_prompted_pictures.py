"""What Table 2 draws and measures on one bundle: a picture of each prompt, kept in a folder and gone on with there."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from nextscale.calib_data.subjects import Subjects
from nextscale.evaluate._kept_figures import file_of, kept_file, measure_on
from nextscale.evaluate.concept_judge import ConceptJudge
from nextscale.evaluate.image_statistics import Gaussian
from nextscale.evaluate.prompt_scores import PromptScore
from nextscale.runtime._errors import NextscaleError
from nextscale.runtime._next_scale_loop import Generator, features_of_prompts
from nextscale.runtime._npz import checked, read_npz
from nextscale.runtime._regular_file import read_regular
from nextscale.runtime._wording import shown_value
from nextscale.runtime.image_io import write_files

RECOGNISED = "recognised"
PROMPTS_LIMIT = 32 * 2**20  # bytes
AGAIN = "measure that bundle again"
SETTINGS = ("seed", "cfg_scale", "tau", "top_p")  # that a file of prompts may have


@dataclass(frozen=True)
class Asked:
    """A prompt, and what its picture shall show.

    Attributes:
        prompt: what is drawn.
        kind: of prompts that are told apart in the table; empty: they are not.
        objects: concepts, and the window of the judge where each shall be; empty: nobody judges.
    """

    prompt: str
    kind: str = ""
    objects: tuple[tuple[str, str], ...] = ()


def read_asked(path: Path) -> tuple[list[Asked], dict[str, float]]:
    """Prompts of a JSON file, and how to sample: {"settings": {…}, "prompts": [{"prompt", "kind", "objects"}, …]}.

    Returns:
        the prompts, and what the file has of `SETTINGS`.
    Raises:
        NextscaleError: it cannot be read, or is of another form; a prompt is blank or no Unicode, or a kind is no name
            of a column.
    """
    try:
        document = json.loads(read_regular(path, PROMPTS_LIMIT, "; give fewer prompts"))
        found = [
            Asked(
                _text(item["prompt"]),
                _text(item.get("kind", "")),
                tuple((_text(concept), _text(window)) for concept, window in item.get("objects", ())),
            )
            for item in document["prompts"]
        ]
        settings = {name: _number(value) for name, value in document.get("settings", {}).items() if name in SETTINGS}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        found, settings = [], {}
    if not found:
        raise NextscaleError(
            f'{path}: no prompts; expected JSON such as {{"prompts": [{{"prompt": "a red apple", "kind": "seen", '
            '"objects": [["red apple", "whole"]]}]}'
        )
    for number, item in enumerate(found, 1):
        if not item.prompt.strip() or any("\ud800" <= c <= "\udfff" for c in item.prompt):
            raise NextscaleError(
                f"{path}: prompt {number}, {shown_value(item.prompt)}: expected words of valid Unicode"
            )
        if not item.kind.isprintable() or "|" in item.kind:
            raise NextscaleError(
                f"{path}: kind {shown_value(item.kind)} of prompt {number}: expected printable text without |, the "
                "name of a column"
            )
    return found, settings


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise TypeError(value)
    return value


def _number(value: object) -> float:
    if not isinstance(value, int | float) or isinstance(value, bool):
        raise TypeError(value)
    return value


def spread(asked: Sequence[Asked], count: int) -> list[Asked]:
    """At most so many of them, evenly over all, so that each kind has its share."""
    if count >= len(asked):
        return [*asked]
    return [asked[i * len(asked) // count] for i in range(count)]


class PictureFeatures(Protocol):
    """Features of pictures whose distribution is compared: `Vgg16Features`, or some in a test.

    Attributes:
        name: network and layer.
    """

    name: str

    def __call__(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Of uint8 [B, H, W, 3]: float32 [B, D]."""


@dataclass(frozen=True)
class Measures:
    """What measures a picture.

    Attributes:
        features: whose Frechet distance is taken.
        judge: of what is drawn; None: nobody judges.
        scores: of picture and prompt, by the name of their column.
    """

    features: PictureFeatures
    judge: ConceptJudge | None = None
    scores: Mapping[str, PromptScore] = field(default_factory=dict)

    @property
    def columns(self) -> tuple[str, ...]:
        """Names of all figures of a picture."""
        return (*((RECOGNISED,) if self.judge is not None else ()), *self.scores)

    @property
    def names(self) -> dict[str, str]:
        """What measures, by column."""
        judge = {} if self.judge is None else {RECOGNISED: self.judge.name}
        return {"features": self.features.name, **judge, **{key: score.name for key, score in self.scores.items()}}


@dataclass(frozen=True)
class Drawing:
    """How pictures are sampled: everything that decides them, beside bundle and prompt; as in `Generator.generate`.

    Picture i of the seed is that of prompt i.
    """

    seed: int
    cfg_scale: float
    tau: float
    top_p: float
    batch_size: int = 4

    def settings(self, seed: int | None = None) -> dict[str, Any]:
        """Of a request."""
        found = asdict(self)
        del found["batch_size"]
        return found if seed is None else found | {"seed": seed}


@dataclass(frozen=True)
class PictureResults:
    """Figures of n pictures.

    Attributes:
        figures: float64 [n] by column; NaN where a prompt names nothing to recognise.
        features: float32 [n, D].
    """

    figures: Mapping[str, NDArray[np.float64]]
    features: NDArray[np.float32]

    def __len__(self) -> int:
        return len(self.features)

    def extended(self, other: PictureResults) -> PictureResults:
        """These pictures, and then the others."""
        figures = {column: np.concatenate([self.figures[column], other.figures[column]]) for column in self.figures}
        return PictureResults(figures, np.concatenate([self.features, other.features]))

    def first(self, count: int) -> PictureResults:
        """Of the first pictures alone."""
        return PictureResults({key: values[:count] for key, values in self.figures.items()}, self.features[:count])

    def gaussian(self) -> Gaussian:
        """Mean and unbiased covariance of the features, of at least 2 pictures."""
        x = self.features.astype(np.float64)
        centred = x - x.mean(0)
        return Gaussian(x.mean(0), centred.T @ centred / (len(x) - 1))


def picture_results(
    generator: Generator,
    asked: Sequence[Asked],
    measures: Measures,
    drawing: Drawing,
    work: Path,
    on_images: Callable[[int], object] = lambda done: None,
) -> PictureResults:
    """Draw a picture of each prompt with a bundle and measure it.

    The folder `work` keeps the figures in one file a bundle and setting, written every 30 seconds and however this
    ends; a later call with the same prompts, or with more behind them, goes on from there.

    Args:
        generator: the bundle.
        asked: n prompts.
        measures: what measures the pictures.
        drawing: how to sample.
        work: an existing folder.
        on_images: called with the number of pictures finished, those of earlier calls included.
    Raises:
        NextscaleError: the folder's file is damaged; or a prompt is too long.
    """
    path, digests = _path(generator, measures, drawing, work), _digests(asked)
    results = _continued(path, measures, digests)
    begin = 0 if results is None else len(results)
    texts = of_prompts(generator, [item.prompt for item in asked[begin:]])

    def measure(part: range) -> None:
        nonlocal results
        request = texts[part.start - begin : part.stop - begin].settings(generator.bundle.manifest)
        images = generator.generate(first_image=part.start, **request, **drawing.settings()).images
        found = _measured(images, asked[part.start : part.stop], measures)
        with kept_file(path, AGAIN):
            results = found if results is None else results.extended(found)

    def keep() -> None:
        assert results is not None
        _write(path, results, digests)

    measure_on(begin, len(asked), drawing.batch_size, measure, keep, on_images)
    assert results is not None  # there is a prompt
    return results.first(len(asked))


def finished(generator: Generator, asked: Sequence[Asked], measures: Measures, drawing: Drawing, work: Path) -> int:
    """How many of the prompts an earlier call of `picture_results` has left figures of."""
    results = _continued(_path(generator, measures, drawing, work), measures, _digests(asked))
    return 0 if results is None else min(len(results), len(asked))


def seconds_per_picture(generator: Generator, asked: Sequence[Asked], measures: Measures, drawing: Drawing) -> float:
    """Of one batch that is drawn and measured, behind one that warms up."""
    batch = asked[: drawing.batch_size]
    request = of_prompts(generator, [item.prompt for item in batch]).settings(generator.bundle.manifest)
    began = 0.0
    for _ in range(2):
        began = time.perf_counter()
        _measured(generator.generate(**request, **drawing.settings()).images, batch, measures)
    return (time.perf_counter() - began) / len(batch)


def of_prompts(generator: Generator, prompts: Sequence[str]) -> Subjects:
    """What pictures of prompts are of, by the bundle's text encoder, which is loaded once for all of them."""
    texts = features_of_prompts(generator, prompts) if prompts else []
    return Subjects(np.zeros(len(prompts), np.int64), texts=tuple(texts))


def _measured(images: NDArray[np.uint8], asked: Sequence[Asked], measures: Measures) -> PictureResults:
    figures = dict[str, NDArray[np.float64]]()
    if measures.judge is not None:
        found = measures.judge.recognised(images, [item.objects for item in asked])
        figures[RECOGNISED] = np.where([bool(item.objects) for item in asked], found.astype(np.float64), np.nan)
    prompts = [item.prompt for item in asked]
    figures |= {column: score(images, prompts) for column, score in measures.scores.items()}
    return PictureResults(figures, measures.features(images))


def _path(generator: Generator, measures: Measures, drawing: Drawing, work: Path) -> Path:
    settings = {"operators": generator.ops.variant, "measures": measures.names, **drawing.settings()}
    return file_of(generator.bundle, work, settings, f"{{bundle}}-{{digest}}-seed{drawing.seed}.npz")


def _digests(asked: Sequence[Asked]) -> NDArray[np.uint64]:
    """One number for each prompt and what it asks for."""
    plain = [repr((item.prompt, item.objects)).encode() for item in asked]
    return np.array([int.from_bytes(hashlib.sha256(text).digest()[:8], "big") for text in plain], np.uint64)


def _write(path: Path, results: PictureResults, digests: NDArray[np.uint64]) -> None:
    arrays: dict[str, NDArray[Any]] = {"prompts": digests[: len(results)], "features": results.features}
    arrays |= {f"figures/{column}": values for column, values in results.figures.items()}
    write_files({path: lambda file: np.savez(file, **arrays)})  # type: ignore[arg-type]


def _continued(path: Path, measures: Measures, digests: NDArray[np.uint64]) -> PictureResults | None:
    """What an earlier call left of these prompts, or None."""
    if not path.exists():
        return None
    with kept_file(path, AGAIN):
        arrays = read_npz(path)
        known = checked(arrays, "prompts", "u", (None,))
        if not len(known):
            raise ValueError("of no pictures")
        features = checked(arrays, "features", "f", (len(known), None))
        figures = {key: checked(arrays, f"figures/{key}", "f", known.shape, finite=False) for key in measures.columns}
    count = min(len(known), len(digests))
    # Of other prompts: begun again.
    return PictureResults(figures, features) if np.array_equal(known[:count], digests[:count]) else None
