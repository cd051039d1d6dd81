"""Observers of what the kernels of convolutions see: patches of their inputs at some positions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from nextscale.graph_passes._autoencoder_patterns import Convolution, parse_layers
from nextscale.graph_passes._graph_edit import input_of
from nextscale.graph_passes.observe_inputs import Input, Observer

# Of a picture; these are all of feature maps up to 32 x 32.
POSITIONS = 1024


@dataclass(frozen=True)
class Patches:
    """What the kernels of one convolution see. The border is zero.

    They are cut from whole values, not in the graph: of most layers those of 1,024 positions, nine numbers for each of
    the input's, take more bytes than the value, whose height and width the graph does not tell.

    Attributes:
        observer: gives the input that the kernels read, "values" [B, C, H, W].
        channels: C.
        size: k; a kernel is [out, C, k, k].
        stride: lines, and columns, between two patches.
        border: lines of zeros above and below; as many columns at the left and right.
    """

    observer: Observer
    channels: int
    size: int
    stride: int
    border: tuple[int, int]

    @property
    def length(self) -> int:
        """K, the numbers of a patch: C k k, in the order of `weight.reshape(out, -1)`."""
        return self.channels * self.size**2

    def cut(self, x: NDArray[np.float32]) -> NDArray[np.float32]:
        """The patches at all positions, or POSITIONS of them, the same for all of this size: [C, H, W] -> [n, K]."""
        padded = np.pad(x, ((0, 0), self.border, self.border))
        windows = sliding_window_view(padded, (self.size, self.size), axis=(1, 2))[:, :: self.stride, :: self.stride]
        height, width = windows.shape[1:3]
        lines, columns = np.divmod(_positions(height * width), width)
        return windows.transpose(1, 2, 0, 3, 4)[lines, columns].reshape(-1, self.length)


def patches_of(model: ir.Model, names: Sequence[str]) -> dict[str, Patches]:
    """What the kernels of the named convolutions of a float encoder or decoder see.

    Raises:
        PatternRefused: a node of the graph is part of no layer that is known here.
        ValueError: a name is no convolution's.
    """
    found = {layer.name: layer for layer in parse_layers(model.graph) if isinstance(layer, Convolution)}
    unknown = [name for name in names if name not in found]
    if unknown:
        raise ValueError(f"no convolution of the graph is named {unknown[0]!r}")
    return {name: _patches(found[name]) for name in names}


def _patches(layer: Convolution) -> Patches:
    size, half = layer.kernel_size, layer.kernel_size // 2
    border = (0, 1) if layer.stride == 2 else (half, half)
    reader = layer.y.producer()
    assert reader is not None
    if layer.upsampled:
        # The four kernels of the small picture (`subpixel_kernels`), each of which leaves out one line and one column.
        size, reader = 2, input_of(reader, 0).producer()
        assert reader is not None
    return Patches(Observer(Input(str(reader.name)), "values"), layer.weight.shape[1], size, layer.stride, border)


def _positions(count: int) -> NDArray[np.int64]:
    if count <= POSITIONS:
        return np.arange(count)
    return np.sort(np.random.default_rng(0).choice(count, POSITIONS, replace=False))
