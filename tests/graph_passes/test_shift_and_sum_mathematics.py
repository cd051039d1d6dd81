"""What shift-and-sum rests on, in exact arithmetic: Theorem 1, its identity, Eq. 13 to 15, and float32's exactness.

Values are u = v / s + z in steps of s, so that a code is a whole number from 0 to M and Theorem 1's bound s / 4n is
1 / 4n. All rounding is half up.
"""

from __future__ import annotations

from fractions import Fraction
from math import ceil, floor, log2

import numpy as np
from attention_oracle import orders, shifted_sum
from hypothesis import example, given
from hypothesis import strategies as st

from nextscale.graph_passes.expand_attentive_tokens import FINEST, GRID, LARGEST_ORDER

HALF = Fraction(1, 2)
orders_n = st.sampled_from([2**i for i in range(LARGEST_ORDER.bit_length())])
any_order = st.integers(1, 100)
code_bits = st.integers(2, 8)
rationals = st.fractions(-3, 300)


@st.composite
def on_the_grid(draw: st.DrawFn) -> tuple[Fraction, int]:
    """u from -1 to M + 1 in steps of 2^-15, and M; often at an end, a tie of some order, or next to one."""
    qmax = 2 ** draw(code_bits) - 1
    steps = int(GRID)
    ties = st.builds(
        lambda code, part, off: code * steps + part * steps // 256 + off,
        st.integers(-1, qmax),
        st.integers(0, 255),
        st.integers(-1, 1),
    )
    numerator = draw(st.one_of(st.integers(-steps, (qmax + 1) * steps), ties))
    return Fraction(min(max(numerator, -steps), (qmax + 1) * steps), steps), qmax


def half_up(x: Fraction) -> int:
    return floor(x + HALF)


def clip(x: int, low: int, high: int) -> int:
    return min(max(x, low), high)


def shifts(n: int) -> list[Fraction]:
    """Eq. 9 with t = s / 4n, in steps of s: odd multiples of 1 / 4n."""
    return [Fraction(2 * k + 1, 4 * n) for k in range(-n, n)]


def sum_of_codes(u: Fraction, n: int, qmax: int) -> int:
    """Of the 2n shifted values, each rounded and clipped."""
    return sum(clip(half_up(u + shift), 0, qmax) for shift in shifts(n))


def closed_form(u: Fraction, n: int, qmax: int) -> int:
    """F."""
    return clip(half_up(2 * n * u), 0, 2 * n * qmax)


# Theorem 1


@given(rationals, any_order, code_bits)
@example(Fraction(1, 2), 1, 2)
def test_theorem_1(u: Fraction, n: int, bits: int) -> None:
    """|v - f_n(v; s/4n)| <= s / 4n for v in the range, for whatever order and value."""
    qmax = 2**bits - 1
    u = min(max(u, Fraction(0)), Fraction(qmax))
    assert abs(u - Fraction(sum_of_codes(u, n, qmax), 2 * n)) <= Fraction(1, 4 * n)


@given(st.integers(0, 254), any_order, st.data())
def test_theorem_1_is_tight(code: int, n: int, data: st.DataObject) -> None:
    """Half way between two multiples of 1 / 2n the error is 1 / 4n; and there are no other such values."""
    j = data.draw(st.integers(0, 2 * n - 1))
    u = code + Fraction(2 * j + 1, 4 * n)
    assert abs(u - Fraction(sum_of_codes(u, n, 255), 2 * n)) == Fraction(1, 4 * n)
    just_below = u - Fraction(1, 10**6)
    assert abs(just_below - Fraction(sum_of_codes(just_below, n, 255), 2 * n)) < Fraction(1, 4 * n)


@given(st.integers(0, 254), st.integers(1, 32), st.sampled_from([Fraction(i, 64) for i in range(-32, 33) if i]))
def test_another_shift_is_worse(code: int, n: int, delta: Fraction) -> None:
    """Of all evenly spread shifts t (2k + 1), t = s / 4n has the least largest error."""
    t = Fraction(1, 4 * n) * (1 + delta)

    def error(u: Fraction) -> Fraction:
        return abs(u - Fraction(sum(half_up(u + t * (2 * k + 1)) for k in range(-n, n)), 2 * n))

    # The error is largest at a jump, where a copy reaches the next code: at one end of the shifts, or just before.
    jumps = [code + HALF - t * (2 * k + 1) for k in (-n, n - 1)]
    worst = max(max(error(u), error(u - Fraction(1, 10**9))) for u in jumps)
    assert worst > Fraction(1, 4 * n)


# The identity


