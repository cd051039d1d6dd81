"""Sampling of bits on a tiny Infinity: the bits of plain generation, matching by stage, resuming."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from infinity_bundle import SIZES, write_infinity_bundle
from numpy.typing import NDArray
from tiny_model import ONE_THREAD

from nextscale.calib_data.bit_maps import ARRAYS, BitMaps
from nextscale.calib_data.match_bits import BitMatchingReport
from nextscale.calib_data.sample import MATCHINGS
from nextscale.calib_data.sample_bits import BitSamplingSettings, one_probabilities, sample_bit_maps
from nextscale.calib_data.subjects import Subjects
from nextscale.graph_passes.recipe import Matching
from nextscale.models.infinity.reference import sample_bits
from nextscale.runtime import Generator
from nextscale.runtime._errors import NextscaleError
from nextscale.runtime._sizes import SizeInfo
from tests.tiny_infinity import CONFIG

N = 12
D = CONFIG.token_bits
SIZE_INFOS = [SizeInfo(**dataclasses.asdict(size)) for size in SIZES]
MODEL = CONFIG.text_channels, D, SIZE_INFOS
SETTINGS = BitSamplingSettings(seed=3, batch_size=2)
EACH = pytest.mark.parametrize("matching", MATCHINGS)
Result = tuple[BitMaps, BitMatchingReport]


def subjects(images: int = N) -> Subjects:
    """Texts of several lengths, sizes of 4, 2 and 3 stages in turn."""
    rng = np.random.default_rng(0)
    texts = tuple(rng.standard_normal((2 + i % 3, CONFIG.text_channels)).astype(np.float32) for i in range(images))
    return Subjects(np.resize([0, 0, 1, 2, 2], images), texts=texts)


@pytest.fixture(scope="module")
def generator(tmp_path_factory: pytest.TempPathFactory) -> Generator:
    return Generator(write_infinity_bundle(tmp_path_factory.mktemp("bits") / "fp32"), ONE_THREAD)


def run(generator: Generator, work: Path, **changes: Any) -> Result:
    return sample_bit_maps(generator, subjects(), dataclasses.replace(SETTINGS, **changes), work)


@pytest.fixture(scope="module")
def results(generator: Generator, tmp_path_factory: pytest.TempPathFactory) -> dict[Matching, Result]:
    folder = tmp_path_factory.mktemp("works")
    return {matching: run(generator, folder / matching, matching=matching) for matching in MATCHINGS}


def by_stage(maps: BitMaps) -> list[NDArray[np.int64]]:
    """The bits of each stage of all images that have it: [M, D] each."""
    found: list[list[NDArray[np.int64]]] = [[] for _ in range(4)]
    for size, bits in zip(maps.subjects.sizes, maps.token_maps, strict=True):
        for si, stage in enumerate(np.split(bits, np.cumsum(SIZES[size].stage_tokens)[:-1])):
            found[si].append(stage)
    return [np.concatenate(stage) for stage in found]


def probabilities(generator: Generator, maps: BitMaps) -> list[NDArray[np.float32]]:
    """That bits are 1, given all before: [M, D] of each stage."""
    found: list[list[NDArray[np.float32]]] = [[] for _ in range(4)]
    manifest = generator.bundle.manifest
    for image, bits in enumerate(maps.token_maps):
        request = maps.subjects[image : image + 1].settings(manifest)
        inputs = {**request.pop("inputs"), "forced_bits": bits[None]}
        for stage in generator.stream(**request, inputs=inputs, outputs=["logits"]):
            found[stage.stage].append(one_probabilities(stage.outputs["logits"][0], 0.5, 0.97))
    return [np.concatenate(stage) for stage in found]


# What is sampled


def test_without_matching_the_bits_are_those_of_generate(generator: Generator, results: dict[Matching, Result]) -> None:
    maps, _ = results["none"]
    for image, (size, text) in enumerate(zip(maps.subjects.sizes, maps.subjects.texts or (), strict=True)):
        inputs = {"size": int(size), "text_features": text[None]}
        plain = generator.generate(seed=3, first_image=image, inputs=inputs)
        np.testing.assert_array_equal(maps.token_maps[image], plain.token_maps[0])


def test_probabilities_are_what_the_sampler_draws() -> None:
    """Of 20,000 numbers as many ones as are expected, within 5 standard deviations, and none where there is none."""
    import torch

    log_odds = np.float32([-9, -3, -1.6, -0.1, 0, 0.4, 1.74, 3.4, 3.5, 20])
    for tau, top_p in ((1.0, 0.0), (0.5, 0.97), (2.0, 0.6), (1.0, 0.5)):
        p = one_probabilities(log_odds, tau, top_p)
        u = torch.from_numpy(np.random.default_rng(0).random((20_000, 10), np.float32))
        ones = sample_bits(torch.from_numpy(log_odds / np.float32(tau)).expand(20_000, -1), u, top_p).double().mean(0)
        assert (np.abs(ones.numpy() - p) <= 5 * np.sqrt(p * (1 - p) / 20_000) + 1e-7).all(), (tau, top_p)


@EACH
def test_maps_of_a_matching_are_whole(results: dict[Matching, Result], matching: Matching) -> None:
    maps, report = results[matching]
    assert len(maps) == len(maps.token_maps) == N
    for size, bits in zip(maps.subjects.sizes, maps.token_maps, strict=True):
        assert (bits.shape, bits.dtype) == ((SIZES[size].num_tokens, D), np.int64)
        assert np.isin(bits, (0, 1)).all()
    assert maps.settings["settings"] == {"images": N, **dataclasses.asdict(SETTINGS), "matching": matching}
    assert maps.settings["report"] == report.as_json()
    assert report.tokens.tolist() == [len(stage) for stage in by_stage(maps)]


@EACH
def test_frequencies_are_those_of_the_maps(results: dict[Matching, Result], matching: Matching) -> None:
    maps, report = results[matching]
    np.testing.assert_array_equal(report.after, np.stack([stage.sum(0) for stage in by_stage(maps)]))


# Matching


def test_published_matching_starts_from_plain_sampling(generator: Generator, results: dict[Matching, Result]) -> None:
    plain, plain_report = results["none"]
    maps, report = results["published"]
    np.testing.assert_array_equal(report.before, plain_report.before)
    np.testing.assert_array_equal(report.target, plain_report.target)
    expected = np.stack([p.sum(0, dtype=np.float64) for p in probabilities(generator, plain)])
    np.testing.assert_allclose(report.target, expected, rtol=1e-4, atol=1e-3)  # logits of other batches
    changed = sum(int((a != b).sum()) for a, b in zip(maps.token_maps, plain.token_maps, strict=True))
    assert changed == report.moved > 0


def test_every_stage_is_matched_by_itself(generator: Generator, results: dict[Matching, Result]) -> None:
    """Stage by stage the next one's probabilities are those after the matched bits."""
    for matching in ("published", "stagewise"):
        _, report = results[matching]
        assert (np.abs(report.after - report.target) <= np.abs(report.before - report.target) + 1e-9).all()
        variation = report.as_json()["total_variation"]
        assert variation["after"]["all"] < variation["before"]["all"]
    maps, report = results["stagewise"]
    found = probabilities(generator, maps)
    np.testing.assert_allclose(report.target, np.stack([p.sum(0) for p in found]), rtol=1e-4, atol=1e-3)
    for p, bits in zip(found, by_stage(maps), strict=True):
        assert (np.where(bits == 1, p, 1 - p) > 0).all()


