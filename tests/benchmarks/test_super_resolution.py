"""benchmarks/super_resolution.py: what is compared."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from fake_bundle import PIXELS

from nextscale.runtime import Generator

PICTURES = np.random.default_rng(3).integers(0, 256, (5, PIXELS, PIXELS, 3)).astype(np.uint8)
PHOTOGRAPHS = np.random.default_rng(4).integers(0, 256, (3, 64, 64, 3)).astype(np.uint8)


@pytest.fixture(scope="module")
def super_resolution(program: Callable[[str], ModuleType]) -> ModuleType:
    return program("super_resolution")


@pytest.mark.parametrize("labelled", [False, True])
def test_a_variation_is_an_edit(super_resolution: ModuleType, fake_encoder_bundle: Path, labelled: bool) -> None:
    generator, labels = Generator(fake_encoder_bundle), np.array([0, 1, 2, 3, 4])
    sampling = super_resolution.Sampling("some", labelled, 1.5, 3)
    maps = super_resolution.encoded(generator, PICTURES)
    for kept in (1, 2):
        made = super_resolution.varied(generator, maps, labels, kept, sampling)
        for number, picture in enumerate(PICTURES):
            label = [labels[number]] if labelled else None
            edited = generator.edit(
                picture, None, label, keep_stages=kept, cfg_scale=1.5, top_k=3, first_image=number
            ).images[0]
            np.testing.assert_array_equal(made[number], edited)


def test_the_small_photograph_is_the_means_of_areas(super_resolution: ModuleType) -> None:
    task = super_resolution.task_of(16, PHOTOGRAPHS, np.zeros(3, np.int64))
    controls = task.controls()
    assert controls["bicubic"] is task.bicubic
    nearest = controls["nearest neighbour"]
    blocks = nearest.reshape(3, 16, 4, 16, 4, 3)
    assert np.array_equal(blocks, np.broadcast_to(blocks[:, :, :1, :, :1], blocks.shape))
    means = PHOTOGRAPHS.reshape(3, 16, 4, 16, 4, 3).mean(axis=(2, 4))
    assert np.abs(blocks[:, :, 0, :, 0] - means).max() <= 1
    noise = controls["bicubic and grey noise"].astype(int) - task.bicubic
    inside = ((task.bicubic > 40) & (task.bicubic < 215)).all(axis=-1)
    assert noise[inside].std() == pytest.approx(8, rel=0.1)
