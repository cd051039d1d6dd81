"""Graphs that were altered in memory run on a bundle's weights, wherever those lie."""

from pathlib import Path

import numpy as np
import onnx_ir as ir
from fake_bundle import L, in_download_cache

from nextscale.calib_data.observed_stage import ObservedStage
from nextscale.calib_data.subjects import Subjects
from nextscale.runtime import Bundle, Generator, SessionOptions


def test_weights_in_a_download_cache_are_found(fake_bundle: Path, tmp_path: Path) -> None:
    bundle = Bundle.open(in_download_cache(fake_bundle, tmp_path / "cache"))
    observed = ObservedStage.open(bundle, ir.load(bundle.graph_path("stage")), SessionOptions(threads=1))
    labels, sampled = np.array([1, 2]), np.full((2, L), -1)
    stages = [found.tokens for _, found in observed.run(Subjects.of_classes(labels), sampled, batch_size=2, seed=3)]
    expected = Generator(fake_bundle).generate([1, 2], seed=3).token_maps
    assert np.array_equal(np.concatenate(stages, axis=1), expected)