# Going on


class Stopped(Exception):
    """Ctrl-C."""


@EACH
def test_an_interrupted_run_goes_on(
    generator: Generator, results: dict[Matching, Result], tmp_path: Path, matching: Matching
) -> None:
    """Wherever it stops; the batch before stays."""
    seen = list[tuple[str, int]]()

    def stop(what: str, done: int, total: int) -> None:
        seen.append((what, done))
        if len(seen) in (3, 9):
            raise Stopped

    settings = dataclasses.replace(SETTINGS, matching=matching)
    for _ in range(2 if matching == "stagewise" else 1):
        with pytest.raises(Stopped):
            sample_bit_maps(generator, subjects(), settings, tmp_path, stop)
    maps, _ = sample_bit_maps(generator, subjects(), settings, tmp_path)
    for found, expected in zip(maps.token_maps, results[matching][0].token_maps, strict=True):
        np.testing.assert_array_equal(found, expected)


def test_another_run_in_its_folder_is_refused(generator: Generator, tmp_path: Path) -> None:
    run(generator, tmp_path)
    with pytest.raises(NextscaleError, match=r"was begun with settings\.seed 3 instead of 4; give the same again"):
        run(generator, tmp_path, seed=4)
    with pytest.raises(NextscaleError, match=r"was begun with settings\.images 12 instead of 5, subjects "):
        sample_bit_maps(generator, subjects(5), SETTINGS, tmp_path)


