"""theta and places of shift-and-sum for each attention of a foreign model, under one budget of extra operations.

Attention that is spread evenly over T keys gives each a score of 1/T (Eq. 11). So theta is c/T, with the same c for all
attentions: the smallest on a grid whose copies (Eq. 9, 14) and scores cost no more than the budget allows.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from nextscale.calib_data.choose_theta import Form, kernel_order
from nextscale.foreign.observe import observed_values
from nextscale.foreign.samples import Samples
from nextscale.graph_passes._attention_patterns import AttentionPattern
from nextscale.graph_passes.expand_attentive_tokens import ShiftAndSum
from nextscale.graph_passes.linear_layers import LinearLayer
from nextscale.graph_passes.observe_inputs import Input
from nextscale.runtime._errors import NextscaleError
from nextscale.runtime._session import SessionOptions

# Steps of c in an octave, from 1.
STEPS = 8
# c at the most: whatever the number of keys, hardly any token has more.
LARGEST = 4096.0


@dataclass(frozen=True)
class Scores:
    """Of one attention, over all samples.

    Attributes:
        keys: T, of the sample with most.
        queries, width: l and d.
        of_tokens: the scores of each sample, float32 [..., T].
    """

    keys: int
    queries: int
    width: int
    of_tokens: Sequence[NDArray[np.float32]]

    def copies(self, c: float) -> float:
        """Multiply-adds of the copies that a sample has more than tokens, on average."""
        more = sum(int(np.maximum(2 * kernel_order(of_one, c / self.keys) - 1, 0).sum()) for of_one in self.of_tokens)
        return more * self.queries * self.width / len(self.of_tokens)

    def places(self, c: float) -> int:
        """The most attentive tokens of a head in any sample."""
        return max(int((of_one > np.float32(c / self.keys)).sum(axis=-1).max(initial=0)) for of_one in self.of_tokens)

    @property
    def products(self) -> float:
        """Multiply-adds of both products on one sample."""
        heads = self.of_tokens[0].size / self.keys
        return 2 * heads * self.queries * self.keys * self.width

    @property
    def cost(self) -> float:
        """Of the scores themselves (Eq. 11), an addition being half a multiply-add."""
        return self.products / self.width / 4


def choose_attentive_tokens(
    model: ir.Model,
    attentions: Sequence[AttentionPattern],
    layers: Sequence[LinearLayer],
    form: Form,
    budget: float,
    samples: Samples,
    work: Path,
    options: SessionOptions,
) -> dict[str, ShiftAndSum]:
    """By name of each attention.

    Args:
        model: normalized.
        attentions: those that become integer.
        layers: all linear layers, of whose operations and the attentions' the budget is a share.
        form: how attentive tokens are expanded; the budget counts the copies of the published one, whichever it is.
        budget: extra operations allowed, relative to the model's.
        samples, work, options: as elsewhere.
    Raises:
        NextscaleError: Eq. 11 alone is over the budget.
    """
    scores = _scores(model, attentions, samples, work, options)
    total = _multiply_adds(model, layers, samples, work, options) + sum(item.products for item in scores.values())
    allowed = budget * total - sum(item.cost for item in scores.values())
    if allowed < 0:
        share = sum(item.cost for item in scores.values()) / total
        raise NextscaleError(
            f"a budget of {budget:.2%} is too small: the scores alone (Eq. 11) cost {share:.2%} of the operations"
        )
    grid = [2 ** (step / STEPS) for step in range(int(np.log2(LARGEST)) * STEPS + 1)]
    c = next((c for c in grid if sum(item.copies(c) for item in scores.values()) <= allowed), grid[-1])
    return {
        name: ShiftAndSum(form, min(1.0, float(np.float32(c / item.keys))), (item.places(c),))
        for name, item in scores.items()
    }


def _scores(
    model: ir.Model, attentions: Sequence[AttentionPattern], samples: Samples, work: Path, options: SessionOptions
) -> dict[str, Scores]:
    """Means of the attention weights over the queries; those of a query that sees nothing are zero."""
    names = {Input(pattern.name): pattern.name for pattern in attentions}
    values = {Input(pattern.name, 1): pattern.name for pattern in attentions}
    found: dict[str, list[NDArray[np.float32]]] = {name: [] for name in names.values()}
    queries, widths = dict[str, int](), dict[str, int]()
    for key, array in observed_values(model, [*names, *values], samples, work, options):
        if key in values:
            widths[values[key]] = array.shape[-1]
            continue
        found[names[key]].append(np.nan_to_num(array, nan=0.0).mean(axis=-2, dtype=np.float32))
        queries[names[key]] = max(array.shape[-2], queries.get(names[key], 0))
    return {
        name: Scores(max(array.shape[-1] for array in of_one), queries[name], widths[name], of_one)
        for name, of_one in found.items()
    }


def _multiply_adds(
    model: ir.Model, layers: Sequence[LinearLayer], samples: Samples, work: Path, options: SessionOptions
) -> float:
    """Of the linear layers on the first sample."""
    shapes: Mapping[str, Sequence[int]] = {
        layer.name: layer.weight.const_value.shape.numpy() for layer in layers if layer.weight.const_value is not None
    }
    found = observed_values(model, [Input(name) for name in shapes], samples.first(1), work, options)
    return float(sum(x.size * shapes[key.node][1] for key, x in found))
