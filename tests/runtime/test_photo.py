"""Photographs of any size: the window, what the model sees of it, and how it comes back."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from model_infos import THREE_STAGES, VAR_D16, squares

from nextscale.runtime import ModelInfo, RequestError
from nextscale.runtime import _photo as photo
from nextscale.runtime._edit import Mask, box_mask, latent_mask, pixel_mask
from nextscale.runtime._photo import SIDES, Canvas, Side, Window, feather_of, resized_mask

WIDE = replace(THREE_STAGES, image_size=(32, 64), latent_size=(4, 8))
TALL = replace(THREE_STAGES, image_size=(96, 32), latent_size=(12, 4))
MODELS = [THREE_STAGES, WIDE, TALL]

sides = st.one_of(st.integers(1, 40), st.integers(1, 400))
seeds = st.integers(0, 2**32 - 1)


def pixels_of(height: int, width: int, seed: int = 0) -> photo.Pixels:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3)).astype(np.uint8)


def boxed(size: tuple[int, int], seed: int) -> Mask:
    """A random box of at least a pixel."""
    rng = np.random.default_rng(seed)
    mask = np.zeros(size, np.bool_)
    y, x = (rng.integers(0, side) for side in size)
    mask[y : y + rng.integers(1, size[0] + 1), x : x + rng.integers(1, size[1] + 1)] = True
    return mask


@pytest.mark.parametrize("model", MODELS, ids=["square", "wide", "tall"])
@given(height=sides, width=sides, seed=seeds)
@settings(deadline=None, max_examples=200)
def test_the_window_is_the_largest_of_the_models_proportions(
    model: ModelInfo, height: int, width: int, seed: int
) -> None:
    mask = boxed((height, width), seed)
    window = Canvas(pixels_of(height, width), mask).window(model)
    assert 0 <= window.y <= window.y + window.height <= height
    assert 0 <= window.x <= window.x + window.width <= width
    assert window.of(mask).sum() == mask.sum()
    # By its definition, in whole numbers: as tall as the picture or as wide, the other side rounded.
    tall, wide = model.image_size
    if height * wide <= width * tall:
        h, w = height, round(height * wide / tall)
    else:
        h, w = round(width * tall / wide), width
    lines, columns = (np.flatnonzero(mask.any(axis=axis)) for axis in (1, 0))
    holds = np.ptp(lines) < h and np.ptp(columns) < w
    assert (window.height, window.width) == ((h, w) if holds else (height, width))
    if holds:
        for begin, side, total, places in (
            (window.y, h, height, lines),
            (window.x, w, width, columns),
        ):
            middle = (places[0] + places[-1] + 1) / 2
            # Nearer the mask's middle only beyond the picture's ends.
            assert abs(begin + side / 2 - middle) <= 0.5 or begin in (0, total - side)


def test_without_a_mask_the_window_is_the_whole() -> None:
    canvas = Canvas(pixels_of(30, 70), None)
    assert canvas.window(THREE_STAGES) == Window(0, 0, 30, 70)
    seen, mask = canvas.seen(canvas.window(THREE_STAGES), THREE_STAGES)
    assert (seen.shape, mask) == ((64, 64, 3), None)


def test_a_picture_of_the_models_size_is_seen_as_it_is() -> None:
    pixels, mask = pixels_of(64, 64), boxed((64, 64), 3)
    canvas = Canvas(pixels, mask)
    window = canvas.window(THREE_STAGES)
    seen, seen_mask = canvas.seen(window, THREE_STAGES)
    np.testing.assert_array_equal(seen, pixels)
    np.testing.assert_array_equal(seen_mask, mask)
    np.testing.assert_array_equal(canvas.with_window(seen, window, 0), pixels)


@given(old=st.tuples(sides, sides), new=st.tuples(st.integers(1, 64), st.integers(1, 64)), seed=seeds)
@settings(deadline=None, max_examples=200)
def test_a_resized_mask_goes_by_the_middles_of_pixels(old: tuple[int, int], new: tuple[int, int], seed: int) -> None:
    rng = np.random.default_rng(seed)
    mask = rng.random(old) < rng.choice([0.01, 0.5])
    marks = []
    for a, b in zip(old, new, strict=True):
        # [b, a]: whether the pixel's middle, times twice both sides, lies in the other; the larger side's are counted.
        first, second = (2 * np.arange(side) + 1 for side in (b, a))
        if a > b:
            low = 2 * a * np.arange(b)[:, None]
            marks.append((second * b >= low) & (second * b < low + 2 * a))
        else:
            low = 2 * b * np.arange(a)
            marks.append((first[:, None] * a >= low) & (first[:, None] * a < low + 2 * b))
    wanted = marks[0].astype(int) @ mask @ marks[1].T > 0
    found = resized_mask(mask, new)
    np.testing.assert_array_equal(found, wanted)
    assert found.shape == new
    if old[0] >= new[0] and old[1] >= new[1]:
        assert found.any() == mask.any()  # nothing that is marked is lost


@pytest.mark.parametrize("model", MODELS, ids=["square", "wide", "tall"])
@given(
    height=sides,
    width=sides,
    kind=st.sampled_from(["random", "box", "shares", "outpaint"]),
    extend=st.dictionaries(st.sampled_from(SIDES), st.floats(0.01, 1), max_size=3),
    feather=st.integers(0, 20),
    seed=seeds,
)
@settings(deadline=None, max_examples=100)
def test_kept_pixels_are_exact(
    model: ModelInfo, height: int, width: int, kind: str, extend: dict[Side, float], feather: int, seed: int
) -> None:
    assume(all(round(share * (height if side in ("top", "bottom") else width)) for side, share in extend.items()))
    rng = np.random.default_rng(seed)
    pixels = pixels_of(height, width, seed)
    canvas = Canvas(pixels, None)
    if kind == "random":
        canvas = replace(canvas, mask=(rng.random((height, width)) < rng.random()))
        assume(canvas.mask is not None and canvas.mask.any())
    elif kind == "box":
        canvas = replace(canvas, mask=boxed((height, width), seed))
    else:
        y, x = np.sort(rng.random((2, 2)))
        try:
            canvas = canvas.with_box((y[0], x[0], y[1], x[1]), model, outpaint=kind == "outpaint")
        except RequestError:
            assume(False)
    if extend:
        canvas = canvas.extended(extend)
    assert canvas.mask is not None
    window = canvas.window(model)
    _, seen_mask = canvas.seen(window, model)
    assert seen_mask is not None
    assert seen_mask.shape == model.image_size
    assert seen_mask.any()
    made = 255 - pixels_of(*model.image_size, seed)
    result = canvas.with_window(made, window, feather)
    assert result.shape == canvas.pixels.shape
    np.testing.assert_array_equal(result[~canvas.mask], canvas.pixels[~canvas.mask])
    raw = canvas.with_window(made, window, -1)
    inside = np.zeros(canvas.size, np.bool_)
    window.of(inside)[:] = True
    np.testing.assert_array_equal(raw[~inside], canvas.pixels[~inside])
    np.testing.assert_array_equal(canvas.with_window(made, window, 0)[canvas.mask], raw[canvas.mask])


@given(share=st.fixed_dictionaries({}, optional={side: st.floats(0.02, 4) for side in SIDES}), seed=seeds)
@settings(deadline=None, max_examples=50)
def test_an_extension_has_the_photograph_where_it_says(share: dict[Side, float], seed: int) -> None:
    pixels, mask = pixels_of(30, 50, seed), boxed((30, 50), seed)
    top, bottom = (round(share.get(side, 0) * 30) for side in ("top", "bottom"))
    left, right = (round(share.get(side, 0) * 50) for side in ("left", "right"))
    for own in (None, mask):
        larger = Canvas(pixels, own).extended(share)
        assert larger.size == (top + 30 + bottom, left + 50 + right)
        inner = (slice(top, top + 30), slice(left, left + 50))
        np.testing.assert_array_equal(larger.pixels[inner], pixels)
        wanted = np.ones(larger.size, np.bool_)
        wanted[inner] = False if own is None else own
        np.testing.assert_array_equal(larger.mask, wanted)
        assert (larger.pixels[:top] == larger.pixels[top]).all()
        assert (larger.pixels[:, left + 50 :] == larger.pixels[:, [left + 49]]).all()


@pytest.mark.parametrize(
    ("extend", "message"),
    [
        ({"left": 0.0}, "extend left=0: expected more than 0 and at most 4"),
        ({"left": -1.0}, "extend left=-1: expected"),
        ({"left": 4.5}, "extend left=4.5: expected"),
        ({"top": float("nan")}, "extend top=nan: expected"),
        ({"top": float("inf")}, "extend top=inf: expected"),
        ({"top": 0.001}, "extend top=0.001: less than a pixel; give a larger share"),
        ({"left": 1.0, "top": 0.001}, "extend top=0.001: less than a pixel"),
    ],
)
def test_extensions_that_are_none_are_refused(extend: dict[Side, float], message: str) -> None:
    with pytest.raises(RequestError, match=message):
        Canvas(pixels_of(30, 50), None).extended(extend)


def test_an_extension_has_at_most_as_many_pixels_as_a_picture(monkeypatch: pytest.MonkeyPatch) -> None:
    large = np.broadcast_to(np.uint8(0), (10_000, 10_000, 3))  # takes no memory
    monkeypatch.setattr(np, "pad", lambda *_, **__: pytest.fail("allocated"))
    with pytest.raises(RequestError, match="extend: 90000 x 90000 pixels are more than 100 million; give smaller"):
        Canvas(large, None).extended(dict.fromkeys(SIDES, 4.0))
    with pytest.raises(RequestError, match="extend: 10001 x 10000 pixels"):
        Canvas(large, None).extended({"left": 0.0001})


ENDS = st.floats(0, 1)


@given(scale=st.integers(4, 60), ends=st.tuples(ENDS, ENDS, ENDS, ENDS), outpaint=st.booleans())
@settings(deadline=None, max_examples=200)
def test_a_box_in_the_models_proportions_is_of_whole_tokens(
    scale: int, ends: tuple[float, ...], outpaint: bool
) -> None:
    """Whatever the photograph's size, the model sees the mask that the official code makes."""
    model = replace(VAR_D16, stage_sizes=squares(1, 2, 4), image_size=(32, 32), latent_size=(4, 4))
    (y0, y1), (x0, x1) = np.sort([ends[:2], ends[2:]])
    try:
        latent = box_mask((4, 4), (y0, x0, y1, x1)) ^ outpaint
    except RequestError:
        assume(False)
    assume(latent.any())
    canvas = Canvas(pixels_of(scale, scale), None).with_box((y0, x0, y1, x1), model, outpaint=outpaint)
    window = canvas.window(model)
    assert (window.height, window.width) == (scale, scale)
    _, seen = canvas.seen(window, model)
    assert seen is not None
    if scale >= 32:
        np.testing.assert_array_equal(latent_mask(seen, model), latent)
    if scale % 4 == 0:
        np.testing.assert_array_equal(seen, pixel_mask(latent, model))


