"""Probability matching against the equations, spelled out in NumPy."""

from __future__ import annotations

import io
from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from numpy.typing import NDArray

from nextscale.calib_data.match_probabilities import (
    Matched,
    MatchingReport,
    match_probabilities,
    total_variation,
)

ROUNDING = 1e-9  # of t = M * p_hat, M up to some hundred


@dataclass(frozen=True)
class Case:
    """Tokens int64 [M] sampled from p float64 [M, V], where entries may be 0."""

    p: NDArray[np.float64]
    tokens: NDArray[np.int64]

    @property
    def p_hat(self) -> NDArray[np.float64]:
        """Eq. 17."""
        mean: NDArray[np.float64] = self.p.mean(0)
        return mean

    def kept(self, token: int) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        ids = np.flatnonzero(self.p[token])
        return ids, self.p[token, ids]

    def match(self, seed: int = 0) -> Matched:
        return match_probabilities(self.tokens, self.kept, self.p_hat, np.random.default_rng(seed))

    def counts(self, tokens: NDArray[np.int64]) -> NDArray[np.int64]:
        return np.bincount(tokens, minlength=self.p.shape[1])


def random_case(seed: int, tokens: int, vocab_size: int, kept: float, sharpness: float) -> Case:
    rng = np.random.default_rng(seed)
    logits = rng.normal(0, sharpness, vocab_size) + rng.normal(0, sharpness, (tokens, vocab_size))
    mass = np.exp(logits) * (rng.random((tokens, vocab_size)) < kept)
    mass[np.arange(tokens), rng.integers(0, vocab_size, tokens)] += 1e-3
    p = mass / mass.sum(1, keepdims=True)
    return Case(p, np.array([rng.choice(vocab_size, p=row) for row in p]))


cases = st.builds(
    random_case,
    seed=st.integers(0, 2**32),
    tokens=st.integers(1, 200),
    vocab_size=st.integers(1, 40),
    kept=st.floats(0, 1),
    sharpness=st.floats(0, 3),
)


@given(cases)
@example(random_case(0, 200, 10, 1.0, 1.0))
def test_frequencies_come_nearer_and_tokens_go_from_o_to_u(case: Case) -> None:
    """Replays the moves one by one: none makes any |s_k - t_k| larger, nor their sum."""
    matched = case.match()
    s, t = case.counts(case.tokens).astype(float), len(case.tokens) * case.p_hat
    o, u = s - t >= 1, t - s >= 1
    tokens = case.tokens.copy()
    for token in matched.moved:
        source, target = tokens[token], matched.tokens[token]
        assert o[source]
        assert u[target]
        assert t[target] - s[target] >= 1
        assert case.p[token, target] > 0
        before = np.abs(s - t)
        s[source] -= 1
        s[target] += 1
        assert (np.abs(s - t) <= before + ROUNDING).all()
        assert np.abs(s - t).sum() <= before.sum() + ROUNDING
        tokens[token] = target
    np.testing.assert_array_equal(tokens, matched.tokens)


@given(cases)
def test_counts_are_conserved(case: Case) -> None:
    """A token moves once at most, an entry of O loses no more than its surplus, none else loses any."""
    before = case.tokens.copy()
    matched = case.match()
    np.testing.assert_array_equal(case.tokens, before)
    assert len(matched.tokens) == len(before)
    assert len(set(matched.moved)) == len(matched.moved)
    assert set(np.flatnonzero(matched.tokens != before)) == set(matched.moved)
    s, t = case.counts(before), len(before) * case.p_hat
    surplus = np.where(s - t >= 1, np.rint(s - t), 0)
    assert matched.wanted == surplus.sum()
    assert (case.counts(before[matched.moved]) <= surplus).all()
    assert len(matched.moved) <= matched.wanted


@given(cases)
def test_it_stops_only_when_nothing_can_move(case: Case) -> None:
    """What is left of a surplus has no token that holds an entry still lacking one."""
    matched = case.match()
    s, t = case.counts(matched.tokens), len(case.tokens) * case.p_hat
    first = case.counts(case.tokens)
    left = np.where(first - t >= 1, np.rint(first - t), 0) - case.counts(case.tokens[matched.moved])
    stay = np.setdiff1d(np.flatnonzero(left[case.tokens] > 0), matched.moved)
    assert not (case.p[stay] > 0)[:, t - s >= 1].any()


@given(cases)
def test_log_probabilities_are_those_of_the_moved_tokens(case: Case) -> None:
    matched = case.match()
    for tokens, logs in ((case.tokens, matched.log_before), (matched.tokens, matched.log_after)):
        np.testing.assert_allclose(np.exp(logs), case.p[matched.moved, tokens[matched.moved]], rtol=1e-12)


@given(cases, st.integers(0, 2**64 - 1))
def test_the_seed_decides(case: Case, seed: int) -> None:
    first, second = case.match(seed), case.match(seed)
    np.testing.assert_array_equal(first.tokens, second.tokens)
    np.testing.assert_array_equal(first.moved, second.moved)
    assert first.immovable == second.immovable


def test_another_seed_moves_other_tokens() -> None:
    case = random_case(0, 200, 10, 1.0, 1.0)
    assert (case.match(0).tokens != case.match(1).tokens).any()


