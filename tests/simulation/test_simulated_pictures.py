"""Simulated pictures beside those of bundles, and tables of them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from tiny_model import ONE_THREAD, no_progress, tiny_source

from nextscale.compiler.build import build_bundle
from nextscale.compiler.options import BuildOptions
from nextscale.evaluate.generated_statistics import Sampling
from nextscale.evaluate.teacher_forced import evaluation_labels
from nextscale.graph_passes.recipe import load_recipe
from nextscale.runtime._next_scale_loop import Generator
from nextscale.simulation.simulated_pictures import SimulatedPictures

SAMPLING = Sampling(seed=3, cfg_scale=2.0, top_k=20, top_p=0.9)
N = 5


def test_full_precision_draws_what_its_bundle_draws(fp32_generator: Generator) -> None:
    pictures = SimulatedPictures(tiny_source(), 2)
    found = [*pictures.drawn(pictures.full_precision, range(1, N), SAMPLING)]
    maps, drawn = (np.concatenate(parts) for parts in zip(*found, strict=True))
    labels = evaluation_labels(pictures.model.num_classes, N, SAMPLING.seed)[1:]
    expected = fp32_generator.generate(labels, first_image=1, seed=3, cfg_scale=2.0, top_k=20, top_p=0.9)
    np.testing.assert_array_equal(maps, expected.token_maps)
    assert np.abs(drawn.astype(int) - expected.images.astype(int)).max() <= 1
    sampled = pictures.token_maps(N, SAMPLING)
    np.testing.assert_array_equal(sampled.class_labels[1:], labels)
    np.testing.assert_array_equal(sampled.token_maps[1:], maps)


def test_a_recipe_draws_what_its_bundle_draws(tmp_path: Path) -> None:
    """Nearly: sums in another order move a code now and then, and then a token."""
    source, recipe = tiny_source(), load_recipe("default")
    pictures = SimulatedPictures(source, 4)
    maps = pictures.token_maps(8, SAMPLING)
    simulated = pictures.simulate(recipe, maps, None, None)
    (found,) = pictures.drawn(simulated, range(4), SAMPLING)
    options = BuildOptions(recipe, session=ONE_THREAD, token_maps=maps)
    bundle = build_bundle(source, tmp_path / "int8", options, no_progress)
    labels = evaluation_labels(pictures.model.num_classes, 4, SAMPLING.seed)
    expected = Generator(bundle, ONE_THREAD).generate(labels, seed=3, cfg_scale=2.0, top_k=20, top_p=0.9)
    assert (found[0] == expected.token_maps).mean() > 0.9