def test_a_box_in_other_proportions_is_of_pixels() -> None:
    canvas = Canvas(pixels_of(30, 50), None).with_box((0.1, 0.5, 0.5, 1), THREE_STAGES)
    wanted = np.zeros((30, 50), np.bool_)
    wanted[3:15, 25:] = True
    np.testing.assert_array_equal(canvas.mask, wanted)
    outpainted = canvas.with_box((0.1, 0.5, 0.5, 1), THREE_STAGES, outpaint=True)
    np.testing.assert_array_equal(outpainted.mask, ~wanted)


@pytest.mark.parametrize("size", [(30, 50), (64, 64)])
def test_keeping_all_of_a_picture_is_refused(size: tuple[int, int]) -> None:
    with pytest.raises(RequestError, match="nothing to make anew"):
        Canvas(pixels_of(*size), None).with_box((0, 0, 1, 1), THREE_STAGES, outpaint=True)


@pytest.mark.parametrize("outpaint", [False, True])
@pytest.mark.parametrize(("size", "box"), [((1, 1), (0, 0, 0.25, 0.25)), ((2, 3), (0.4, 0.4, 0.45, 0.45))])
def test_a_box_smaller_than_a_pixel_is_refused(size: tuple[int, int], box: tuple[float, ...], outpaint: bool) -> None:
    with pytest.raises(RequestError, match=r"box.*less than a"):
        Canvas(pixels_of(*size), None).with_box(box, THREE_STAGES, outpaint=outpaint)


def test_the_seam_is_a_quarter_of_a_position() -> None:
    assert feather_of(Window(0, 0, 640, 640), THREE_STAGES) == 40
    assert feather_of(Window(0, 0, 3, 3), THREE_STAGES) == 1
