"""The arithmetic of editing against PyTorch and plain definitions; what `Generator.edit` gives and refuses."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from fake_bundle import NUM_CLASSES, PATCH_NUMS, PIXELS, L
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from model_infos import VAR_D16, squares
from numpy.typing import NDArray

from nextscale.runtime import Bundle, BundleError, ClassLabelError, Generator, ModelInfo, RequestError
from nextscale.runtime._edit import Mask, blend, box_mask, forced_tokens, kept_tokens, latent_mask, pixel_mask

SIDES_256 = (1, 2, 3, 4, 5, 6, 8, 10, 13, 16)
SIDES_512 = (1, 2, 3, 4, 6, 9, 13, 18, 24, 32)


def model_of(sides: tuple[int, ...], image: int = 512) -> ModelInfo:
    side = sides[-1]
    return replace(VAR_D16, stage_sizes=squares(*sides), latent_size=(side, side), image_size=(image, image))


def official(anew: Mask, side: int) -> NDArray[np.float32]:
    """How much of each token of a stage is kept, with PyTorch's own interpolation."""
    keep = torch.from_numpy(~anew)[None, None].float()
    share = F.interpolate(keep, size=(side, side), mode="bilinear", align_corners=False)[0, 0].numpy()
    return np.ones_like(share) if share.size <= 3 else share


@pytest.mark.parametrize("sides", [SIDES_256, SIDES_512, (1, 2, 3, 4, 5), (2, 3, 6)])
@given(ends=st.lists(st.integers(0, 32), min_size=4, max_size=4), outpainting=st.booleans())
@settings(deadline=None, max_examples=100)
def test_kept_tokens_of_boxes_are_the_official_ones(sides: tuple[int, ...], ends: list[int], outpainting: bool) -> None:
    y0, y1, x0, x1 = (min(end, sides[-1]) for end in (*sorted(ends[:2]), *sorted(ends[2:])))
    anew = np.zeros((sides[-1],) * 2, np.bool_)
    anew[y0:y1, x0:x1] = True
    anew ^= outpainting
    wanted = np.concatenate([official(anew, side).ravel() > 0.5 for side in sides])
    np.testing.assert_array_equal(kept_tokens(anew, model_of(sides)), wanted)


@pytest.mark.parametrize("sides", [SIDES_256, SIDES_512])
@given(seed=st.integers(0, 2**32 - 1), share=st.floats(0.05, 0.95))
@settings(deadline=None, max_examples=50)
def test_kept_tokens_of_any_mask_are_the_official_ones(sides: tuple[int, ...], seed: int, share: float) -> None:
    """But where a half was rounded to more or less than a half."""
    anew = np.random.default_rng(seed).random((sides[-1],) * 2) < share
    shares = np.concatenate([official(anew, side).ravel() for side in sides])
    clear = np.abs(shares - 0.5) > 1e-6
    np.testing.assert_array_equal(kept_tokens(anew, model_of(sides))[clear], shares[clear] > 0.5)
    assert clear.mean() > 0.8


def test_a_half_is_not_kept() -> None:
    anew = np.zeros((4, 4), np.bool_)
    anew[:, :1] = anew[:, 2:3] = True
    assert kept_tokens(anew, model_of((1, 2, 4)))[1:5].tolist() == [False] * 4


def test_a_position_is_made_anew_if_any_of_its_pixels_is() -> None:
    model = model_of((1, 2, 4), image=16)
    mask = np.zeros((16, 16), np.bool_)
    mask[7, 12] = True
    anew = latent_mask(mask, model)
    assert np.argwhere(anew).tolist() == [[1, 3]]
    assert np.argwhere(pixel_mask(anew, model)).min(0).tolist() == [4, 12]
    assert pixel_mask(anew, model).sum() == 16


def test_the_first_stages_can_be_kept() -> None:
    model = model_of((1, 2, 4), image=16)
    tokens = np.arange(2 * 21).reshape(2, 21)
    assert (forced_tokens(tokens, None, 2, model) >= 0).sum() == 2 * 5
    np.testing.assert_array_equal(forced_tokens(tokens, None, 2, model)[:, :5], tokens[:, :5])
    assert (forced_tokens(tokens, None, 0, model) == -1).all()
    np.testing.assert_array_equal(forced_tokens(tokens, None, 3, model), tokens)