def test_bits_of_quantized_models_are_refused(generator: Generator, tmp_path: Path) -> None:
    folder = shutil.copytree(generator.bundle.path, tmp_path / "int8")
    text = (folder / "manifest.json").read_text()
    (folder / "manifest.json").write_text(text.replace('"name": "fp32"', '"name": "default"'))
    with pytest.raises(NextscaleError, match="recipe default, but token maps are sampled in full precision"):
        run(Generator(folder, ONE_THREAD), tmp_path / "work")


# The folder


def test_maps_survive_their_folder(results: dict[Matching, Result], tmp_path: Path) -> None:
    maps, _ = results["stagewise"]
    maps.save(tmp_path / "maps")
    found = BitMaps.load(tmp_path / "maps", *MODEL)
    assert found.settings == maps.settings
    assert found.stage_sizes == maps.stage_sizes == tuple(size.stage_sizes for size in SIZES)
    np.testing.assert_array_equal(found.subjects.sizes, maps.subjects.sizes)
    texts, expected_texts = found.subjects.texts, maps.subjects.texts
    assert texts is not None
    assert expected_texts is not None
    both = zip((*found.token_maps, *texts), (*maps.token_maps, *expected_texts), strict=True)
    for ours, theirs in both:
        np.testing.assert_array_equal(ours, theirs)
        assert ours.dtype == theirs.dtype


TURNED = dataclasses.replace(
    SIZE_INFOS[0],
    ratio=SIZE_INFOS[0].ratio[::-1],
    stage_sizes=tuple((width, height) for height, width in SIZE_INFOS[0].stage_sizes),
)
OTHER_SIZES = {
    "turned": ([TURNED, *SIZE_INFOS[1:]], f"{TURNED.area} {TURNED.ratio_in_words}; "),
    "another order": (SIZE_INFOS[::-1], SIZE_INFOS[2].area),
    "one more": ([*SIZE_INFOS, TURNED], SIZE_INFOS[0].area),
}


@pytest.mark.parametrize(("sizes", "expected"), OTHER_SIZES.values(), ids=OTHER_SIZES.keys())
def test_maps_of_other_sizes_are_refused(
    results: dict[Matching, Result], tmp_path: Path, sizes: list[SizeInfo], expected: str
) -> None:
    results["none"][0].save(tmp_path / "maps")
    with pytest.raises(NextscaleError, match=f"of other sizes, or of these in another order; expected {expected}"):
        BitMaps.load(tmp_path / "maps", CONFIG.text_channels, D, sizes)


DAMAGED: dict[str, dict[str, Any]] = {
    "too few bits": {"bits": np.zeros(3, np.uint8)},
    "too many bits": {"bits": np.zeros(10_000, np.uint8)},
    "other texts": {"texts": np.zeros((36, 3), np.float32)},
    "texts of integers": {"texts": np.zeros((36, CONFIG.text_channels), np.int64)},
    "a size that is not there": {"sizes": np.full(N, 3)},
    "more sizes": {"sizes": np.zeros(N + 1, np.int64)},
}


@pytest.mark.parametrize("changed", DAMAGED.values(), ids=DAMAGED.keys())
def test_damaged_maps_are_one_line(results: dict[Matching, Result], tmp_path: Path, changed: dict[str, Any]) -> None:
    folder = tmp_path / "maps"
    results["none"][0].save(folder)
    with np.load(folder / ARRAYS) as file:
        arrays = {name: file[name] for name in file.files}
    np.savez(folder / ARRAYS, **{**arrays, **changed})
    with pytest.raises(NextscaleError, match=r"bit_maps\.npz: damaged, or of another model \(.*; remove ") as caught:
        BitMaps.load(folder, *MODEL)
    assert "\n" not in str(caught.value)


def test_maps_without_settings_are_one_line(results: dict[Matching, Result], tmp_path: Path) -> None:
    results["none"][0].save(tmp_path / "maps")
    (tmp_path / "maps" / "settings.json").write_text("[]")
    with pytest.raises(NextscaleError, match="damaged, or of another model"):
        BitMaps.load(tmp_path / "maps", *MODEL)


def test_a_folder_that_is_not_there_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(NextscaleError, match="none: no such folder; expected one made by `nextscale calibrate`"):
        BitMaps.load(tmp_path / "none", *MODEL)
