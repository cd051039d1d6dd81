from __future__ import annotations

import numpy as np
import pytest

from nextscale.models.infinity.schedules import AREAS, SCALES, Size, first_stages, make_size, nearest_ratio
from nextscale.runtime._errors import NextscaleError
from tests.goldens.parity import GOLDENS


@pytest.fixture(scope="module")
def official() -> dict[str, np.ndarray]:
    with np.load(GOLDENS / "infinity_schedules.npz") as arrays:
        return dict(arrays)


def test_the_scales_are_the_official_ones(official: dict[str, np.ndarray]) -> None:
    theirs = {float(name): scales.tolist() for name, scales in zip(official["ratios"], official["scales"], strict=True)}
    ours = {height / width: np.array(scales).tolist() for (height, width), scales in SCALES.items()}
    assert len(ours) == len(theirs)
    for ratio, scales in ours.items():
        # Their names are cut to three digits.
        name = next(name for name in theirs if abs(name - ratio) < 1e-3)
        assert scales == theirs[name]
    assert list(AREAS.values()) == official["counts"].tolist()


def test_the_nearest_ratio_is_the_official_one(official: dict[str, np.ndarray]) -> None:
    templates = official["ratios"]
    sides = [(height, width) for height in range(1, 25) for width in range(1, 25)]
    different = []
    for height, width in sides:
        theirs = templates[np.argmin(np.abs(height / width - templates))]
        ours = nearest_ratio(height, width)
        if abs(ours[0] / ours[1] - theirs) >= 1e-3:
            different.append((height, width))
    # 13/14 and 7/8 are halfway between templates but for the third digit.
    middles = [sum(pair) / 2 for pair in zip(np.sort(templates), np.sort(templates)[1:], strict=False)]
    assert all(min(abs(h / w - middle) for middle in middles) < 1e-3 for h, w in different)


@pytest.mark.parametrize(
    ("area", "tokens", "pixels"), [("0.06M", 521, 256), ("0.25M", 2521, 512), ("0.60M", 6425, 768), ("1M", 10521, 1024)]
)
def test_square_sizes(area: str, tokens: int, pixels: int) -> None:
    size = make_size(area, (1, 1))
    assert (size.area, size.ratio, size.num_tokens) == (area, (1, 1), tokens)
    assert size.image_size == (pixels, pixels)
    assert size.latent_size == size.stage_sizes[-1] == (pixels // 16, pixels // 16)
    assert size.stage_begins[-1] + size.stage_tokens[-1] == size.num_tokens
    assert size.stage_begins[:4] == (0, 1, 5, 21)


def test_a_patch_of_latents_changes_the_latent_alone() -> None:
    size, plain = make_size("0.25M", (4, 3), patchify=True), make_size("0.25M", (4, 3))
    assert (size.patch, plain.patch) == (2, 1)
    assert size.latent_size == (72, 54)
    assert size == Size(plain.area, plain.ratio, plain.stage_sizes, (72, 54), plain.image_size)


def test_sizes_of_other_numbers_of_stages_are_named_by_their_pixels() -> None:
    size = first_stages(3, (1, 1))
    assert (size.area, size.image_size, size.num_stages) == ("0.00391M", (64, 64), 3)
    assert first_stages(7, (2, 1)) == make_size("0.06M", (2, 1))


def test_what_there_is_not_is_refused() -> None:
    with pytest.raises(NextscaleError, match=r"no area '2M': expected one of 0.06M, 0.25M, 0.60M, 1M"):
        make_size("2M", (1, 1))
    with pytest.raises(NextscaleError, match=r"no ratio 16:9 of height to width: expected one of 1:1, 5:4"):
        make_size("1M", (16, 9))
    with pytest.raises(NextscaleError, match="expected 1 to 13 stages, found 14"):
        first_stages(14, (1, 1))
    with pytest.raises(NextscaleError, match="expected positive sides of a ratio, found 0:1"):
        nearest_ratio(0, 1)
