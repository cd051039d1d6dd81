import numpy as np
import pytest

from nextscale.runtime._errors import RequestError
from nextscale.runtime._uniforms import SAMPLING, SMOOTHING, philox4x32, uniforms

# From Random123's kat_vectors.
KNOWN_ANSWERS = [
    ("00000000 00000000 00000000 00000000", "00000000 00000000", "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
    ("ffffffff ffffffff ffffffff ffffffff", "ffffffff ffffffff", "408f276d 41c83b0e a20bc7c6 6d5451fd"),
    ("243f6a88 85a308d3 13198a2e 03707344", "a4093822 299f31d0", "d16cfe09 94fdcceb 5001e420 24126ea1"),
]


def words(text: str) -> np.ndarray:
    return np.array([int(word, 16) for word in text.split()], dtype=np.uint32)


@pytest.mark.parametrize(("counter", "key", "expected"), KNOWN_ANSWERS, ids=["zeros", "ones", "pi"])
def test_philox_known_answers(counter: str, key: str, expected: str) -> None:
    low, high = words(key).tolist()
    assert philox4x32(words(counter), (low, high)).tolist() == words(expected).tolist()


def test_philox_works_on_any_leading_shape() -> None:
    counters = np.random.default_rng(0).integers(2**32, size=(3, 5, 4), dtype=np.uint32)
    together = philox4x32(counters, (7, 9))
    assert together.shape == (3, 5, 4)
    assert together[2, 4].tolist() == philox4x32(counters[2, 4], (7, 9)).tolist()


def test_uniforms_follow_the_contract() -> None:
    seed, image, token = 0x0123456789ABCDEF, 2**40 + 3, 6
    counter = np.array([token // 4, image & 0xFFFFFFFF, image >> 32, 0], dtype=np.uint32)
    word = int(philox4x32(counter, (0x89ABCDEF, 0x01234567))[token % 4])
    assert uniforms(seed, [0, image], 14)[1, token] == np.float32((word >> 8) * 2.0**-24)


def test_other_uses_have_other_numbers() -> None:
    numbers = [uniforms(5, [3], 14, use) for use in (SAMPLING, SMOOTHING)]
    assert not np.intersect1d(*numbers).size
    counter = np.array([2**16 // 4 + 1, 3, 0, SMOOTHING], dtype=np.uint32)
    word = int(philox4x32(counter, (5, 0))[2])
    assert uniforms(5, [3], 2**16 + 8, SMOOTHING)[0, 2**16 + 6] == np.float32((word >> 8) * 2.0**-24)


def test_an_image_is_the_same_in_any_batch_and_length() -> None:
    whole = uniforms(5, range(8), 30)
    assert np.array_equal(uniforms(5, [6, 2], 17), whole[[6, 2], :17])
    assert whole.dtype == np.float32
    assert whole.flags.c_contiguous


def test_uniforms_are_uniform() -> None:
    numbers = uniforms(1, range(100), 1000)
    assert numbers.min() >= 0
    assert numbers.max() < 1
    counts, _ = np.histogram(numbers, bins=100, range=(0, 1))
    chi_square = float(((counts - 1000.0) ** 2 / 1000.0).sum())
    assert 49.0 < chi_square < 150.0  # 99 degrees of freedom, beyond the 1e-4 quantiles on both sides


@pytest.mark.parametrize("seed", [0, 2**64 - 1])
def test_the_whole_range_of_seeds_and_images_works(seed: int) -> None:
    assert uniforms(seed, [0, 2**64 - 1], 3).shape == (2, 3)


@pytest.mark.parametrize(("seed", "image", "name"), [(-1, 0, "seed -1"), (2**64, 0, "seed"), (0, -1, "image index -1")])
def test_out_of_range_is_refused(seed: int, image: int, name: str) -> None:
    with pytest.raises(RequestError, match=f"{name}.*expected 0 to 2\\^64 - 1"):
        uniforms(seed, [image], 4)
