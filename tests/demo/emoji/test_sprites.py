from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from nextscale.demo.emoji.icons import SIDE, Emoji
from nextscale.demo.emoji.sprites import Sprites, alike, neutral_code, packed, unmistakable
from nextscale.runtime._errors import NextscaleError


def test_what_is_written_is_what_is_loaded(sprites: Sprites, data: Path) -> None:
    loaded = Sprites.load(data)
    assert (loaded.webp, loaded.emoji) == (sprites.webp, sprites.emoji)
    for name in ("style", "concept", "looks"):
        np.testing.assert_array_equal(getattr(loaded, name), getattr(sprites, name))


@pytest.mark.parametrize("content", [b"", b"no archive"])
def test_what_has_no_sprites_is_refused(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "sprites.npz"
    path.write_bytes(content)
    with pytest.raises(NextscaleError, match=r"no sprites .*; make them with demo.emoji.make_data"):
        Sprites.load(path)


def test_flat_colours_are_exact_and_outlines_always(sprites: Sprites) -> None:
    """Colours are multiplied by alpha, rounded: half of 200 at alpha 128 of 255 is 100.4."""
    flat = Image.new("RGBA", (SIDE, SIDE), (200, 0, 50, 128))
    one = Sprites((packed(flat),), sprites.style[:1], sprites.concept[:1], sprites.emoji, sprites.looks)
    assert (one.pixels([0])[0] == np.array((100, 0, 25, 128))[:, None, None]).all()
    noise = np.random.default_rng(0).integers(0, 256, (SIDE, SIDE, 4), dtype=np.uint8)
    one = Sprites(
        (packed(Image.fromarray(noise)),), sprites.style[:1], sprites.concept[:1], sprites.emoji, sprites.looks
    )
    np.testing.assert_array_equal(one.pixels([0])[0, 3], noise[..., 3])


def test_concepts_that_a_style_draws_alike_are_one() -> None:
    style, concept = np.array([0, 0, 0, 1, 1, 1, 1]), np.array([0, 1, 2, 0, 1, 2, 3])
    drawings = [b"a", b"b", b"a", b"c", b"d", b"e", b"d"]
    assert alike(drawings, style, concept, 5).tolist() == [0, 1, 0, 1, 2]


def test_drawings_of_several_looks_tell_none_apart() -> None:
    """In one style; two concepts of the same looks share a drawing, and so do two styles."""
    drawings, style, looks = [b"a", b"a", b"b", b"b", b"a"], np.array([0, 0, 0, 0, 1]), np.array([0, 1, 2, 2, 1])
    assert unmistakable(drawings, style, looks).tolist() == [False, False, True, True, True]


def test_equal_drawings_in_two_styles_are_not_alike() -> None:
    assert alike([b"a", b"a"], np.array([0, 1]), np.array([0, 1]), 2).tolist() == [0, 1]


@pytest.mark.parametrize(
    ("code", "neutral"),
    [
        ("1f469-200d-1f680", "1f9d1-200d-1f680"),  # woman astronaut
        ("1f647-200d-2642", "1f647"),  # man bowing
        ("1f468-200d-1f467-200d-1f466", "1f9d1-200d-1f9d2-200d-1f9d2"),  # family: man, girl, boy
        ("1f408-200d-2b1b", "1f408-200d-2b1b"),  # black cat
        ("1f468-200d-2764-200d-1f48b-200d-1f468", "1f48f"),  # kiss: man, man
        ("1f46d", "1f9d1-200d-1f91d-200d-1f9d1"),  # women holding hands
        ("2b1c", "25ab"),  # white large square
    ],
)
def test_codes_without_gender_and_size(code: str, neutral: str) -> None:
    assert neutral_code(code) == neutral


def test_kin_look_alike_or_differ_in_gender_alone(sprites: Sprites) -> None:
    codes = ("1f647", "1f647-200d-2640", "1f408", "1f647-200d-2642", "1f415")
    emoji = tuple(Emoji(code, code, (), 1) for code in codes)
    found = Sprites((), sprites.style[:0], sprites.concept[:0], emoji, np.array([0, 1, 0, 2, 3]))
    assert found.kin.tolist() == [0, 0, 0, 0, 1]
    assert found.kin_of_looks.tolist() == [0, 0, 0, 1]
