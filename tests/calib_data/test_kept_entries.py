"""The kept entries against the contract's words, and the spool."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from nextscale.calib_data._kept_entries import Spool, kept_probabilities
from nextscale.models.var.reference import kept_entries
from nextscale.runtime._errors import NextscaleError

SETTINGS = [(0, 0.0), (7, 0.0), (0, 0.6), (7, 0.6), (1, 0.0), (50, 1.0), (0, 1.0), (0, 1e-6)]


def assert_kept(logits: NDArray[np.float32], top_k: int, top_p: float) -> None:
    probabilities = kept_probabilities(logits, top_k, top_p)
    keep = kept_entries(torch.from_numpy(logits), top_k, float(np.float32(top_p))).numpy()
    np.testing.assert_array_equal(probabilities > 0, keep)
    mass = np.where(keep, np.exp(logits.astype(np.float64)), 0)
    np.testing.assert_allclose(probabilities, mass / mass.sum(1, keepdims=True), rtol=1e-12)


@pytest.mark.parametrize(("top_k", "top_p"), SETTINGS)
def test_the_sampler_s_sets(top_k: int, top_p: float) -> None:
    assert_kept(np.random.default_rng(0).normal(0, 2, (200, 50)).astype(np.float32), top_k, top_p)


@given(seed=st.integers(0, 2**32), top_k=st.integers(0, 20), top_p=st.floats(0, 0.99))
def test_equal_logits_are_kept_or_dropped_together(seed: int, top_k: int, top_p: float) -> None:
    """Five values for twenty entries; a top_p that a mass meets to the last bit may fall either way."""
    logits = np.random.default_rng(seed).integers(0, 5, (1, 20)).astype(np.float32)
    probabilities = kept_probabilities(logits, top_k, top_p)
    assert probabilities.sum() == pytest.approx(1)
    for value in np.unique(logits):
        assert len(np.unique(probabilities[logits == value])) == 1
    if top_k:
        candidates = np.sort(logits[0])[-top_k]
        assert not probabilities[logits < candidates].any()


def test_huge_logits_are_no_overflow() -> None:
    logits = np.array([[1e30, -1e30, 1e30]], np.float32)
    np.testing.assert_array_equal(kept_probabilities(logits, 0, 0.0), [[0.5, 0, 0.5]])


# The spool: 5 images in batches of 2, of one stage of 1 token and one of 4

STAGES = np.array([0, 1, 1, 1, 1])


def probabilities(image: int, vocab_size: int = 20) -> NDArray[np.float64]:
    logits = np.random.default_rng(image).normal(0, 3, (5, vocab_size)).astype(np.float32)
    return kept_probabilities(logits, 0, 0.9)


def sampled(image: int) -> NDArray[np.int64]:
    return np.argmax(probabilities(image), axis=1)


@pytest.fixture
def spool(tmp_path: Path) -> Spool:
    filled = Spool(tmp_path / "spool", images=5, length=5, vocab_size=20, batch_size=2)
    for first in filled.firsts:
        images = range(first, min(first + 2, 5))
        assert not filled.has(first)
        entries = [row for i in images for row in filled.sparse(probabilities(i), sampled(i))]
        filled.write(first, np.stack([sampled(i) for i in images]), entries)
        assert filled.has(first)
    return filled


def test_tokens_come_back(spool: Spool) -> None:
    np.testing.assert_array_equal(spool.tokens(), [sampled(i) for i in range(5)])


def test_kept_entries_come_back_by_token(spool: Spool) -> None:
    for token in np.random.default_rng(0).permutation(25):
        image, place = divmod(int(token), 5)
        ids, p = spool.kept(int(token))
        expected = probabilities(image)[place]
        np.testing.assert_array_equal(ids, np.flatnonzero(expected))
        np.testing.assert_allclose(p, expected[ids], rtol=2**-23)


def test_sums_are_by_stage(spool: Spool) -> None:
    every = np.stack([probabilities(i) for i in range(5)])
    found = spool.sums(STAGES, 2)
    np.testing.assert_allclose(found, [every[:, 0].sum(0), every[:, 1:].sum((0, 1))], rtol=1e-6)
    np.testing.assert_allclose(found.sum(1), [5, 20], rtol=1e-6)


def test_a_sampled_entry_that_float64_drops_is_kept(spool: Spool) -> None:
    dropped = np.flatnonzero(probabilities(0)[0] == 0)[0]
    (entries,) = spool.sparse(probabilities(0)[:1], np.array([dropped]))
    assert (entries["p"] > 0).all()
    assert dropped in entries["id"]
    assert (np.diff(entries["id"].astype(int)) > 0).all()


@pytest.mark.parametrize(("vocab_size", "size"), [(2**16, 6), (2**16 + 1, 8)])
def test_ids_take_what_the_codebook_needs(tmp_path: Path, vocab_size: int, size: int) -> None:
    spool = Spool(tmp_path / "spool", images=1, length=1, vocab_size=vocab_size, batch_size=1)
    p = np.zeros((1, vocab_size))
    p[0, -1] = 1
    entries = spool.sparse(p, np.array([vocab_size - 1]))
    spool.write(0, np.array([[vocab_size - 1]]), entries)
    assert spool.kept(0)[0].tolist() == [vocab_size - 1]
    assert entries[0].itemsize == size


@pytest.mark.parametrize("suffix", ["npz", "npy"])
def test_a_damaged_batch_is_one_line(spool: Spool, suffix: str) -> None:
    (spool.folder / f"000002.{suffix}").write_bytes(b"")
    with pytest.raises(NextscaleError, match=f"000002.{suffix}") as caught:
        spool.sums(STAGES, 2)
    assert "\n" not in str(caught.value)
