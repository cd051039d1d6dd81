"""What caches of 8 bits change, with nothing else quantized: Infinity with random weights, bit for bit.

    python benchmarks/cache_error.py --preset infinity-125m --area 0.06M --area 0.25M

The float32 model samples pictures; the same model with caches of codes is fed their bits and compared place by place
(`evaluate.teacher_forced`).
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import click
import onnx_ir as ir
from progress import log
from provenance import provenance, publish

from nextscale.compiler.infinity_family import InfinityFamily
from nextscale.compiler.write_bundle import write_bundle
from nextscale.evaluate.teacher_forced import Agreement, agreement, sample
from nextscale.graph_passes.quantize_caches import quantize_caches
from nextscale.models.infinity.presets import PRESETS
from nextscale.models.infinity.sources import random_source
from nextscale.runtime import Bundle, Generator, SessionOptions
from nextscale.runtime._memory import cache_bytes


@click.command(help=__doc__)
@click.option("--preset", type=click.Choice(list(PRESETS)), default="infinity-125m", show_default=True)
@click.option("--area", "areas", multiple=True, default=("0.06M", "0.25M"), show_default=True)
@click.option("--images", type=click.IntRange(2), default=8, show_default=True, help="Of each area.")
@click.option("--threads", type=click.IntRange(1), default=2, show_default=True)
@click.option("--name", help="Of the result file.  [default: cache_error_PRESET]")
def main(preset: str, areas: tuple[str, ...], images: int, threads: int, name: str | None) -> None:
    lines = [
        f"# What caches of 8 bits change in {preset}",
        "",
        *provenance(threads),
        f"- {images} pictures of each area, random weights, all else in float32",
        "",
        "| area | tokens | float32, MB | codes, MB | KL, nats a bit | standard error | equal bits | of the last |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for area in areas:
        lines.append(row(preset, area, images, SessionOptions(threads=threads)))
        log(lines[-1])
    publish(name or f"cache_error_{preset}", lines)


def row(preset: str, area: str, images: int, options: SessionOptions) -> str:
    family = InfinityFamily(random_source(preset, preset, [area], ["1:1"], seed=0))
    with tempfile.TemporaryDirectory() as folder:
        stage = family.stage_graph()
        forms = {"float": stage, "codes": quantize_caches(stage)}
        caches = [write(family, Path(folder) / name, form) for name, form in forms.items()]
        subjects = family.agreement_subjects(images)
        sampled = list(sample(Generator(caches[0], options), subjects, range(images), batch_size=1))
        found: Agreement = agreement(sampled, Generator(caches[1], options), subjects)
    bits, model = family.source.infinity.config.token_bits, caches[0].manifest.model
    megabytes = " | ".join(f"{cache_bytes(bundle.manifest.of_size(0)) / 1e6:.0f}" for bundle in caches)
    return (
        f"| {area} | {model.num_tokens} | {megabytes} | {found.kl / bits:.2e} | {found.kl_stderr / bits:.1e} "
        f"| {found.top1:.3%} | {found.stage_top1[-1]:.3%} |"
    )


def write(family: InfinityFamily, folder: Path, stage: ir.Model) -> Bundle:
    folder.mkdir()
    graphs = {"stage": family.as_run(stage), "decoder": family.decoder_graph()}
    write_bundle(family, folder, graphs, {"name": "fp32"})
    return Bundle.open(folder)


if __name__ == "__main__":
    main()