@pytest.mark.parametrize(
    ("box", "ends"),
    [((0, 0, 1, 1), (0, 4, 0, 4)), ((0.125, 0.375, 0.625, 1), (0, 2, 2, 4)), ((0.5, 0, 0.9, 0.3), (2, 4, 0, 1))],
)
def test_ends_of_a_box_are_rounded_to_even(box: tuple[float, ...], ends: tuple[int, ...]) -> None:
    mask = box_mask((4, 4), box)
    wanted = np.zeros((4, 4), np.bool_)
    wanted[ends[0] : ends[1], ends[2] : ends[3]] = True
    np.testing.assert_array_equal(mask, wanted)


@pytest.mark.parametrize(
    "box", [(0.5, 0, 0.5, 1), (-0.1, 0, 1, 1), (0, 0, 1, 1.1), (0.8, 0, 0.2, 1), (0, float("nan"), 1, 1)]
)
def test_a_box_outside_the_picture_is_refused(box: tuple[float, ...]) -> None:
    with pytest.raises(RequestError, match="expected y0,x0,y1,x1 with 0 <= y0 < y1 <= 1"):
        box_mask((4, 4), box)


def test_a_box_smaller_than_a_token_is_refused() -> None:
    with pytest.raises(RequestError, match="less than a token; give a larger one"):
        box_mask((4, 4), (0.3, 0.3, 0.35, 0.9))


@given(
    size=st.tuples(st.integers(1, 12), st.integers(1, 12)),
    feather=st.integers(0, 6),
    share=st.floats(0, 1),
    seed=st.integers(0, 2**32 - 1),
)
@settings(deadline=None, max_examples=100, suppress_health_check=[HealthCheck.too_slow])
def test_blend_is_its_definition(size: tuple[int, int], feather: int, share: float, seed: int) -> None:
    rng = np.random.default_rng(seed)
    old, new = rng.integers(0, 256, (2, 2, *size, 3)).astype(np.uint8)
    mask = rng.random(size) < share
    found = blend(old, new, mask, feather)
    outside = np.argwhere(~mask)
    for y, x in np.ndindex(size):
        # The king's moves to the nearest pixel outside.
        depth = min((max(abs(y - a), abs(x - b)) for a, b in outside), default=feather + 1)
        d, steps = min(depth, feather + 1), feather + 1
        exact = (old[:, y, x].astype(int) * (steps - d) + new[:, y, x].astype(int) * d) / steps
        np.testing.assert_array_equal(found[:, y, x], np.floor(exact + 0.5))
    np.testing.assert_array_equal(found[:, ~mask], old[:, ~mask])


IMAGE = np.random.default_rng(1).integers(0, 256, (PIXELS, PIXELS, 3)).astype(np.uint8)
MASK = np.zeros((PIXELS, PIXELS), np.bool_)
MASK[:, 4:] = True


def test_an_edit_keeps_tokens_and_pixels_outside_the_mask(fake_encoder_bundle: Path) -> None:
    generator = Generator(fake_encoder_bundle)
    model, own = generator.bundle.model, generator.encode(IMAGE[None])
    kept = kept_tokens(latent_mask(MASK, model), model)
    made = generator.edit(IMAGE, MASK, [0, 2, 3], seed=5)
    assert made.class_labels.tolist() == [0, 2, 3]
    np.testing.assert_array_equal(made.token_maps[:, kept], own[:, kept].repeat(3, axis=0))
    np.testing.assert_array_equal(made.images[:, ~MASK], IMAGE[~MASK][None].repeat(3, axis=0))
    alone = generator.generate([0, 2, 3], seed=5, forced_tokens=np.where(kept, own, -1).repeat(3, axis=0))
    np.testing.assert_array_equal(made.token_maps, alone.token_maps)
    np.testing.assert_array_equal(made.images, blend(IMAGE, alone.images, MASK, 1))
    raw = generator.edit(IMAGE, MASK, [0, 2, 3], seed=5, feather=-1)
    np.testing.assert_array_equal(raw.images, alone.images)


