"""theta and places of attentions: by hand where that is possible, and within the budget on models."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from nextscale.foreign.attentive_tokens import Scores, choose_attentive_tokens
from nextscale.foreign.normalize import normalize
from nextscale.foreign.samples import graph_inputs, read_samples
from nextscale.graph_passes._attention_patterns import attention_patterns
from nextscale.graph_passes.linear_layers import linear_layers
from nextscale.runtime._session import SessionOptions

from .block_model import CLASSES, HIDDEN, MIX, TOKENS, WIDTH, block, samples

# One head of four keys: evenly spread attention has 0.25.
SCORES = np.array([[[0.1, 0.3, 0.6, 0.0]]], np.float32)


def scores(*of_tokens: NDArray[np.float32]) -> Scores:
    return Scores(keys=4, queries=5, width=3, of_tokens=of_tokens)


def test_copies_and_places_by_hand() -> None:
    """theta 0.25: 0.3 is of order 1, 0.6 of order 2 (Eq. 14), so that they get 2 and 4 rows in place of one."""
    found = scores(SCORES)
    assert found.copies(1.0) == ((2 - 1) + (4 - 1)) * 5 * 3
    assert found.places(1.0) == 2
    assert (found.copies(2.0), found.places(2.0)) == ((2 - 1) * 5 * 3, 1)
    assert (found.copies(4.0), found.places(4.0)) == (0, 0)
    assert found.products == 2 * 5 * 4 * 3
    assert found.cost == 5 * 4 / 2


def test_samples_are_averaged_and_the_worst_has_its_places() -> None:
    found = scores(SCORES, np.full_like(SCORES, 0.25))
    assert found.copies(1.0) == 0.5 * scores(SCORES).copies(1.0)
    assert found.places(1.0) == 2


@pytest.mark.parametrize("budget", [0.02, 0.03, 0.045])
def test_the_budget_is_kept_and_used(tmp_path: Path, budget: float) -> None:
    """Counted here from the attention weights themselves, by Eq. 11 and 14."""
    model = normalize(block()).model
    given = read_samples(samples(6), graph_inputs(model.graph))
    (pattern,), layers = attention_patterns(model.graph), linear_layers(model.graph)
    options = SessionOptions(threads=1)
    (found,) = choose_attentive_tokens(model, [pattern], layers, "residual", budget, given, tmp_path, options).values()
    total = TOKENS * WIDTH * (4 * WIDTH + 2 * HIDDEN) + WIDTH * CLASSES + 2 * 2 * TOKENS * TOKENS * WIDTH / 2
    spent = [_extra(found.theta * step, given) / total for step in (1.0, 2 ** (-1 / 8))]
    assert spent[0] <= budget < spent[1]
    assert found.form == "residual"


def _extra(theta: float, given: object) -> float:
    """Multiply-adds of copies and scores on a sample, on average."""
    extra = 0.0
    for x in samples(6)["x"]:
        a = _attention_weights(x)  # [2, 6, 6]
        score = a.mean(axis=1)
        with np.errstate(divide="ignore"):
            order = np.where(score > theta, 2.0 ** (np.ceil(np.log2(score / theta)) - 1), 0)
        extra += np.maximum(2 * order - 1, 0).sum() * TOKENS * WIDTH / 2 + a.size / 2
    return extra / 6


def _attention_weights(x: NDArray[np.float32]) -> NDArray[np.float64]:
    from .block_model import weights

    q, k = ((x @ np.asarray(weights()[name])).reshape(TOKENS, 2, 4).transpose(1, 0, 2) for name in ("wq", "wk"))
    exponents = np.exp(0.5 * (q @ k.transpose(0, 2, 1)).astype(np.float64))
    found: NDArray[np.float64] = exponents / exponents.sum(-1, keepdims=True)
    return found


def test_the_name_of_the_attention() -> None:
    (pattern,) = attention_patterns(normalize(block()).model.graph)
    assert pattern.name == MIX
