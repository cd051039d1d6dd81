"""The contract's random numbers: Philox4x32-10, so that image i of seed s is the same in any batch and language.

Salmon, Moraes, Dror, Shaw: Parallel random numbers: as easy as 1, 2, 3 (SC 2011).
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from nextscale.runtime._errors import RequestError
from nextscale.runtime._wording import shown_number

_ROUNDS = 10
_MULTIPLIERS = (np.uint64(0xD2511F53), np.uint64(0xCD9E8D57))
_WEYL = (0x9E3779B9, 0xBB67AE85)  # golden ratio, sqrt(3) - 1
_LOW = np.uint64(0xFFFFFFFF)
_32 = np.uint64(32)


def philox4x32(counter: NDArray[np.uint32], key: tuple[int, int]) -> NDArray[np.uint32]:
    """Ten rounds of Philox4x32.

    Args:
        counter: uint32 [..., 4].
        key: two words, each in [0, 2^32).
    Returns:
        uint32 [..., 4].
    """
    c0, c1, c2, c3 = np.moveaxis(counter.astype(np.uint64), -1, 0)
    k0, k1 = key
    for _ in range(_ROUNDS):
        product0, product1 = c0 * _MULTIPLIERS[0], c2 * _MULTIPLIERS[1]
        c0, c1, c2, c3 = (
            (product1 >> _32) ^ c1 ^ np.uint64(k0),
            product1 & _LOW,
            (product0 >> _32) ^ c3 ^ np.uint64(k1),
            product0 & _LOW,
        )
        k0, k1 = (k0 + _WEYL[0]) & 0xFFFFFFFF, (k1 + _WEYL[1]) & 0xFFFFFFFF
    return np.stack((c0, c1, c2, c3), axis=-1).astype(np.uint32)


# Numbers of an image that are made at a time: making them takes many times their memory, and a cache holds so many.
_TOGETHER = 2**16
# What numbers are for: the last word of the counter, so that no two uses share any.
SAMPLING, SMOOTHING = 0, 1


def uniforms(seed: int, image_indices: Sequence[int], length: int, use: int = SAMPLING) -> NDArray[np.float32]:
    """Numbers in [0, 1) for each image; an image's numbers depend on (seed, index) and their use alone.

    Number t of image i takes word t % 4 of Philox4x32-10 with key (low, high half of seed) and counter
    (t // 4, low, high half of i, use), as (word >> 8) * 2^-24.

    Args:
        seed: in [0, 2^64).
        image_indices: B integers in [0, 2^64).
        length: numbers of an image, at least 0: one for each token to sample, V for each to smooth.
        use: SAMPLING or SMOOTHING.
    Returns:
        float32 [B, length].
    Raises:
        RequestError: seed or an image index is out of range.
    """
    for name, value in (("seed", seed), *(("image index", index) for index in image_indices)):
        require_64_bits(name, value)
    images = np.array(image_indices, dtype=np.uint64)[:, None]
    numbers = np.empty((len(image_indices), length), dtype=np.float32)
    for first in range(0, length, _TOGETHER):
        part = numbers[:, first : first + _TOGETHER]
        counter = np.zeros((len(image_indices), -(-part.shape[1] // 4), 4), dtype=np.uint32)
        counter[..., 0] = first // 4 + np.arange(counter.shape[1], dtype=np.uint32)
        counter[..., 1] = images & _LOW
        counter[..., 2] = images >> _32
        counter[..., 3] = use
        words = philox4x32(counter, (seed & 0xFFFFFFFF, seed >> 32)).reshape(len(image_indices), -1)
        part[:] = (words[:, : part.shape[1]] >> np.uint32(8)).astype(np.float32) * np.float32(2.0**-24)
    return numbers


def require_64_bits(name: str, value: int) -> None:
    """Refuse a number that Philox has no words for.

    Raises:
        RequestError: value is outside [0, 2^64).
    """
    if not 0 <= value < 2**64:
        raise RequestError(f"{name} {shown_number(value)} is out of range: expected 0 to 2^64 - 1")
