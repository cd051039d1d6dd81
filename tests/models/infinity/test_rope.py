from __future__ import annotations

import numpy as np
import pytest
import torch

from nextscale.models.infinity.rope import BASE, RopeMode, rope_table, rope_tables, rotate
from nextscale.models.infinity.schedules import SCALES, first_stages
from tests.goldens.infinity_parity import ROPE_MODES, our_rope_tables, rope_sums
from tests.goldens.parity import GOLDENS


@pytest.mark.parametrize("mode", ROPE_MODES)
def test_the_tables_are_the_official_ones(mode: RopeMode) -> None:
    with np.load(GOLDENS / "infinity_rope.npz") as arrays:
        official = arrays[str(mode)]
    ours = rope_sums(our_rope_tables(mode))
    assert ours.shape == official.shape
    # Cosines of one angle differ by an ulp between kernels, those of mode 1 by a few; 4,000 of them are summed, with
    # random signs. A single token at a neighbouring position changes a sum by more than 0.01.
    np.testing.assert_allclose(ours, official, rtol=1e-6, atol=2e-5)


def test_a_token_turns_by_the_nearest_position_of_the_last_scale() -> None:
    ratio, si, d = (5, 4), 3, 8
    (height, width), (last_height, last_width) = SCALES[ratio][si], SCALES[ratio][-1]
    cos, sin = rope_table(ratio, si, d)
    for row in range(height):
        for column in range(width):
            # Python rounds half to even, too.
            positions = round(row * last_height / height), round(column * last_width / width)
            angles = [position * BASE ** (-2 * k / (d / 2)) for position in positions for k in range(d // 4)]
            turned = cos[row * width + column], sin[row * width + column]
            # Angles up to 70 are rounded to float32.
            for found, expected in zip(turned, (np.cos(angles), np.sin(angles)), strict=True):
                np.testing.assert_allclose(found, expected, atol=70 * 2**-24 * 2)


def test_the_table_of_a_size_is_that_of_its_stages() -> None:
    size = first_stages(4, (3, 4))
    for which, table in enumerate(rope_tables(size, 8)):
        for si, (begin, length) in enumerate(zip(size.stage_begins, size.stage_tokens, strict=True)):
            assert torch.equal(table[begin : begin + length], rope_table(size.ratio, si, 8)[which])


def test_pairs_of_channels_turn_as_complex_numbers() -> None:
    generator = torch.Generator().manual_seed(0)
    x, angles = torch.randn(2, 3, 5, 8, generator=generator), torch.randn(5, 4, generator=generator)
    turned = torch.view_as_complex(x.unflatten(-1, (4, 2))) * torch.polar(torch.ones_like(angles), angles)
    expected = torch.view_as_real(turned).flatten(-2)
    torch.testing.assert_close(rotate(x, angles.cos(), angles.sin()), expected, rtol=0, atol=1e-6)
