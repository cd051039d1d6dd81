"""What a model family says of its stage graph, so that no pass needs to know the model: plain data.

Symbols: B images; a batch has 2B rows where the rows r and r + B are one image, with its class and without.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from nextscale.graph_passes.qparams import Range

GUIDED_ROWS = 2
# The axis of both rows, and the inputs of a stage graph that tell the stage and, of several sizes, the size.
GUIDED_AXIS, STAGE_INPUT, SIZE_INPUT = "2B", "stage", "size"
# Parts of a model that operations are counted by.
BLOCKS, HEAD, ADA_LN, WORD_EMBED, TEXT = "blocks", "head", "ada_ln", "word_embed", "text"
# tanh-GELU's minimum is -0.17004.
GELU_MINIMUM = -0.1701


@dataclass(frozen=True)
class LayerFacts:
    """What is known of one linear layer without observing it.

    Attributes:
        name: of its MatMul.
        shape: [out, in].
        tokens: how many tokens of a row it sees at each stage; of several sizes, the most.
        part: the kind of part that its operations are counted as.
        input: a name for what it reads; layers with the same one share their ranges and their equalization.
        rows: how many rows of its input are one image: GUIDED_ROWS, r and r + B, or 1.
        known: the range [1] of its input, over all that can ever come.
        minimum: what its input is never below.
        equalizable: whether a division of its input's channels folds into what makes them.
        unit: what reconstruction learns its rounding together with; None: it is rounded to nearest.
        alike: whether an image's rows differ by little, as those of one token do with and without the class: then a
            range for their difference is worth having ("pair").
    """

    name: str
    shape: tuple[int, int]
    tokens: tuple[int, ...]
    part: str
    input: str
    rows: int = GUIDED_ROWS
    known: Range | None = field(default=None, compare=False)
    minimum: float = -math.inf
    equalizable: bool = False
    unit: str | None = None
    alike: bool = True


@dataclass(frozen=True)
class StageFacts:
    """What is known of a stage graph. Linear layers and attentions that are not listed stay float.

    Attributes:
        layers: those that a recipe may make integer, in the graph's order.
        attentions: the same, by the name of the second MatMul.
        guided_axis: the symbol of an axis that holds both rows of each image, "2B".
        stage_input: the graph input (int64 []) that tells the stage.
        size_input: the graph input (int64 []) that tells the size; None of a graph of one size.
        stages_by_size: how many stages each size has; () of a graph of one size.
        cross_attentions: attentions to a text, which a recipe has a word of its own for; () where there is none.
        text_tokens: how many tokens of a text are counted.
    """

    layers: tuple[LayerFacts, ...]
    attentions: tuple[str, ...]
    guided_axis: str
    stage_input: str
    size_input: str | None = None
    stages_by_size: tuple[int, ...] = ()
    cross_attentions: tuple[str, ...] = ()
    text_tokens: int = 0

    def layer(self, name: str) -> LayerFacts:
        """The layer of that name, which must be there."""
        return next(layer for layer in self.layers if layer.name == name)

    def equalizable(self) -> dict[str, list[str]]:
        """For each input whose channels can be divided at no cost, the layers that read it."""
        found: dict[str, list[str]] = {}
        for layer in self.layers:
            if layer.equalizable:
                found.setdefault(layer.input, []).append(layer.name)
        return found
