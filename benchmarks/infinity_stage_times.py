"""What each stage of one picture of an Infinity bundle takes, in time and memory.

    python benchmarks/infinity_stage_times.py BUNDLE --size 0 --ops fused --name infinity_stages_2b_1M

One picture with both guided rows is streamed, without one before it: weights are packed while the first stages run.
Memory is the process's resident peak so far, Python and the mapped file of weights included. "Carried" is what keys,
values and their scales take after a stage. Processor seconds are those of all threads: on a machine that others use as
well they tell what seconds would on an idle one, times the threads.
"""

from __future__ import annotations

import math
import os
import time
from pathlib import Path

import click
from progress import log
from provenance import provenance, publish

from nextscale.measure._peak_memory import peak_memory
from nextscale.measure.random_request import TEXT_TOKENS, Subject, random_request
from nextscale.runtime import Bundle, Generator, SessionOptions
from nextscale.runtime._memory import cache_bytes


@click.command(help=__doc__)
@click.argument("bundle", type=click.Path(path_type=Path, exists=True))
@click.option("--size", type=int, default=0, show_default=True, help="Index of the picture's size.")
@click.option("--ops", type=click.Choice(["stock", "fused"]), default="fused", show_default=True)
@click.option("--ops-library", default="", help="nextscale-ops, where it is not the installed one.")
@click.option("--text-tokens", type=click.IntRange(1, 512), default=TEXT_TOKENS, show_default=True)
@click.option("--threads", type=click.IntRange(1), default=2, show_default=True)
@click.option("--decoder/--no-decoder", default=True, show_default=True, help="Decode the picture afterwards.")
@click.option("--name", required=True, help="Of the result file.")
def main(
    bundle: Path, size: int, ops: str, ops_library: str, text_tokens: int, threads: int, decoder: bool, name: str
) -> None:
    library = ops_library if ops == "fused" else ""
    options = SessionOptions(threads=threads, ops=ops, ops_library=library)  # type: ignore[arg-type]
    opened = Bundle.open(bundle)
    generator, manifest = Generator(opened, options), opened.manifest.of_size(size)
    begun = time.perf_counter()
    generator.load("stage", *(["decoder"] if decoder else []))
    loaded, at_load = time.perf_counter() - begun, peak_memory()
    request = random_request(opened.manifest, 1, 0, Subject(size, text_tokens))
    rows, first = [], (time.perf_counter(), time.process_time())
    last = first
    for stage in generator.stream(**request):
        now = time.perf_counter(), time.process_time()
        seconds, of_processor = (b - a for a, b in zip(last, now, strict=True))
        sides = manifest.model.stage_sizes[stage.stage]
        past = sum(math.prod(pair) for pair in manifest.model.stage_sizes[: stage.stage + 1])
        carried = cache_bytes(manifest, past) / 1e9
        figures = f"{seconds:.2f} | {of_processor:.2f} | {carried:.2f} | {peak_memory() / 1e9:.2f}"
        rows.append(f"| {sides[0]} x {sides[1]} | {past} | {figures} |")
        log(rows[-1])
        last = now
    whole, of_processor = (b - a for a, b in zip(first, last, strict=True))
    of_decoder = ""
    if decoder:
        begun = time.perf_counter()
        stage.preview()
        of_decoder = f"decoder {time.perf_counter() - begun:.1f} s, {peak_memory() / 1e9:.2f} GB; "
    publish(
        name,
        [
            f"# Stages of {manifest.name} at {' x '.join(map(str, manifest.model.image_size))}",
            "",
            *provenance(threads),
            f"- load average of the last minute: {os.getloadavg()[0]:.1f}, of which times depend, and memory does not",
            f"- {ops} graphs, one picture of both guided rows, random features of {text_tokens} tokens; caches "
            f"{manifest.recipe.get('cache', 'float')}, {cache_bytes(manifest) / 1e9:.2f} GB of all {past} tokens",
            f"- loading {loaded:.1f} s, {at_load / 1e9:.2f} GB; {of_decoder}all stages {whole:.1f} s, "
            f"{of_processor:.1f} processor seconds",
            "",
            "| stage | tokens so far | seconds | processor seconds | carried, GB | peak so far, GB |",
            "|---|---|---|---|---|---|",
            *rows,
        ],
    )


if __name__ == "__main__":
    main()
