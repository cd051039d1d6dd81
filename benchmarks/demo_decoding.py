"""What the benchmarks of the demo model's encoder and decoder share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from nextscale.models.var.multi_scale_quantizer import MultiScaleQuantizer
from nextscale.runtime._bundle import Bundle
from nextscale.runtime._next_scale_loop import Generator
from nextscale.runtime._session import SessionOptions
from nextscale.runtime._variants import each_variant

FULL_PRECISION = ("full precision", "stock")


def contenders(reference: Path, bundles: Sequence[Path], options: SessionOptions) -> dict[tuple[str, str], Generator]:
    """FULL_PRECISION first, then each bundle's variants that can run, by the bundle's name and the operators'."""
    found = {FULL_PRECISION: Generator(reference, replace(options, ops="stock"))}
    for path in bundles:
        for variant in each_variant(Bundle.open(path), options):
            found[path.name, variant.ops] = Generator(path, variant)
    return found


@torch.no_grad()
def latents(token_maps: Tensor, quantizer: MultiScaleQuantizer) -> NDArray[np.float32]:
    """f_hat of int64 [N, L]: float32 [N, Cvae, h, w]."""
    sizes = [side * side for side in quantizer.patch_nums]
    return quantizer.accumulate(token_maps.split(sizes, dim=1))[0].numpy()


def decoded(generator: Generator, f_hat: NDArray[np.float32], batch: int) -> NDArray[np.uint8]:
    """The pictures of latents, uint8 [N, H, W, 3]."""
    return np.concatenate([generator.decode(part) for part in np.split(f_hat, range(batch, len(f_hat), batch))])
