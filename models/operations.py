"""Count what a bundle computes for one picture, whatever its family: for rooflines.

A multiply-add is two operations, and both rows of guidance count.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from nextscale.graph_passes.layer_facts import GUIDED_ROWS, StageFacts
from nextscale.models.infinity import layers as infinity_layers
from nextscale.models.var import layers as var_layers
from nextscale.runtime._bundle import Bundle
from nextscale.runtime._errors import NextscaleError
from nextscale.runtime._manifest import ModelInfo

if TYPE_CHECKING:
    from torch import Tensor


def facts_of_bundle(
    bundle: Bundle, size: int = 0, text_tokens: int = infinity_layers.TYPICAL_TEXT_TOKENS
) -> StageFacts:
    """The facts of a bundle's layers for counting, from the shapes in its stage graph, float or integer.

    Args:
        bundle: of a family that is known here.
        size: index of the size; 0 of a bundle of one.
        text_tokens: of each text, where the model takes any.
    Raises:
        NextscaleError: the family is another.
    """
    match bundle.manifest.family:
        case "var":
            return var_layers.facts_of_bundle(bundle)
        case "infinity":
            return infinity_layers.facts_of_bundle(bundle, size, text_tokens)
    raise NextscaleError(f"{bundle.path}: family {bundle.manifest.family!r}: expected var or infinity to count layers")


def linear_operations(facts: StageFacts) -> dict[str, int]:
    """Operations of an image's linear layers with guidance, by the layer's name.

    As the graphs run them: the head and word_embed on one row an image, what the class or the text decides once an
    image.
    """
    return {layer.name: 2 * layer.shape[0] * layer.shape[1] * layer.rows * sum(layer.tokens) for layer in facts.layers}


def attention_operations(model: ModelInfo, text_tokens: int = 0) -> int:
    """Operations of an image's attention, scores and mixes, in all blocks and of both rows.

    Args:
        model: at the size.
        text_tokens: that each token attends to besides, in cross-attention; 0 where there is none.
    """
    tokens = [height * width for height, width in model.stage_sizes]
    pairs = sum(count * (sum(tokens[: si + 1]) + text_tokens) for si, count in enumerate(tokens))
    return 2 * 2 * GUIDED_ROWS * model.embed_dim * model.depth * pairs


def convolution_operations(decode: Callable[[Tensor], Tensor], latent: tuple[int, int, int]) -> int:
    """Operations of the convolutions that decode one image.

    Args:
        decode: method of a decoder whose weights are on the device "meta".
        latent: channels, height and width.
    """
    import torch
    from torch import nn

    counts = list[int]()

    def count(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        if isinstance(module, nn.Conv2d):
            counts.append(2 * output.shape[-2] * output.shape[-1] * module.weight.numel())

    hook = nn.modules.module.register_module_forward_hook(count)
    try:
        with torch.no_grad():
            decode(torch.empty(1, *latent, device="meta"))
    finally:
        hook.remove()
    return sum(counts)
