"""What earlier calls left in the store may be damaged, truncated or another's: one line says what to delete."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from damage import damaged
from fake_measures import FakeClassifier, FakeDistance
from model_infos import THREE_STAGES as MODEL
from tiny_model import ONE_THREAD

from nextscale.calib_data.attention_scores import COUNTED, THETA_STEPS, ScoreStatistics
from nextscale.calib_data.match_probabilities import FREQUENCIES
from nextscale.evaluate._noise_correlation import PAIRS
from nextscale.evaluate.generated_statistics import continued_statistics
from nextscale.evaluate.image_statistics import Features, ImageStatistics
from nextscale.evaluate.reference_statistics import read_reference, reference_writer
from nextscale.evaluate.teacher_forced import Agreement
from nextscale.measure.statistics import Interval
from nextscale.paper import (
    _editing,
    _integer_models,
    _observed_attention,
    _prompted_pictures,
    _segmentation_agreement,
    _segmentation_figures,
    table_2,
)
from nextscale.paper._class_scores import ClassProbability
from nextscale.paper._coco_scores import CocoScores
from nextscale.paper._observed_attention import Observing
from nextscale.paper._quality import read_nearness, write_nearness
from nextscale.paper._table_b_quality import SCORE_IMAGES, kept_scores, scores_file
from nextscale.paper._transfer_scores import statistics_writer
from nextscale.paper.figure_frequencies import matching_report
from nextscale.runtime import Bundle
from nextscale.runtime._errors import NextscaleError
from nextscale.runtime.image_io import npz_writer, write_files

Read = Callable[[], object]
RNG = np.random.default_rng(0)
DIGESTS = np.arange(3, dtype=np.uint64)
OBSERVING = Observing(2, 0, 2.0)


def assert_refused(
    path: Path,
    read: Read,
    message: str,
    optional: tuple[Any, ...] = (),
    *,
    harmless: tuple[str, ...] = (),
    where: Path | None = None,
) -> None:
    """The good file is read, and each that is damaged is one line on it, or on the folder that is to go."""
    read()
    for what, content in damaged(path, optional):
        if what in harmless:
            continue
        path.write_bytes(content)
        with pytest.raises(NextscaleError) as caught:
            print(what, "was read:", read())  # shown where nothing is raised
        told = str(caught.value)
        assert told.startswith(f"{where or path}: "), what
        assert message in told, what
        assert "\n" not in told, what


def statistics() -> ImageStatistics:
    pooled, probabilities = RNG.normal(size=(5, 3)).astype(np.float32), RNG.random((5, 4)).astype(np.float32)
    return ImageStatistics.of(Features(pooled, probabilities / probabilities.sum(1, keepdims=True)), "fake")


def test_statistics_of_pictures(tmp_path: Path) -> None:
    path, settings = tmp_path / "statistics.npz", {"seed": 0}
    write_files({path: statistics().writer(settings)})

    def never(part: range) -> Any:
        raise AssertionError("drawn again")

    def read() -> object:
        return continued_statistics(path, settings, never, FakeClassifier(), 5, 2, lambda done: None)

    assert_refused(path, read, "delete the file to start again")


def test_statistics_of_other_features_are_not_merged(tmp_path: Path) -> None:
    features = Features(np.zeros((2, 9), np.float32), np.full((2, 4), 0.25, np.float32))
    with pytest.raises(NextscaleError, match="cannot be merged"):
        statistics().merge(ImageStatistics.of(features, "fake"))


def test_a_reference(tmp_path: Path) -> None:
    path = tmp_path / "reference.npz"
    write_files({path: reference_writer(statistics(), 8)})
    assert_refused(path, lambda: read_reference(path), "")


@pytest.mark.parametrize("images", [1, 2])
def test_nearness(tmp_path: Path, images: int) -> None:
    path, by_stage = tmp_path / "agreement.json", np.zeros(3)
    write_nearness(path, Agreement(0.5, 0.1 if images > 1 else float("nan"), 0.9, by_stage, by_stage, images))
    assert_refused(path, lambda: read_nearness(path), "delete the file to compare that bundle again", ("kl_stderr",))


def test_nearness_of_bits(tmp_path: Path) -> None:
    path = tmp_path / "nearness.json"
    found = table_2.Nearness(0.5, 0.1, 0.9, (0.5, 0.25), (0.9, 0.8), 3, 0.1, (0.1, 0.2), 2)
    path.write_text(json.dumps(asdict(found)))
    assert table_2._read_nearness(path) == found
    may_be_none = ("kl_stderr", "attention_error", 0, 1)
    assert_refused(path, lambda: table_2._read_nearness(path), "delete the file to compare", may_be_none)


def test_figures_of_segmentations(tmp_path: Path) -> None:
    path = tmp_path / "row.json"
    agreement = _segmentation_agreement.Agreement(3, Interval(0.5, 0.25, 0.75), 0.5, 0.25, 7)
    found = _segmentation_figures.Figures(agreement, CocoScores(3, 50.0, 25.0, 12.5))
    path.write_text(json.dumps(asdict(found)))
    assert _segmentation_figures._read(path) == found
    may_be_none = ("agreement", "coco", "pq", "miou", "mean", "low", "high")
    assert_refused(path, lambda: _segmentation_figures._read(path), "delete the file to measure that row", may_be_none)


def test_figures_of_pictures_of_prompts(tmp_path: Path) -> None:
    path, measures = tmp_path / "pictures.npz", SimpleNamespace(columns=("a",))
    results = _prompted_pictures.PictureResults({"a": np.array([1, np.nan, 3])}, np.zeros((3, 2), np.float32))
    _prompted_pictures._write(path, results, DIGESTS)
    assert_refused(
        path,
        lambda: _prompted_pictures._continued(path, measures, DIGESTS),  # type: ignore[arg-type]
        "delete the file to measure that bundle again",
        ("figures/",),
    )


def test_figures_of_edited_photographs(tmp_path: Path) -> None:
    path = tmp_path / "edits.npz"
    measures = _editing.Measures({"fake": FakeDistance()}, ClassProbability(FakeClassifier(), [[0]]))
    results = _editing.EditResults(
        {column: np.array([1, np.nan, 3]) for column in measures.columns},
        {task: np.zeros((1, 4, 6, 3), np.uint8) for task in measures.tasks},
        {task: np.zeros(1, np.int64) for task in measures.tasks},
    )
    _editing._write(path, results, DIGESTS)
    assert_refused(
        path,
        lambda: _editing._continued(path, measures, DIGESTS, (4, 6)),
        "delete the file to measure that bundle again",
        ("figures/",),
    )


def test_errors_of_attention(tmp_path: Path) -> None:
    path, shape = tmp_path / "attention.npz", (MODEL.num_stages, MODEL.depth)
    arrays = {name: RNG.random(shape) for name in _observed_attention.SUMS}
    write_files({path: npz_writer({**arrays, "pairs": RNG.random((*shape, len(PAIRS), 6)), "images": np.array(2)})})
    assert_refused(
        path,
        lambda: _observed_attention._read(path, MODEL, OBSERVING),
        "delete the file to measure that bundle again",
    )


def test_token_maps_that_attention_is_observed_on(fp32_bundle: Path, tmp_path: Path) -> None:
    original = Bundle.open(fp32_bundle)

    def read() -> object:
        attention = _observed_attention.ObservedAttention(
            original, OBSERVING, tmp_path, ONE_THREAD, lambda what, done, total: None
        )
        return attention._token_maps()

    read()
    (path,) = tmp_path.iterdir()
    harmless = ("token_maps of one more",)  # which are not taken
    assert_refused(path, read, "delete the file to sample again", harmless=harmless)


def test_scores_of_attention(fp32_bundle: Path, tmp_path: Path) -> None:
    original = Bundle.open(fp32_bundle)
    model, path = original.model, scores_file(original, 0, tmp_path)
    histogram = np.ones((model.num_stages, THETA_STEPS), np.int64)
    attentive = np.ones((model.num_stages, len(COUNTED), model.num_tokens + 1), np.int64)
    samples = SCORE_IMAGES * 2 * model.num_heads * model.depth
    found = ScoreStatistics(histogram, attentive, SCORE_IMAGES, samples)
    write_files({path: statistics_writer(found, model)})

    def read() -> object:
        return kept_scores(original, 0, tmp_path, ONE_THREAD, lambda what, done, total: None, lent=False)

    assert_refused(path, read, "delete the file to observe attention again")


def test_frequencies(tmp_path: Path) -> None:
    folder, shape = tmp_path / "data", (MODEL.num_stages, MODEL.vocab_size)
    folder.mkdir()
    path, counts = folder / FREQUENCIES, np.ones(shape, np.int64)
    write_files({path: npz_writer({"target": np.ones(shape), "before": counts, "after": counts})})
    workshop: Any = SimpleNamespace(
        bundles=SimpleNamespace(maps=lambda recipe, told: folder),
        original=SimpleNamespace(bundle=SimpleNamespace(model=MODEL)),
        settings=SimpleNamespace(samples=2),
        tell=lambda *told: None,
    )
    assert_refused(
        path, lambda: matching_report(workshop), "damaged; remove this folder to make it again", where=tmp_path
    )


def test_reports_of_integer_models(tmp_path: Path) -> None:
    """Of which a table takes some values; what is wrong with others does no harm."""
    path = tmp_path / "report.json"
    line = {"name": "a", "kind": "attention", "refused": None, "is_integer": True, "error": {"relative": 0.5}}
    report = {"integer_bytes": 3, "samples": "3", "notes": ["a note"], "lines": [line, {**line, "refused": "why"}]}
    path.write_text(json.dumps(report))

    def read() -> object:
        try:
            return _integer_models.read_report(path)
        except (ValueError, RecursionError) as error:
            raise NextscaleError(f"{path}: {error}") from None

    assert_refused(path, read, "", ("refused", "error", "relative"))
