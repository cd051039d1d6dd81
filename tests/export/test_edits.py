"""`Generator.edit` against the official notebook's editing: the same tokens, greedily."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from tiny_model import ONE_THREAD, no_progress

from nextscale.compiler.build import build_bundle
from nextscale.compiler.options import BuildOptions
from nextscale.graph_passes.recipe import load_recipe
from nextscale.models.var.sources import VARSource
from nextscale.runtime import Generator
from nextscale.runtime._edit import box_mask, forced_tokens, latent_mask, pixel_mask
from tests.goldens.parity import (
    CASES,
    EDIT_BOXES,
    EDIT_CFG_SCALE,
    EDITED_CASES,
    EDITS,
    GOLDENS,
    models_of,
    random_pictures,
)


@pytest.mark.parametrize("name", EDITED_CASES)
def test_tokens_are_the_official_ones(name: str, tmp_path: Path) -> None:
    var, vqvae = models_of(next(case for case in CASES if case.name == name))
    build_bundle(
        VARSource(var, vqvae, name, "For tests."),
        tmp_path / name,
        BuildOptions(load_recipe("fp32"), session=ONE_THREAD),
        no_progress,
    )
    generator = Generator(tmp_path / name, ONE_THREAD)
    model, images = generator.bundle.model, random_pictures(vqvae.config)
    goldens = np.load(GOLDENS / f"{EDITS}.npz")
    for place, (box, inpainting) in enumerate(EDIT_BOXES):
        wanted, kept = goldens[f"{name}.{place}.tokens"], goldens[f"{name}.{place}.kept"]
        inside = pixel_mask(box_mask(model.latent_size, box), model)
        mask = inside if inpainting else ~inside
        forced = forced_tokens(generator.encode(images), latent_mask(mask, model), 0, model)
        np.testing.assert_array_equal(forced >= 0, np.broadcast_to(kept, forced.shape))
        assert 0 < kept.mean() < 1
        for image, labels, tokens in zip(images, (None, [3]), wanted, strict=True):
            made = generator.edit(image, mask, labels, cfg_scale=EDIT_CFG_SCALE, top_k=1, top_p=0)
            np.testing.assert_array_equal(made.token_maps[0], tokens)
            np.testing.assert_array_equal(made.images[0][~mask], image[~mask])
            assert np.any(made.images[0][mask] != image[mask])
