"""Bundles that carry keys and values in 8 bits: when they do, what they say, and what builds leave out for them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from infinity_bundle import SIZES, tiny_infinity_source
from tiny_model import ONE_THREAD, no_progress, tiny_options

from nextscale.calib_data.subjects import Subjects
from nextscale.compiler import _caches, build
from nextscale.compiler._caches import float_cache_bytes, sizes_in_full_precision, with_decided_cache
from nextscale.compiler.build import build_bundle
from nextscale.compiler.infinity_family import InfinityFamily
from nextscale.evaluate.teacher_forced import teacher_forced
from nextscale.graph_passes.recipe import AttentionRecipe, Recipe, load_recipe
from nextscale.models.infinity.presets import get_preset
from nextscale.models.infinity.schedules import make_size
from nextscale.runtime import Bundle, Generator
from nextscale.runtime._errors import NextscaleError
from nextscale.runtime._manifest import ModelInfo
from nextscale.runtime._memory import cache_bytes
from nextscale.runtime._verify import verify

# Between the caches of the two smaller sizes and that of the largest: 2 x 2 x depth 2 x width 32 x 4 bytes a token.
SOME = 30_000
TOKENS = [size.num_tokens for size in SIZES]
ALONE = {"encoder": False, "text_encoder": False}


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The same model, calibrated and compared alike, with both kinds of caches."""
    folder = tmp_path_factory.mktemp("caches")
    options = tiny_options("default", **ALONE)
    for cache in ("float", "integer"):
        recipe = replace(options.recipe, attention=AttentionRecipe(cache=cache))  # type: ignore[arg-type]
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(build, "AGREEMENT_IMAGES", 2)
            build_bundle(tiny_infinity_source(), folder / cache, replace(options, recipe=recipe), no_progress)
    return {cache: folder / cache for cache in ("float", "integer")}


def test_a_bundle_with_codes_passes_its_own_checks(bundles: dict[str, Path]) -> None:
    """Among them that generate.onnx and the stages one by one make the same."""
    report = verify(Bundle.open(bundles["integer"]), ONE_THREAD)
    assert report.passed, report
    assert "streaming" in [check.name for check in report.checks]


def test_a_manifest_says_so(bundles: dict[str, Path]) -> None:
    manifests = {name: Bundle.open(folder).manifest for name, folder in bundles.items()}
    for name, manifest in manifests.items():
        assert manifest.recipe["cache"] == name
    states = {state.input: state.dtype for state in manifests["integer"].graphs["stage"].state}
    assert states["past_key_values.1.value"] == "uint8"
    assert states["past_key_values.1.value_scale"] == "float32"
    assert states["text.1.value"] == "float32"
    # Heads of 16 channels: a code for each and a scale for all, 20 bytes in place of 64.
    for index in range(len(SIZES)):
        of_float, of_codes = (cache_bytes(manifests[name].of_size(index)) for name in ("float", "integer"))
        assert of_codes * 64 == of_float * 20


def test_codes_change_little(bundles: dict[str, Path]) -> None:
    """Of heads of 16 channels and two blocks, the error of codes beside that of all else that is integer."""
    reference = Generator(bundles["float"], ONE_THREAD)
    subjects = InfinityFamily(tiny_infinity_source()).agreement_subjects(6)
    candidates = {"codes": Generator(bundles["integer"], ONE_THREAD)}
    found = teacher_forced(reference, candidates, images=6, batch_size=1, subjects=subjects)["codes"]
    assert 0 < found.kl < 0.002 * 8
    assert found.top1 > 0.97


def test_large_caches_become_codes_by_themselves(monkeypatch: pytest.MonkeyPatch) -> None:
    info = InfinityFamily(tiny_infinity_source()).bundle_info({})
    largest = 2 * 2 * 2 * max(TOKENS) * 32 * 4
    assert max(float_cache_bytes(info.model.of_size(size)) for size in info.sizes) == largest
    recipe, integer_products = Recipe("r"), Recipe("r", attention=AttentionRecipe(products="integer"))
    for most, expected in ((largest, "float"), (largest - 1, "integer")):
        monkeypatch.setattr(_caches, "MOST_CACHED", most)
        assert with_decided_cache(recipe, info).attention.cache == expected
        for other in (load_recipe("fp32"), integer_products, replace(recipe, attention=AttentionRecipe(cache="float"))):
            assert with_decided_cache(other, info).attention.cache == "float"
        asked = replace(recipe, attention=AttentionRecipe(cache="integer"))
        assert with_decided_cache(asked, info).attention.cache == "integer"


