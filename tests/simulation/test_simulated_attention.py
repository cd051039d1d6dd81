"""The simulated products of attention against the integer oracle of the graphs."""

from __future__ import annotations

import attention_oracle as oracle
import numpy as np
import pytest
import torch

from nextscale.graph_passes.expand_attentive_tokens import ShiftAndSum
from nextscale.graph_passes.integer_model import IntegerAttention
from nextscale.graph_passes.recipe import AttentionWeights
from nextscale.simulation.simulated_attention import SimulatedAttention, Span

R, H, L, T, D = 4, 2, 6, 17, 8
# The second of two stages.
SPAN = Span(1, (L,), T - L, torch.tensor([0] * (T - L) + [1] * L), 2)


@pytest.mark.parametrize("bits", [2, 3, 4, 6, 8])
@pytest.mark.parametrize("weights", ["log2", "log2-row", "row", "uniform"])
@pytest.mark.parametrize(("theta", "places"), [(None, 0), (0.03, T), (0.03, 4), (0.2, T)])
def test_both_products(weights: AttentionWeights, bits: int, theta: float | None, places: int) -> None:
    rng = np.random.default_rng(bits)
    q, k, v = (rng.normal(0, 1.5, (R, H, length, D)).astype(np.float32) for length in (L, T, T))
    choice = IntegerAttention(("mix",), bits, "image", weights, "off" if theta is None else "residual")
    shift_and_sum = None if theta is None else ShiftAndSum("residual", theta, (0, places))
    simulated = SimulatedAttention(choice, None, shift_and_sum)
    found = simulated(*(torch.from_numpy(x) for x in (q, k, v)), SPAN).numpy()

    product, scale = oracle.scores(q, k.swapaxes(2, 3), bits, 2)
    attention = torch.from_numpy(product.astype(np.float32) * scale).softmax(-1).numpy()
    expected = oracle.mix(attention, v, weights, bits, 2, theta, places)
    difference = np.abs(found - expected).max(-1) / np.abs(expected).max()
    # float32's epsilon over T terms, with room; a tie between two codes may be broken either way.
    assert np.mean(difference > 1e-5) <= 0.05