def test_without_a_class_it_is_the_null_class(fake_encoder_bundle: Path) -> None:
    made = Generator(fake_encoder_bundle).edit(IMAGE, MASK)
    assert made.class_labels.tolist() == [NUM_CLASSES]


def test_a_variation_keeps_first_stages(fake_encoder_bundle: Path) -> None:
    generator = Generator(fake_encoder_bundle)
    made, own = generator.edit(IMAGE, keep_stages=2), generator.encode(IMAGE[None])
    begin = sum(side * side for side in PATCH_NUMS[:2])
    np.testing.assert_array_equal(made.token_maps[:, :begin], own[:, :begin])
    assert np.any(made.token_maps[:, begin:] != own[:, begin:])


def test_stages_are_told_and_cancel(fake_encoder_bundle: Path) -> None:
    seen: list[int] = []
    Generator(fake_encoder_bundle).edit(IMAGE, MASK, on_stage=lambda found: seen.append(found.stage))
    assert seen == [0, 1, 2]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"image": IMAGE[None]}, r"image: expected uint8 \[H, W, 3\]"),
        ({"image": None}, r"image: expected uint8 \[H, W, 3\]"),
        ({"image": IMAGE[:-1]}, r"images: expected uint8 \[B, 12, 12, 3\]"),
        ({"mask": MASK[:-1]}, r"mask: expected bool \[12, 12\]"),
        ({"mask": MASK.astype(np.uint8)}, r"mask: expected bool \[12, 12\]"),
        ({"mask": np.zeros_like(MASK)}, "mask: nothing is marked"),
        ({"keep_stages": 3}, "keep_stages 3 is out of range: expected 0 to 2"),
        ({"keep_stages": -1}, "keep_stages -1 is out of range"),
        ({"feather": -2}, "feather -2 is out of range: expected -1 to 12"),
        ({"feather": 13}, "feather 13 is out of range"),
        ({"forced_tokens": np.zeros((1, L), int)}, "forced_tokens: an edit forces those"),
        ({"class_labels": 3}, r"class_labels 3: expected several, such as \[3\]"),
        ({"class_labels": "crane"}, "class_labels 'crane': expected several"),
        ({"class_labels": np.array(3)}, "class_labels 3: expected several"),
        ({"class_labels": {3: 4}}, "expected a list of class ids or names"),
        ({"class_labels": []}, "class_labels is empty"),
        ({"top_p": float("nan")}, "top_p nan is out of range"),
    ],
)
def test_what_does_not_fit_is_refused_before_anything_runs(
    fake_encoder_bundle: Path, monkeypatch: pytest.MonkeyPatch, arguments: dict[str, Any], message: str
) -> None:
    monkeypatch.setattr(Generator, "_run", lambda *_: pytest.fail("ran"))
    with pytest.raises(RequestError, match=message):
        Generator(fake_encoder_bundle).edit(**({"image": IMAGE, "mask": MASK} | arguments))


def test_an_unknown_class_is_refused(fake_encoder_bundle: Path) -> None:
    with pytest.raises(ClassLabelError):
        Generator(fake_encoder_bundle).edit(IMAGE, MASK, ["walrus"])


def test_a_bundle_without_an_encoder_says_so(fake_bundle: Path) -> None:
    with pytest.raises(BundleError, match="has no encoder"):
        Generator(fake_bundle).edit(IMAGE, MASK)


def test_pictures_that_are_no_multiple_of_the_latent_are_refused(fake_encoder_bundle: Path) -> None:
    model: ModelInfo = Bundle.open(fake_encoder_bundle).model
    odd = ModelInfo(**{**model.__dict__, "image_size": (13, 12)})
    with pytest.raises(RequestError, match="no multiple of 3 x 3"):
        latent_mask(np.ones((13, 12), np.bool_), odd)