@pytest.mark.parametrize(("area", "gigabytes"), [("0.06M", 0.55), ("0.25M", 2.64), ("0.60M", 6.74), ("1M", 11.03)])
def test_the_table_of_the_docs(area: str, gigabytes: float) -> None:
    config, size = get_preset("infinity-2b").config, make_size(area, (1, 1))
    model = ModelInfo(
        0, size.stage_sizes, size.image_size, 2, config.depth, config.embed_dim, config.num_heads, 32, size.latent_size
    )
    assert round(float_cache_bytes(model) / 1e9, 2) == gigabytes
    page = (Path(__file__).parents[2] / "docs" / "quantization.md").read_text(encoding="utf-8")
    (row,) = [line for line in page.splitlines() if line.startswith("| float32, GB |")]
    (codes,) = [line for line in page.splitlines() if line.startswith("| codes and scales, GB |")]
    place = 2 + ["0.06M", "0.25M", "0.60M", "1M"].index(area)
    assert float(row.split("|")[place]) == gigabytes
    assert float(codes.split("|")[place]) == round(float_cache_bytes(model) * 132 / 512 / 1e9, 2)
    assert (float_cache_bytes(model) > _caches.MOST_CACHED) == (area in ("0.60M", "1M"))


def test_sizes_with_large_caches_are_not_run_in_full_precision(
    bundles: dict[str, Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """They have more stages than what is observed, and are near what a bundle does that was calibrated with them."""
    monkeypatch.setattr(_caches, "MOST_CACHED", SOME)
    monkeypatch.setattr(build, "AGREEMENT_IMAGES", 2)
    family = InfinityFamily(tiny_infinity_source())
    small = {index for index, tokens in enumerate(TOKENS) if 2 * 2 * 2 * tokens * 32 * 4 <= SOME}
    assert 0 < len(small) < len(SIZES)
    for subjects in (family.calibration_subjects(9, 0), family.agreement_subjects(9), family.saturation_subject()):
        assert set(subjects.sizes.tolist()) <= small
    build_bundle(tiny_infinity_source(), tmp_path / "out", tiny_options("default", **ALONE), no_progress)
    bundle = Bundle.open(tmp_path / "out")
    assert (bundle.manifest.recipe["attention"]["cache"], bundle.manifest.recipe["cache"]) == ("auto", "integer")
    largest = Subjects(np.full(4, TOKENS.index(max(TOKENS))), texts=family.agreement_subjects(4).texts)
    reference, candidates = Generator(bundles["float"], ONE_THREAD), {"it": Generator(bundle, ONE_THREAD)}
    found = teacher_forced(reference, candidates, images=4, batch_size=1, subjects=largest)["it"]
    # Ranges of nothing would make all that a layer reads one code.
    assert found.stage_top1.min() > 0.9


def test_a_bundle_of_large_sizes_alone_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(_caches, "MOST_CACHED", 100)
    words = "tiny: pictures of 0.000977M have 0.0 GB of keys and values in full precision, too many to be calibrated"
    with pytest.raises(NextscaleError, match=words):
        build_bundle(tiny_infinity_source(), tmp_path / "out", tiny_options("default"), no_progress)
    assert not (tmp_path / "out").exists()


def test_a_bundle_without_sizes_has_its_models(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_infinity_source().model_info()
    assert sizes_in_full_precision("tiny", model, []) == [0]
    monkeypatch.setattr(_caches, "MOST_CACHED", 100)
    with pytest.raises(NextscaleError, match=r"tiny: pictures of 96 x 128 have 0\.0 GB of keys and values"):
        sizes_in_full_precision("tiny", model, [])


def test_codes_beside_integer_products_are_refused() -> None:
    with pytest.raises(NextscaleError, match=r'attention.cache = "integer" needs attention.products = "float"'):
        Recipe("r", attention=AttentionRecipe(products="integer", cache="integer")).check()
