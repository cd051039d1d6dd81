"""Sampling on the tiny model: the tokens of plain generation, matching, resuming."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from tiny_model import NUM_CLASSES, L, V

from nextscale.calib_data._calibration_labels import calibration_labels
from nextscale.calib_data._kept_entries import kept_probabilities
from nextscale.calib_data.match_probabilities import MatchingReport
from nextscale.calib_data.sample import MATCHINGS, Matching, SamplingSettings, mean_log_probability, sample_token_maps
from nextscale.calib_data.token_maps import TokenMaps
from nextscale.runtime import Generator
from nextscale.runtime._errors import NextscaleError, OutputError, RequestError
from nextscale.runtime._manifest import ModelInfo

N = 24
SETTINGS = SamplingSettings(images=N, seed=3, cfg_scale=2.0, top_k=30, top_p=0.9, batch_size=5)
EACH = pytest.mark.parametrize("matching", MATCHINGS)
Result = tuple[TokenMaps, MatchingReport]


def run(generator: Generator, work: Path, **changes: Any) -> Result:
    return sample_token_maps(generator, dataclasses.replace(SETTINGS, **changes), work)


@pytest.fixture(scope="module")
def results(fp32_generator: Generator, tmp_path_factory: pytest.TempPathFactory) -> dict[Matching, Result]:
    folder = tmp_path_factory.mktemp("works")
    return {matching: run(fp32_generator, folder / matching, matching=matching) for matching in MATCHINGS}


@pytest.fixture
def model(fp32_generator: Generator) -> ModelInfo:
    return fp32_generator.bundle.model


def probabilities(generator: Generator, maps: TokenMaps) -> NDArray[np.float64]:
    """p_k(i, j) given all tokens before: float64 [N, L, V]."""
    stages = generator.stream(
        maps.class_labels, cfg_scale=SETTINGS.cfg_scale, forced_tokens=maps.token_maps, outputs=["logits"]
    )
    logits = np.concatenate([stage.outputs["logits"] for stage in stages], axis=1)
    return kept_probabilities(logits.reshape(-1, V), 30, SETTINGS.top_p).reshape(N, L, V)


def frequencies(tokens: NDArray[np.int64], model: ModelInfo) -> NDArray[np.int64]:
    return np.stack([np.bincount(tokens[:, part].ravel(), minlength=V) for part in model.stage_slices])


# What is sampled


def test_without_matching_the_tokens_are_those_of_generate(
    fp32_generator: Generator, results: dict[Matching, Result]
) -> None:
    maps, _ = results["none"]
    labels = calibration_labels(NUM_CLASSES, N, seed=3)
    plain = fp32_generator.generate(labels, seed=3, cfg_scale=2.0, top_k=30, top_p=0.9, batch_size=5)
    np.testing.assert_array_equal(maps.class_labels, labels)
    np.testing.assert_array_equal(maps.token_maps, plain.token_maps)


@EACH
def test_maps_of_a_matching_are_whole(results: dict[Matching, Result], matching: Matching) -> None:
    maps, report = results[matching]
    assert (maps.token_maps.shape, maps.token_maps.dtype) == ((N, L), np.int64)
    assert ((maps.token_maps >= 0) & (maps.token_maps < V)).all()
    assert maps.settings["settings"] == dataclasses.asdict(dataclasses.replace(SETTINGS, matching=matching))
    assert maps.settings["bundle"]["name"] == "tiny"
    assert maps.settings["report"] == report.as_json()


@EACH
def test_frequencies_are_those_of_the_maps(
    results: dict[Matching, Result], model: ModelInfo, matching: Matching
) -> None:
    maps, report = results[matching]
    np.testing.assert_array_equal(report.after, frequencies(maps.token_maps, model))
    np.testing.assert_array_equal(report.before.sum(1), report.after.sum(1))
    np.testing.assert_allclose(report.target.sum(1), report.after.sum(1), rtol=1e-6)


def test_the_target_is_the_sum_of_probabilities(
    fp32_generator: Generator, results: dict[Matching, Result], model: ModelInfo
) -> None:
    maps, report = results["none"]
    p = probabilities(fp32_generator, maps)
    expected = np.stack([p[:, part].sum((0, 1)) for part in model.stage_slices])
    np.testing.assert_allclose(report.target, expected, rtol=1e-4, atol=1e-4)  # logits of other batches


# Matching


def test_published_matching_pools_all_stages(results: dict[Matching, Result]) -> None:
    """From the tokens and probabilities of plain sampling."""
    plain, plain_report = results["none"]
    maps, report = results["published"]
    np.testing.assert_array_equal(report.before, plain_report.before)
    np.testing.assert_array_equal(report.target, plain_report.target)
    assert (maps.token_maps != plain.token_maps).sum() == report.moved > 0
    before, after, target = (array.sum(0) for array in (report.before, report.after, report.target))
    assert (np.abs(after - target) <= np.abs(before - target) + 1e-9).all()
    assert report.as_json()["total_variation"]["after"]["all"] < report.as_json()["total_variation"]["before"]["all"]


def test_stagewise_matching_improves_every_stage(results: dict[Matching, Result]) -> None:
    _, report = results["stagewise"]
    assert report.moved > 0
    assert (np.abs(report.after - report.target) <= np.abs(report.before - report.target) + 1e-9).all()


def test_stagewise_targets_are_conditioned_on_the_matched_tokens(
    fp32_generator: Generator, results: dict[Matching, Result], model: ModelInfo
) -> None:
    maps, report = results["stagewise"]
    p = probabilities(fp32_generator, maps)
    expected = np.stack([p[:, part].sum((0, 1)) for part in model.stage_slices])
    np.testing.assert_allclose(report.target, expected, rtol=1e-4, atol=1e-4)
    taken = np.take_along_axis(p, maps.token_maps[..., None], -1)
    assert (taken > 0).all()


@EACH
def test_the_batch_size_changes_no_token(
    fp32_generator: Generator, results: dict[Matching, Result], tmp_path: Path, matching: Matching
) -> None:
    maps, _ = run(fp32_generator, tmp_path / "work", matching=matching, batch_size=7)
    np.testing.assert_array_equal(maps.token_maps, results[matching][0].token_maps)


@EACH
def test_the_seed_decides(
    fp32_generator: Generator, results: dict[Matching, Result], tmp_path: Path, matching: Matching
) -> None:
    maps, _ = run(fp32_generator, tmp_path / "work", matching=matching, seed=4)
    assert (maps.token_maps != results[matching][0].token_maps).any()


# Resuming


class Stop(Exception):
    """Stands for Ctrl-C."""


@EACH
def test_an_interrupted_run_goes_on(
    fp32_generator: Generator,
    results: dict[Matching, Result],
    tmp_path: Path,
    matching: Matching,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Stopped after each batch in turn, no batch is run twice."""
    batches = 0
    stream = Generator.stream

    def counted(self: Generator, *arguments: Any, **options: Any) -> Any:
        nonlocal batches
        batches += 1
        return stream(self, *arguments, **options)

    monkeypatch.setattr(Generator, "stream", counted)
    settings = dataclasses.replace(SETTINGS, matching=matching)
    total = 5 * (4 if matching == "stagewise" else 1)
    for finished in range(1, total):

        def stop(what: str, done: int, total: int, finished: int = finished) -> None:
            if batches == finished:
                raise Stop

        with pytest.raises(Stop):
            sample_token_maps(fp32_generator, settings, tmp_path / "work", stop)
    maps, report = sample_token_maps(fp32_generator, settings, tmp_path / "work")
    assert batches == total
    np.testing.assert_array_equal(maps.token_maps, results[matching][0].token_maps)
    assert report.as_json() == results[matching][1].as_json()


