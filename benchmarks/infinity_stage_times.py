"""What each stage of one picture of an Infinity bundle takes, in time and memory.

    python benchmarks/infinity_stage_times.py BUNDLE --size 0 --ops fused --name infinity_stages_2b_1M

One picture with both guided rows is streamed, without one before it: weights are packed while the first stages run.
Memory is the process's resident peak so far, Python and the mapped file of weights included. "Carried" is what a stage
hands on: keys, values, their scales, and the rest of the state.
"""

from __future__ import annotations

import math
import os
import time
from pathlib import Path

import click
import numpy as np
from provenance import provenance, publish

from nextscale.measure._peak_memory import peak_memory
from nextscale.measure.random_request import TEXT_TOKENS, Subject, random_request
from nextscale.runtime import Bundle, Generator, SessionOptions
from nextscale.runtime._manifest import Manifest, resolved
from nextscale.runtime._memory import PAST, cache_bytes


@click.command(help=__doc__)
@click.argument("bundle", type=click.Path(path_type=Path, exists=True))
@click.option("--size", type=int, default=0, show_default=True, help="Index of the picture's size.")
@click.option("--ops", type=click.Choice(["stock", "fused"]), default="fused", show_default=True)
@click.option("--ops-library", default="", help="nextscale-ops, where it is not the installed one.")
@click.option("--text-tokens", type=click.IntRange(1, 512), default=TEXT_TOKENS, show_default=True)
@click.option("--threads", type=click.IntRange(1), default=2, show_default=True)
@click.option("--name", required=True, help="Of the result file.")
def main(bundle: Path, size: int, ops: str, ops_library: str, text_tokens: int, threads: int, name: str) -> None:
    library = ops_library if ops == "fused" else ""
    options = SessionOptions(threads=threads, ops=ops, ops_library=library)  # type: ignore[arg-type]
    opened = Bundle.open(bundle)
    generator, manifest = Generator(opened, options), opened.manifest.of_size(size)
    begun = time.perf_counter()
    generator.load("stage", "decoder")
    loaded, at_load = time.perf_counter() - begun, peak_memory()
    request = random_request(opened.manifest, 1, 0, Subject(size, text_tokens))
    rows, last, whole = [], time.perf_counter(), 0.0
    for stage in generator.stream(**request):
        seconds = time.perf_counter() - last
        whole += seconds
        sides = manifest.model.stage_sizes[stage.stage]
        past = sum(math.prod(pair) for pair in manifest.model.stage_sizes[: stage.stage + 1])
        carried = carried_bytes(manifest, past) / 1e9
        rows.append(f"| {sides[0]} x {sides[1]} | {past} | {seconds:.2f} | {carried:.2f} | {peak_memory() / 1e9:.2f} |")
        print(rows[-1], flush=True)
        last = time.perf_counter()
    begun = time.perf_counter()
    stage.preview()
    decoded = time.perf_counter() - begun
    publish(
        name,
        [
            f"# Stages of {manifest.name} at {' x '.join(map(str, manifest.model.image_size))}",
            "",
            *provenance(threads),
            f"- load average of the last minute: {os.getloadavg()[0]:.1f}, of which times depend, and memory does not",
            f"- {ops} graphs, one picture of both guided rows, random features of {text_tokens} tokens; caches "
            f"{manifest.recipe['attention']['cache']}, {cache_bytes(manifest) / 1e9:.2f} GB of all {past} tokens",
            f"- loading {loaded:.1f} s, {at_load / 1e9:.2f} GB; all stages {whole:.1f} s; decoder {decoded:.1f} s; "
            f"peak of all {peak_memory() / 1e9:.2f} GB",
            "",
            "| stage | tokens so far | seconds | carried, GB | peak so far, GB |",
            "|---|---|---|---|---|",
            *rows,
        ],
    )


def carried_bytes(manifest: Manifest, tokens: int) -> int:
    """Of the states whose length is that of the tokens so far."""
    symbols = {"B": 1, "2B": 2, PAST: tokens}
    return sum(
        math.prod(size for size in resolved(tuple(s or 1 for s in tensor.shape), symbols) if isinstance(size, int))
        * np.dtype(tensor.dtype).itemsize
        for tensor in manifest.graphs["stage"].inputs
        if PAST in tensor.shape
    )


if __name__ == "__main__":
    main()
