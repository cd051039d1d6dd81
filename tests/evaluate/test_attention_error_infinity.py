"""The error of an Infinity's self-attention, of bundles whose product is integer."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from infinity_bundle import SIZES, tiny_infinity_source
from tiny_model import ONE_THREAD, no_progress, tiny_options

from nextscale.calib_data.subjects import Subjects
from nextscale.calib_data.text_subjects import text_subjects
from nextscale.compiler import build
from nextscale.compiler.build import build_bundle
from nextscale.compiler.options import BuildOptions
from nextscale.evaluate.attention_error import (
    AttentionError,
    attention_errors,
    has_attention_error,
    observed_bytes,
    open_observed,
)
from nextscale.graph_passes.observe_attention import output_names
from nextscale.graph_passes.recipe import ActivationRecipe, AttentionRecipe, CalibrationRecipe, DecoderRecipe, Recipe
from nextscale.runtime import Bundle, Generator
from nextscale.runtime._errors import NextscaleError
from nextscale.runtime._request import Request

STAGES, BLOCKS, IMAGES = SIZES[2].num_stages, 2, 3
ATTENTION = {
    "row": AttentionRecipe("integer", "image", "row", "residual", budget=0.2),
    "cross": AttentionRecipe("integer", "image", "log2", cross="integer"),
}
# The product's scale and its last multiplication are in float32.
ROUNDING = 8 * 2.0**-24


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Bundle]:
    """Full precision, and integer attention of 6 bits."""
    folder, source = tmp_path_factory.mktemp("attention"), replace(tiny_infinity_source(), sizes=(SIZES[2],))
    built = {"fp32": build_bundle(source, folder / "fp32", tiny_options("fp32", encoder=False), no_progress)}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(build, "AGREEMENT_IMAGES", 1)
        for name, attention in ATTENTION.items():
            parts = {"calibration": CalibrationRecipe(images=2), "decoder": DecoderRecipe("float")}
            recipe = Recipe(name, activations=ActivationRecipe(6, "image"), attention=attention, **parts)  # type: ignore[arg-type]
            options = BuildOptions(recipe, session=ONE_THREAD, encoder=False, text_encoder=False, fused=False)
            built[name] = build_bundle(source, folder / name, options, no_progress)
    return built


@pytest.fixture(scope="module")
def subjects(bundles: dict[str, Bundle]) -> Subjects:
    return text_subjects(Generator(bundles["fp32"], ONE_THREAD), ["fox", "a blue boat", "x"], IMAGES, seed=1)[0]


@pytest.fixture(scope="module")
def errors(bundles: dict[str, Bundle], subjects: Subjects) -> dict[str, AttentionError]:
    of = [bundles[name] for name in ATTENTION]
    found = attention_errors(bundles["fp32"], of, ONE_THREAD, images=IMAGES, subjects=subjects, cfg_scale=2.0)
    return dict(zip(ATTENTION, found, strict=True))


def test_numpy_explains_the_graph(errors: dict[str, AttentionError]) -> None:
    """Up to a log2 weight that lies between two powers, which the two logarithms may round differently."""
    for name, error in errors.items():
        assert error.error.shape == (STAGES, BLOCKS)
        bound = 1e-3 if "log2" in ATTENTION[name].weights else ROUNDING
        assert (np.sqrt(error.unexplained / error.exact) <= bound).all(), name
        assert ((error.relative > 1e-4) & (error.relative < 0.5)).all(), name


def test_the_first_stages_only_token_has_all_weight(errors: dict[str, AttentionError]) -> None:
    for error in errors.values():
        assert (error.weights_part[0] == 0).all()
        assert (error.values_share[0] == 1).all()


def test_shift_and_sum_acts_on_the_values_part(errors: dict[str, AttentionError]) -> None:
    """Of the one token of the first stage, which has all weight and a place."""
    assert (errors["row"].relative_of_values[0] < errors["cross"].relative_of_values[0] / 5).all()


def test_attention_to_the_text_does_not_count(bundles: dict[str, Bundle], errors: dict[str, AttentionError]) -> None:
    _, quantizers = open_observed(bundles["cross"], ONE_THREAD)
    assert set(quantizers) == {f"blocks.{i}.sa.mix" for i in range(BLOCKS)}
    tokens = np.cumsum([height * width for height, width in SIZES[2].stage_sizes])
    queries = np.diff(tokens, prepend=0)
    # Of 3 images two rows, two heads of 16 numbers.
    np.testing.assert_array_equal(errors["cross"].elements, np.outer(3 * 2 * 2 * 16 * queries, [1, 1]))


def test_figures_are_those_of_the_exposed_values(
    bundles: dict[str, Bundle], subjects: Subjects, errors: dict[str, AttentionError]
) -> None:
    """Computed once more, image by image, on the tokens that full precision makes."""
    (observed, quantizers), sums = open_observed(bundles["row"], ONE_THREAD), np.zeros((2, STAGES, BLOCKS))
    outputs = [output for name in quantizers for output in output_names(name)]
    generator = Generator(bundles["fp32"], ONE_THREAD)
    for i in range(IMAGES):
        settings = {**subjects[i : i + 1].settings(generator.bundle.manifest), "seed": 1, "first_image": i}
        maps = generator.generate(**settings, cfg_scale=2.0).token_maps
        request = Request.create(observed.bundle, **settings, cfg_scale=2.0, forced_tokens=maps)
        for stage in observed.runner().run(request, outputs):
            for block, name in enumerate(quantizers):
                a, v, product = (stage.outputs[output].astype(np.float64) for output in output_names(name))
                sums[:, stage.stage, block] += np.square(product - a @ v).sum(), np.square(a @ v).sum()
    np.testing.assert_allclose(errors["row"].relative, np.sqrt(sums[0] / sums[1]), rtol=1e-6)


def test_float_attention_has_none(bundles: dict[str, Bundle], subjects: Subjects) -> None:
    assert [name for name, bundle in bundles.items() if has_attention_error(bundle)] == [*ATTENTION]
    with pytest.raises(NextscaleError, match=r"stage\.onnx: no integer self-attention found in it"):
        attention_errors(bundles["fp32"], [bundles["fp32"]], ONE_THREAD, images=IMAGES, subjects=subjects)


def test_what_is_observed_is_counted(bundles: dict[str, Bundle]) -> None:
    model = bundles["fp32"].manifest.models[0]
    last, before = 16, 1 + 4
    numbers = 2 * last * (last + before) + 2 * 16 * (last + (last + before))
    assert observed_bytes(model) == 4 * 2 * BLOCKS * numbers
