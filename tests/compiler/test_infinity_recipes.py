"""Infinity by recipes of each kind of range: pictures see no other of their batch."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from infinity_bundle import SIZES, tiny_infinity_source
from numpy.typing import NDArray
from tiny_model import ONE_THREAD, no_progress, tiny_options

from nextscale.compiler import build
from nextscale.compiler.build import build_bundle
from nextscale.graph_passes.recipe import DecoderRecipe
from nextscale.runtime import Generator

# Of each kind of range, at 4 bits, where a wider range shows most; the others differ from one of them in bits alone.
BUILT = ["fp32", "rtn-w4a4", "nearest-w4a4", "static-w8a8"]
LENGTHS = (3, 40, 9)


@pytest.mark.parametrize("name", BUILT)
def test_a_picture_sees_no_text_of_its_batch(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows of shorter texts end in numbers that would widen any range that held them; logits are equal to the bit."""
    monkeypatch.setattr(build, "AGREEMENT_IMAGES", 1)
    source = replace(tiny_infinity_source(), sizes=tuple(SIZES[:1]))
    options = tiny_options(name, encoder=False, text_encoder=False, fused=False)
    recipe = replace(options.recipe, decoder=DecoderRecipe(precision="float"))  # which reads no text
    build_bundle(source, tmp_path / "out", replace(options, recipe=recipe), no_progress)
    generator = Generator(tmp_path / "out", ONE_THREAD)
    rng = np.random.default_rng(0)
    texts = [rng.standard_normal((length, 16)).astype(np.float32) for length in LENGTHS]
    mask = np.array([[int(place < length) for place in range(max(LENGTHS))] for length in LENGTHS])
    features = np.zeros((*mask.shape, 16), np.float32)
    features[:, :, 0] = 100
    for row, text in zip(features, texts, strict=True):
        row[: len(text)] = text
    tokens, logits = drawn(generator, 0, {"text_features": features, "text_mask": mask})
    for image, text in enumerate(texts):
        alone, logits_alone = drawn(generator, image, {"text_features": text[None]})
        np.testing.assert_array_equal(alone[0], tokens[image])
        np.testing.assert_array_equal(logits_alone[0], logits[image])


def drawn(generator: Generator, first: int, inputs: dict[str, NDArray[np.generic]]) -> tuple[NDArray[np.int64], ...]:
    """Token maps and logits of all stages."""
    stages = list(generator.stream(inputs=inputs, cfg_scale=1.5, seed=1, first_image=first, outputs=["logits"]))
    return tuple(
        np.concatenate(parts, axis=1)
        for parts in ([stage.tokens for stage in stages], [stage.outputs["logits"] for stage in stages])
    )
