"""An image depends on its class, seed and settings: not on the number of threads, not on its batch's other images.

Static ranges and dynamic ones (an image's, a token's) alike: no range is taken over several images. Numbers are equal
to the last bit where the batch has the same size; kernels may add up in another order where it has not.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from tiny_model import NUM_CLASSES, ONE_THREAD, L, V, no_progress, tiny_options, tiny_recipe, tiny_source

from nextscale.compiler.build import build_bundle
from nextscale.graph_passes.recipe import Recipe
from nextscale.runtime import Generator
from nextscale.runtime._session import SessionOptions

LABELS = [3, 7, 0]


def token_ranges() -> Recipe:
    """The default with ranges found at run time, one per token."""
    recipe = tiny_recipe("default")
    return replace(recipe, name="token", activations=replace(recipe.activations, granularity="token", range="max"))


# rtn-w8a8 has a range for each image, and integer attention with ranges for each image.
RECIPES = {name: tiny_recipe(name) for name in ("fp32", "default", "static-w8a8", "rtn-w8a8")} | {
    "token": token_ranges()
}


@pytest.fixture(scope="module", params=RECIPES)
def bundle(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder: Path = tmp_path_factory.mktemp("independence") / request.param
    options = replace(tiny_options("default", encoder=False), recipe=RECIPES[request.param])
    build_bundle(tiny_source(), folder, options, no_progress)
    return folder


@pytest.fixture(scope="module", params=["stock", "fused"])
def one_thread(request: pytest.FixtureRequest, bundle: Path) -> SessionOptions:
    if request.param == "stock":
        return ONE_THREAD
    if not list(bundle.glob("*.fused.onnx")):
        pytest.skip("float32 has no fused graphs")
    return SessionOptions(threads=1, ops="fused", ops_library=str(request.getfixturevalue("ops_library")))


@pytest.fixture(scope="module")
def generator(bundle: Path, one_thread: SessionOptions) -> Generator:
    return Generator(bundle, one_thread)


def predicted(
    generator: Generator, labels: list[int], forced: NDArray[np.int64]
) -> tuple[NDArray[np.float32], NDArray[np.uint8]]:
    """Logits float32 [B, L, V] given these tokens, and the pictures that they are."""
    stages = list(generator.stream(labels, forced_tokens=forced, outputs=["logits"]))
    return np.concatenate([stage.outputs["logits"] for stage in stages], axis=1), stages[-1].preview()


@pytest.fixture(scope="module")
def forced() -> NDArray[np.int64]:
    """Tokens of three images, the second and third unlike in the two batches of a test."""
    return np.random.default_rng(0).integers(0, V, (3, L))


def test_two_threads_compute_what_one_does(
    bundle: Path, one_thread: SessionOptions, generator: Generator, forced: NDArray[np.int64]
) -> None:
    two = Generator(bundle, replace(one_thread, threads=2))
    for found, expected in zip(predicted(two, LABELS, forced), predicted(generator, LABELS, forced), strict=True):
        np.testing.assert_array_equal(found, expected)
    sampled, expected_sample = (g.generate(LABELS, seed=5) for g in (two, generator))
    np.testing.assert_array_equal(sampled.token_maps, expected_sample.token_maps)
    np.testing.assert_array_equal(sampled.images, expected_sample.images)


def test_other_images_of_the_batch_do_not_matter(generator: Generator, forced: NDArray[np.int64]) -> None:
    """Wherever in the batch an image stands, and whatever is beside it."""
    others = np.random.default_rng(1).integers(0, V, forced.shape)
    for place in range(3):
        labels, tokens = [9, 1, 4], others.copy()
        labels[place], tokens[place] = LABELS[place], forced[place]
        batches = predicted(generator, LABELS, forced), predicted(generator, labels, tokens)
        for expected, found in zip(*batches, strict=True):
            np.testing.assert_array_equal(found[place], expected[place])
            assert (found[place - 1] != expected[place - 1]).any()


def test_an_image_alone_is_the_one_in_a_batch(generator: Generator) -> None:
    labels = [*LABELS, NUM_CLASSES]
    together = generator.generate(labels, seed=5)
    for i, label in enumerate(labels):
        alone = generator.generate([label], seed=5, first_image=i)
        np.testing.assert_array_equal(alone.token_maps[0], together.token_maps[i])
        assert np.abs(alone.images[0].astype(int) - together.images[i]).mean() < 0.1  # of 255 levels