@given(rationals, any_order, code_bits)
@example(Fraction(-1), 64, 8)
@example(Fraction(0), 1, 2)
@example(Fraction(255), 64, 8)
@example(Fraction(511, 2), 3, 8)
def test_the_sum_of_the_shifted_codes_is_one_rounding(u: Fraction, n: int, bits: int) -> None:
    """Of any rational value, ties, both ends and values beyond included, for any order."""
    qmax = 2**bits - 1
    assert sum_of_codes(u, n, qmax) == closed_form(u, n, qmax)


@given(on_the_grid(), orders_n)
def test_the_oracle_sums_the_same_codes_on_the_grid(drawn: tuple[Fraction, int], n: int) -> None:
    u, qmax = drawn
    assert shifted_sum(np.array(float(u)), n, qmax) == sum_of_codes(u, n, qmax) == closed_form(u, n, qmax)


@given(on_the_grid(), orders_n)
def test_float32_has_no_rounding_on_the_grid(drawn: tuple[Fraction, int], n: int) -> None:
    """Neither in F, nor in a copy; so the graph's two forms sum the same integers."""
    u, _ = drawn
    exact = np.float32(float(u))
    assert Fraction(float(exact)) == u
    half, two_n = np.float32(0.5), np.float32(2 * n)
    assert Fraction(float(two_n * exact + half)) == 2 * n * u + HALF
    for shift in shifts(n):
        offset = np.float32(float(shift + HALF))
        assert Fraction(float(exact + offset)) == u + shift + HALF


@given(on_the_grid())
def test_codes_do_not_change_beyond_the_clip(drawn: tuple[Fraction, int]) -> None:
    """u is clipped to [-1, M + 1] before it meets the grid: every copy there has reached its end."""
    u, qmax = drawn
    for n in (1, 8, LARGEST_ORDER):
        assert sum_of_codes(u - qmax - 2, n, qmax) == sum_of_codes(Fraction(-1), n, qmax) == 0
        assert sum_of_codes(u + qmax + 2, n, qmax) == sum_of_codes(Fraction(qmax + 1), n, qmax) == 2 * n * qmax


# The residual


@given(rationals, any_order, code_bits)
def test_the_residual_reaches_from_minus_n_to_n(u: Fraction, n: int, bits: int) -> None:
    qmax = 2**bits - 1
    residual = closed_form(u, n, qmax) - 2 * n * clip(half_up(u), 0, qmax)
    assert -n <= residual <= n


@given(any_order, st.integers(0, 254))
def test_both_ends_of_the_residual_are_reached(n: int, code: int) -> None:
    """Just below a tie of the code, and on it."""
    below = code + HALF - Fraction(1, 8 * n)
    assert closed_form(below, n, 255) - 2 * n * half_up(below) == n
    assert closed_form(code + HALF, n, 255) - 2 * n * half_up(code + HALF) == -n


def test_the_largest_residual_is_an_s8_value() -> None:
    """As it is, and in the steps of 1/128 that all orders share."""
    for n in (2**i for i in range(LARGEST_ORDER.bit_length())):
        assert n * (FINEST // (2 * n)) == LARGEST_ORDER <= 127


# Eq. 13 to 15

scores = st.floats(2**-20, 1, width=32)
thetas = st.floats(2**-12, 1, width=32)


@given(scores, thetas)
@example(0.5, 0.25)
@example(0.25, 0.25)
@example(1.0, 2**-7)
@example(1.0, 2**-8)
def test_orders(score: float, theta: float) -> None:
    """m = ceil(log2(Score / theta)), so that Score / 2n is at most theta, but more than half of it."""
    m = orders(np.full((1, 1, 1), score, np.float32), theta, 1).item()
    ratio = Fraction(score) / Fraction(theta)
    assert (m > 0) == (ratio > 1)
    if ratio > FINEST:
        assert m == FINEST.bit_length() - 1
    elif m:
        assert HALF < ratio / 2**m <= 1
        assert abs(log2(ratio) - m) < 1
        if Fraction(floor(ratio)) != ratio:
            assert m == ceil(log2(ratio))


@given(on_the_grid(), orders_n, st.integers(0, 2**14))
def test_both_forms_sum_to_the_same_integer(drawn: tuple[Fraction, int], n: int, weight: int) -> None:
    """Eq. 13 in units of 1/128 weight: 2n shifted codes, each 64/n times; the code, and 64/n times the residual."""
    u, qmax = drawn
    z, each = (qmax + 1) // 2, FINEST // (2 * n)
    code = clip(half_up(u), 0, qmax)
    duplicate = weight * each * sum(clip(half_up(u + shift), 0, qmax) - z for shift in shifts(n))
    residual = weight * (FINEST * (code - z) + each * (closed_form(u, n, qmax) - 2 * n * code))
    assert duplicate == residual
    assert Fraction(duplicate, FINEST) == weight * (Fraction(closed_form(u, n, qmax), 2 * n) - z)
