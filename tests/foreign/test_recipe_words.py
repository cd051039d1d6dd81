"""What a recipe's words under [layers] mean for a foreign model, and which have no meaning there."""

from __future__ import annotations

from dataclasses import replace

import pytest

from nextscale.foreign.quantize_model import QuantizeOptions, quantize_model
from nextscale.graph_passes.recipe import ActivationRecipe, LayerChoice, Recipe
from nextscale.runtime._errors import NextscaleError
from nextscale.runtime._session import SessionOptions

from .block_model import block, samples
from .convolution_net import net, pictures

UNTIMED = QuantizeOptions(SessionOptions(threads=1), rounds=0)
STATIC = Recipe("static", activations=ActivationRecipe(granularity="tensor"))


@pytest.mark.parametrize("word", ["token", "image", "stage", "pair"])
def test_ranges_that_a_convolution_does_not_have(word: LayerChoice) -> None:
    """By an end that it has in common with a linear layer; both have words by their whole names."""
    renamed = {"node:d0": "/head/proj", "node:y0": "/body/proj"}
    with pytest.raises(NextscaleError) as error:
        quantize_model(net(renamed=renamed), pictures(), replace(STATIC, layers={"proj": word}), UNTIMED)
    assert str(error.value) == (
        f'recipe static: layers."proj" is "{word}", but /head/proj is a convolution; expected "float" or "tensor", or '
        "the whole name of a linear layer"
    )
    told = {"/body/proj": word, "head/proj": "float"}
    report = quantize_model(net(renamed=renamed), pictures(), replace(STATIC, layers=told), UNTIMED)[1]
    assert {line.name: line.refused for line in report.lines}["/head/proj"] == "recipe static leaves it in float"


def test_one_that_stays_anyway_is_no_exception() -> None:
    """The word would be wrong whatever became of it; here its result is an output."""
    text = "g (float[N, 3, 8, 8] x) => (float[N, 8, 6, 6] y) { y = Conv (x, ws) }"
    with pytest.raises(NextscaleError, match=r'layers\."y" is "token", but y is a convolution'):
        quantize_model(net(text), pictures(), replace(STATIC, layers={"y": "token"}), UNTIMED)


def test_ranges_that_a_convolution_has() -> None:
    by_token = replace(STATIC, activations=ActivationRecipe(granularity="token"))
    report = quantize_model(net(), pictures(), replace(by_token, layers={"d0": "tensor", "a0": "float"}), UNTIMED)[1]
    found = {line.name: line for line in report.lines}
    assert (found["d0"].ranges, found["a0"].ranges, found["y0"].ranges) == ("tensor", None, "token")


@pytest.mark.parametrize("word", ["stage", "pair"])
def test_a_layer_of_a_model_without_stages_has_one_range(word: LayerChoice) -> None:
    report = quantize_model(block(), samples(), replace(STATIC, layers={"h0": word}), UNTIMED)[1]
    assert {line.ranges for line in report.lines if line.kind == "linear layer"} == {"tensor"}