def test_a_finished_run_is_read_back(fp32_generator: Generator, tmp_path: Path) -> None:
    first, _ = run(fp32_generator, tmp_path / "work", matching="stagewise")
    seen: list[str] = []
    settings = dataclasses.replace(SETTINGS, matching="stagewise")
    second, _ = sample_token_maps(
        fp32_generator, settings, tmp_path / "work", lambda what, done, total: seen.append(what)
    )
    assert seen == []
    np.testing.assert_array_equal(first.token_maps, second.token_maps)
    # The probabilities are gone, the tokens of each stage stay.
    assert sorted(path.name for path in (tmp_path / "work").iterdir()) == [
        "settings.json", *(f"stages-{stage:02}-{stage:02}.npz" for stage in range(4)),
    ]  # fmt: skip


@pytest.mark.parametrize(
    "changes",
    [{"seed": 4}, {"images": 23}, {"batch_size": 4}, {"matching": "published"}, {"cfg_scale": 3.0}, {"top_k": 0}],
    ids=str,
)
def test_other_settings_do_not_go_on(fp32_generator: Generator, tmp_path: Path, changes: dict[str, Any]) -> None:
    run(fp32_generator, tmp_path / "work")
    with pytest.raises(NextscaleError, match=f"was begun with settings.{next(iter(changes))} .*; give the same again"):
        run(fp32_generator, tmp_path / "work", **changes)