def oracle(case: Case, rng: np.random.Generator) -> NDArray[np.int64]:
    """Eq. 17 to 20 over dense arrays, with all sets computed anew at every step."""
    count, vocab_size = case.p.shape
    p_hat = np.array([sum(case.p[:, k]) / count for k in range(vocab_size)])
    t = count * p_hat
    s = np.array([(case.tokens == k).sum() for k in range(vocab_size)])
    o = [k for k in range(vocab_size) if s[k] - t[k] >= 1]
    surplus = {k: round(s[k] - t[k]) for k in o}
    tokens = case.tokens.copy()
    for j in rng.permutation([j for j in range(count) if tokens[j] in o]):
        k = case.tokens[j]
        now = np.array([(tokens == entry).sum() for entry in range(vocab_size)])
        u = t - now >= 1
        if not u.any() or not surplus[k]:
            continue
        tilde = np.where(u, case.p[j], 0)
        if not tilde.any():
            continue
        tilde /= tilde.sum()
        tokens[j] = int((tilde.cumsum() <= rng.random()).sum())
        surplus[k] -= 1
    return tokens


@pytest.mark.parametrize("seed", range(20))
def test_the_equations(seed: int) -> None:
    case = random_case(seed, 120, 12, 0.7, 1.0)
    expected = oracle(case, np.random.default_rng(seed))
    assert (expected != case.tokens).any()
    np.testing.assert_array_equal(case.match(seed).tokens, expected)


def test_new_entries_are_drawn_by_eq_20() -> None:
    """3,000 tokens, all of entry 0; half of the mass is on entries 1 and 2, three to one."""
    p = np.tile([0.5, 0.375, 0.125], (3000, 1))
    matched = Case(p, np.zeros(3000, np.int64)).match()
    np.testing.assert_array_equal(np.bincount(matched.tokens), [1500, 1125, 375])
    early = np.bincount(matched.tokens[matched.moved[:400]], minlength=3)
    assert early[0] == 0
    assert abs(early[1] - 300) < 5 * np.sqrt(400 * 0.75 * 0.25)


def test_a_token_that_cannot_move_leaves_its_turn() -> None:
    """Of four tokens of entry 0, only the last two may be entry 1."""
    p = np.array([[1, 0], [1, 0], [0.1, 0.9], [0.1, 0.9]])
    case = Case(p, np.zeros(4, np.int64))
    for seed in range(10):
        matched = case.match(seed)
        assert matched.wanted == 2
        assert len(matched.moved) == 1  # entry 1 wants 1.8: after one it lacks less than one
        assert matched.moved[0] in (2, 3)
        assert 0 <= matched.immovable <= 2
    assert {case.match(seed).immovable for seed in range(30)} == {0, 1, 2}


def test_frequencies_that_match_move_nothing() -> None:
    case = Case(np.full((8, 4), 0.25), np.arange(8) % 4)
    matched = case.match()
    np.testing.assert_array_equal(matched.tokens, case.tokens)
    assert (matched.wanted, len(matched.moved), matched.immovable) == (0, 0, 0)
    assert len(matched.log_before) == len(matched.log_after) == 0


# The report


def report(stages: int, seed: int = 0) -> MatchingReport:
    rng = np.random.default_rng(seed)
    before = rng.integers(0, 9, (stages, 6))
    target = rng.dirichlet(np.ones(6), stages) * before.sum(1, keepdims=True)
    return MatchingReport(target, before, np.roll(before, 1), 5, 4, 1, -8.0, -10.0)


def test_total_variation_is_half_the_distance_as_a_share() -> None:
    target, counts = np.array([[2.0, 2.0, 0.0], [1.0, 0.0, 0.0]]), np.array([[4, 0, 0], [1, 0, 0]])
    np.testing.assert_allclose(total_variation(target, counts), [0.5, 0])


def test_reports_are_joined_stage_after_stage() -> None:
    joined = MatchingReport.join([report(1), report(2, seed=1)])
    np.testing.assert_array_equal(joined.before, np.concatenate([report(1).before, report(2, seed=1).before]))
    assert joined.target.shape == joined.after.shape == (3, 6)
    assert (joined.wanted, joined.moved, joined.immovable) == (10, 8, 2)
    assert (joined.log_before, joined.log_after) == (-16.0, -20.0)


def test_a_report_survives_a_file() -> None:
    file = io.BytesIO()
    np.savez(file, **report(2).arrays())
    file.seek(0)
    loaded = MatchingReport.from_arrays(dict(np.load(file)))
    assert loaded.as_json() == report(2).as_json()
    assert type(loaded.moved) is int


def test_figures_of_a_report() -> None:
    figures = report(2).as_json()
    assert figures["log_probability_of_moved"] == {"before": -2.0, "after": -2.5}
    for name, counts in (("before", report(2).before), ("after", report(2).after)):
        found = figures["total_variation"][name]
        pooled = np.abs(counts.sum(0) - report(2).target.sum(0)).sum() / 2 / counts.sum()
        assert found["all"] == pytest.approx(pooled)
        np.testing.assert_allclose(found["stages"], total_variation(report(2).target, counts))


def test_nothing_moved_has_no_log_probability() -> None:
    still = MatchingReport(report(2).target, report(2).before, report(2).before)
    assert still.as_json()["log_probability_of_moved"] == {"before": None, "after": None}
