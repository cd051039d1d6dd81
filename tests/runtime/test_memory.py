"""What a picture takes of memory, from manifests alone."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from fake_bundle import C, L
from fake_sizes_bundle import LENGTHS

from nextscale.runtime import Bundle, Generator
from nextscale.runtime._memory import cache_bytes


def test_keys_and_values_are_the_formula(fake_bundle: Path) -> None:
    """2 x 2 rows x depth 1 x L x width x 4 bytes."""
    assert cache_bytes(Bundle.open(fake_bundle).manifest) == 2 * 2 * 1 * L * C * 4


def test_a_tiny_model_of_several_blocks(fp32_bundle: Path) -> None:
    model = Bundle.open(fp32_bundle).model
    expected = 2 * 2 * model.depth * model.num_tokens * model.embed_dim * 4
    assert cache_bytes(Bundle.open(fp32_bundle).manifest) == expected


@pytest.mark.parametrize("index", range(3))
def test_it_is_what_the_last_stage_gives(fake_sizes_bundle: Path, index: int) -> None:
    generator = Generator(fake_sizes_bundle)
    names = ["present.0.key", "present.0.value"]
    *_, last = generator.stream(prompts=["a"], inputs={"size": index}, outputs=names)
    expected = sum(last.outputs[name].nbytes for name in names)
    assert cache_bytes(generator.bundle.manifest.of_size(index)) == expected == 2 * 2 * LENGTHS[index] * 8 * 4


def test_caches_of_fewer_bits_take_less(fake_sizes_bundle: Path) -> None:
    manifest = Bundle.open(fake_sizes_bundle).manifest
    stage = manifest.graphs["stage"]
    inputs = tuple(
        replace(tensor, dtype="int8") if tensor.name.startswith("past_key_values") else tensor
        for tensor in stage.inputs
    )
    small = replace(manifest, graphs={**manifest.graphs, "stage": replace(stage, inputs=inputs)})
    assert cache_bytes(small) * np.dtype(np.float32).itemsize == cache_bytes(manifest)
