"""Integer attention in NumPy, as docs/quantization.md defines it: exact integers up to the float rescale."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

LARGEST_ORDER = 64
POWERS = 15


def image_magnitude(x: NDArray[np.float32], rows: int) -> NDArray[np.float32]:
    """The largest |x| of each image, given to each of its rows: [R, ...] -> [R, 1, 1, 1]."""
    largest = np.abs(x).reshape(rows, len(x) // rows, -1).max(axis=(0, 2))
    return np.tile(largest, rows).reshape(-1, 1, 1, 1)


def scale_of(magnitude: NDArray[np.float32] | float, bits: int) -> NDArray[np.float32]:
    """2a / M of a magnitude of each image, in float32, or of one that is known, rounded once."""
    if isinstance(magnitude, float):
        scale = np.asarray(2 * magnitude / (2**bits - 1), np.float32)
    else:
        scale = magnitude * np.float32(2 / (2**bits - 1))
    return np.maximum(scale, np.float32(2.0**-100))


def signed_codes(x: NDArray[np.float32], scale: NDArray[np.float32], bits: int) -> NDArray[np.int64]:
    return np.clip(np.round(x / scale), -(2 ** (bits - 1)), 2 ** (bits - 1) - 1).astype(np.int64)


def scores(
    q: NDArray[np.float32],
    k: NDArray[np.float32],
    bits: int,
    rows: int,
    magnitudes: tuple[float, float] | None = None,
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """The integer product of q [R, H, l, d] and k [R, H, d, T], and its scale; `magnitudes` are static.

    Multiplied in float64, which is exact below 2^53 and much faster.
    """
    q_scale, k_scale = (
        scale_of(known, bits) for known in magnitudes or (image_magnitude(q, rows), image_magnitude(k, rows))
    )
    product = signed_codes(q, q_scale, bits).astype(np.float64) @ signed_codes(k, k_scale, bits).astype(np.float64)
    return product.astype(np.int64), q_scale * k_scale


def orders(score: NDArray[np.float32], theta: float, places: int) -> NDArray[np.int64]:
    """m = log2(2n) of each token (Eq. 14), 0 for those that are not attentive or have no place: [R, H, T]."""
    theta32 = np.float32(theta)
    m = sum((score > theta32 * np.float32(2**j)).astype(np.int64) for j in range(LARGEST_ORDER.bit_length()))
    rank = np.argsort(np.argsort(-score, axis=-1, kind="stable"), axis=-1, kind="stable")
    return np.where(rank < places, m, 0)


def shifted_sum(u: NDArray[np.float64], n: int, qmax: int) -> NDArray[np.int64]:
    """The sum over the 2n copies of clip(round(u + shift)), rounding half up (Eq. 9): literally, copy by copy."""
    shifts = [(2 * k + 1) / (4 * n) for k in range(-n, n)]
    copies = [np.clip(np.floor(u + shift + 0.5), 0, qmax) for shift in shifts]
    return np.sum(copies, axis=0).astype(np.int64)


def mix(
    a: NDArray[np.float32],
    v: NDArray[np.float32],
    weights: str,
    bits: int,
    rows: int,
    theta: float | None = None,
    places: int = 0,
    magnitude: float | None = None,
    visible: NDArray[np.bool_] | None = None,
) -> NDArray[np.float64]:
    """A V with A [R, H, l, T] and V [R, H, T, d] quantized; float64, exact but for the last multiplication.

    `magnitude` is V's where it is static; `visible` broadcasts against A where a mask leaves out tokens.
    """
    qmax, zero_point = 2**bits - 1, 2 ** (bits - 1)
    v_scale = scale_of(image_magnitude(v, rows) if magnitude is None else magnitude, bits)
    if theta is None:
        fine = signed_codes(v, v_scale, bits).astype(np.float64)
    else:
        m = orders(a.mean(axis=2, dtype=np.float32), theta, places)
        u = np.round(v * (np.float32(2**15) / v_scale)).astype(np.float64) / 2**15 + zero_point
        u = np.clip(u, -1, qmax + 1)
        fine = np.clip(np.floor(u + 0.5), 0, qmax) - zero_point
        for exponent in range(1, int(m.max()) + 1):
            two_n = 2**exponent
            attentive = m == exponent
            fine[attentive] = shifted_sum(u[attentive], two_n // 2, qmax) / two_n - zero_point
    if weights.startswith("log2"):
        s = image_magnitude(a, rows) if weights == "log2" else a.max(axis=-1, keepdims=True)
        with np.errstate(divide="ignore", over="ignore"):
            x = np.clip(np.round(np.log(s / a) / np.float32(np.log(2))), 0, qmax).astype(np.int64)
        value = np.where(x - x.min(axis=-1, keepdims=True) < POWERS, np.exp2(-x.astype(np.float64)), 0)
        value = value if visible is None else np.where(visible, value, 0)
        unit: NDArray[np.float64] | float = s.astype(np.float64)
    elif weights == "row":
        value = np.round(a / (a.max(axis=-1, keepdims=True) * np.float32(1 / qmax))).astype(np.float64)
        unit = 0.0
    else:
        value = np.round(a / np.float32(1 / qmax)).astype(np.float64)
        unit = float(np.float32(1 / qmax))
    product = value @ fine
    if weights in ("row", "log2-row"):
        return product / value.sum(axis=-1, keepdims=True) * v_scale.astype(np.float64)
    return product * unit * v_scale.astype(np.float64)


def attention_inputs(shape: tuple[int, int, int, int, int], seed: int, scales: tuple[float, float]) -> dict[str, Any]:
    """What both attentions of nextscale-ops take, drawn for (rows, heads, size, tokens, past); scales are those of the
    heads' least and largest."""
    rows, heads, size, tokens, past = shape
    rng = np.random.default_rng(seed)

    def normal(*of: int) -> NDArray[np.float32]:
        return rng.standard_normal(of).astype(np.float32)

    query, key, value = normal(3, rows, tokens, heads * size)
    past_key = normal(rows, heads, size, past)
    return {
        "query": query,
        "key": key,
        "value": value,
        "past_key": past_key / np.linalg.norm(past_key, axis=2, keepdims=True),
        "past_value": normal(rows, heads, past, size),
        "query_scale": rng.uniform(*scales, heads).astype(np.float32),
    }
