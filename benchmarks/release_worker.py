"""What benchmarks/releases.py runs in the environment of one ONNX Runtime release.

    python release_worker.py feed BUNDLE MAPS OUT THREADS OPS  token maps into a bundle, as MAPS says; OUT is an .npz
    python release_worker.py certify BUNDLE PACKAGES           JSON: kernels of the integer layers, by graph

PACKAGES is a folder with torch and onnx, which the certificate imports and an app's environment does not have.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable

import numpy as np

from nextscale.runtime import Bundle, Generator, SessionOptions
from nextscale.runtime._operators import Ops


def feed(bundle: str, maps: str, out: str, threads: str, ops: Ops) -> None:
    """Sample the images of MAPS, and feed its token maps: token_maps int64 [N, L], logits float32 [N, L, V]."""
    generator = Generator(bundle, SessionOptions(threads=int(threads), ops=ops))
    with np.load(maps) as given:
        labels, tokens, seed = given["labels"], given["tokens"], int(given["seed"])
    sampled = generator.generate(labels, seed=seed, batch_size=1).token_maps
    logits = []
    for label, forced in zip(labels, tokens, strict=True):
        stages = generator.stream([int(label)], forced_tokens=forced[None], outputs=["logits"])
        logits.append(np.concatenate([stage.outputs["logits"][0] for stage in stages]))
    np.savez(out, token_maps=sampled, logits=np.stack(logits))


def certify(bundle: str, packages: str) -> None:
    """Print the kernels; an error says which layers are no integer ones."""
    sys.path.append(packages)
    from nextscale.compiler.fusion_certificate import certify as certified

    opened = Bundle.open(bundle)
    kernels = {}
    for role in opened.manifest.graphs:
        certificate = certified(opened.graph_path(role))
        certificate.require_integer()
        kernels[role] = certificate.kernel_counts()
    print(json.dumps(kernels))


if __name__ == "__main__":
    COMMANDS: dict[str, Callable[..., None]] = {"feed": feed, "certify": certify}
    COMMANDS[sys.argv[1]](*sys.argv[2:])