def test_another_bundle_does_not_go_on(fp32_generator: Generator, fp32_bundle: Path, tmp_path: Path) -> None:
    from tiny_model import ONE_THREAD, build_tiny, tiny_source

    other = build_tiny(tmp_path / "fp32", "fp32", tiny_source(seed=1))
    run(fp32_generator, tmp_path / "work")
    with pytest.raises(NextscaleError, match=r"was begun with bundle\.sha256 "):
        run(Generator(other, ONE_THREAD), tmp_path / "work")
    copy = shutil.copytree(fp32_bundle, tmp_path / "copy")
    run(Generator(copy, ONE_THREAD), tmp_path / "work")


def test_progress_counts_tokens(fp32_generator: Generator, tmp_path: Path) -> None:
    seen: list[tuple[str, int, int]] = []
    settings = dataclasses.replace(SETTINGS, images=4, batch_size=3, matching="stagewise")
    sample_token_maps(fp32_generator, settings, tmp_path / "work", lambda *event: seen.append(event))
    assert seen == [
        (f"stage {stage} of 4", images * end, 4 * end)
        for stage, end in enumerate((1, 5, 14, 30), start=1)
        for images in (3, 4)
    ]


# What is refused


def test_a_quantized_bundle_is_refused(int8_generator: Generator, tmp_path: Path) -> None:
    with pytest.raises(NextscaleError, match="--precision fp32"):
        run(int8_generator, tmp_path / "work")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("changes", [{"images": 0}, {"batch_size": 0}, {"matching": "best"}], ids=str)
def test_bad_settings_are_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(NextscaleError, match=next(iter(changes))):
        SamplingSettings(**changes)


@pytest.mark.parametrize("changes", [{"top_k": 129}, {"top_p": 1.5}, {"cfg_scale": -1}, {"seed": 2**64}], ids=str)
def test_bad_parameters_are_refused_before_anything_is_made(
    fp32_generator: Generator, tmp_path: Path, changes: dict[str, Any]
) -> None:
    with pytest.raises(RequestError, match=next(iter(changes))):
        run(fp32_generator, tmp_path / "work", **changes)
    assert not list(tmp_path.iterdir())


def test_a_folder_that_cannot_be_made_is_refused(fp32_generator: Generator) -> None:
    with pytest.raises(OutputError, match="cannot be made"):
        run(fp32_generator, Path("/proc/none/work"))


# The maps' own probability


def test_mean_log_probability_is_that_of_each_token_given_those_before(
    fp32_generator: Generator, results: dict[Matching, Result]
) -> None:
    maps, _ = results["none"]
    stages = fp32_generator.stream(maps.class_labels, cfg_scale=2.0, forced_tokens=maps.token_maps, outputs=["logits"])
    p = np.exp(np.concatenate([stage.outputs["logits"] for stage in stages], axis=1).astype(np.float64))
    p /= p.sum(-1, keepdims=True)
    expected = np.log(np.take_along_axis(p, maps.token_maps[..., None], -1)).mean()
    seen: list[tuple[str, int, int]] = []
    found = mean_log_probability(
        fp32_generator, maps, cfg_scale=2.0, batch_size=10, progress=lambda *event: seen.append(event)
    )
    assert found == pytest.approx(expected, abs=1e-5)
    assert seen == [("scoring", done * L, N * L) for done in (10, 20, 24)]
