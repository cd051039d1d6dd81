"""Second moments of what the kernels of convolutions see, by which GPTQ rounds their weights (`graph_passes.gptq`)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from nextscale.calib_data.observed_stage import OnImages, nobody
from nextscale.graph_passes._graph_session import open_model
from nextscale.graph_passes.observe_inputs import observe_inputs
from nextscale.graph_passes.observe_patches import patches_of
from nextscale.runtime._session import SessionOptions

GROUP_BYTES = 1 << 30


def moment_groups(model: ir.Model, names: Sequence[str], most_bytes: int = GROUP_BYTES) -> list[list[str]]:
    """The names in their order, in groups whose moments take at most this many bytes; one that takes more is alone.

    Raises:
        PatternRefused, ValueError: as `patches_of`.
    """
    groups: list[list[str]] = []
    taken = most_bytes
    for name, patches in patches_of(model, names).items():
        size = np.dtype(np.float32).itemsize * patches.length**2
        if taken + size > most_bytes:
            groups.append([])
            taken = 0
        groups[-1].append(name)
        taken += size
    return groups


def observe_moments(
    model: ir.Model,
    names: Sequence[str],
    feeds: Iterable[Mapping[str, NDArray[Any]]],
    *,
    weights: Path = Path(),
    options: SessionOptions | None = None,
    on_images: OnImages = nobody,
) -> dict[str, NDArray[np.float32]]:
    """The mean of x x' over the patches x [K] that each layer's kernels see, float32 [K, K] by the layer's name.

    Takes the bytes of the results, a third matrix, and the inputs of all the layers for one feed: groups
    (`moment_groups`) are observed one after another. A feed of many images has the result of many feeds of one, but for
    the rounding of ONNX Runtime's sums. Float32 is enough: GPTQ adds 1% to the diagonal.

    Args:
        model: a float encoder or decoder; not modified.
        names: of convolutions, one at least. K = in k k, in the order of `weight.reshape(out, -1)`; behind an
            upsampling K = 4 in, of the four kernels that `subpixel_kernels` makes.
        feeds: the graph's inputs for some images each, by name.
        weights: the folder of the model's external weights.
        options: threads and memory; None: the defaults.
        on_images: called with the number of images finished, after each feed.
    Raises:
        PatternRefused, ValueError: as `patches_of`; or there are no feeds.
    """
    patches = patches_of(model, names)
    observed = observe_inputs(model, [of_layer.observer for of_layer in patches.values()])
    session = open_model(observed, weights, options or SessionOptions())
    outputs = [of_layer.observer.output for of_layer in patches.values()]
    sums = {name: np.zeros((of_layer.length,) * 2, np.float32) for name, of_layer in patches.items()}
    rows, images = dict.fromkeys(patches, 0), 0
    for feed in feeds:
        values = session.run(outputs, feed)
        for (name, of_layer), value in zip(patches.items(), values, strict=True):
            for one in value:
                x = of_layer.cut(one)
                sums[name] += x.T @ x
                rows[name] += len(x)
        images += len(values[0])
        on_images(images)
    if not images:
        raise ValueError("no images to observe")
    for name, total in sums.items():
        total /= rows[name]
    return sums
