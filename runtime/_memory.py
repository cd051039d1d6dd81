"""What a bundle takes of memory, by its manifest alone: before anything is loaded."""

from __future__ import annotations

import math

import numpy as np

from nextscale.runtime._manifest import Manifest, resolved

# Tokens of the stages before: what the caches of keys and values grow by.
PAST = "T"


def cache_bytes(manifest: Manifest, tokens: int | None = None) -> int:
    """Bytes of the keys and values of one image of the model's size with so many tokens cached; None: all L of them.

    For each block 2 (keys, values) x 2 (rows with guidance) x tokens x width x bytes of a number: the shapes and types
    that the manifest gives the states whose length is PAST.
    """
    stage = manifest.graphs["stage"]
    symbols = {"B": 1, "2B": 2, PAST: manifest.model.num_tokens if tokens is None else tokens}
    states = {state.input for state in stage.state}
    total = 0
    for tensor in stage.inputs:
        if tensor.name in states and PAST in tensor.shape:
            sizes = resolved(tuple(1 if size is None else size for size in tensor.shape), symbols)
            total += math.prod(size for size in sizes if isinstance(size, int)) * np.dtype(tensor.dtype).itemsize
    return total
