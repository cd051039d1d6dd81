"""`nextscale calibrate`: token maps of a full-precision bundle, or bits of one of prompts, for calibration."""

from __future__ import annotations

import importlib.util
import shutil
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, get_args

import click
import numpy as np
from rich.console import Console
from rich.table import Table

from nextscale.calib_data.match_bits import BitMatchingReport
from nextscale.calib_data.match_probabilities import FREQUENCIES, MatchingReport, total_variation
from nextscale.calib_data.plot_matching import matching_plot
from nextscale.calib_data.text_subjects import takes_text
from nextscale.cli.options import BUNDLE, cfg_scale, refuse, threads, top_k, top_p
from nextscale.cli.progress import show_resumable_steps
from nextscale.cli.subjects import prompts_file, read_prompts
from nextscale.graph_passes.recipe import Matching
from nextscale.runtime._errors import BundleError
from nextscale.runtime._next_scale_loop import Generator, features_of_prompts
from nextscale.runtime._session import SessionOptions
from nextscale.runtime._text import printable
from nextscale.runtime.image_io import Writer, npz_writer

if TYPE_CHECKING:
    from nextscale.calib_data.sample_bits import BitSamplingSettings


@click.command()
@click.argument("bundle", type=BUNDLE)
@click.option("--out", type=click.Path(path_type=Path), required=True, help="The folder to make.")
@click.option("--images", type=click.IntRange(1), default=256, show_default=True)
@click.option("--seed", type=click.IntRange(0, 2**64 - 1), default=0, show_default=True)
@click.option(
    "--matching",
    type=click.Choice(get_args(Matching)),
    default="none",
    show_default=True,
    help="Change tokens until entries are as frequent as they are probable: as published, or stage by stage.",
)
@prompts_file()
@cfg_scale
@top_k
@top_p
@click.option("--batch", type=click.IntRange(1), default=1, show_default=True, help="Images at a time.")
@click.option("--score", is_flag=True, help="Also measure the maps' mean log-probability in the model.")
@threads
def calibrate(
    bundle: Path,
    out: Path,
    images: int,
    seed: int,
    matching: Matching,
    prompts: Path | None,
    cfg_scale: float,
    top_k: int | None,
    top_p: float,
    batch: int,
    score: bool,
    threads: int,
) -> None:
    """Sample token maps with the full-precision BUNDLE, evenly over its classes, into the folder OUT.

    A bundle of text draws prompts in turn, --prompts or those that builds calibrate with, at its sizes in turn, with
    its default guidance and filters; its text encoder reads them. Finished batches are kept in OUT.partial meanwhile;
    after Ctrl-C the same command goes on from there.

    \b
    nextscale build demo --precision fp32 --out demo-fp32
    nextscale calibrate demo-fp32 --matching stagewise --out demo-maps
    nextscale build demo --calibration demo-maps --out demo-int8
    """
    from nextscale.calib_data.sample import SamplingSettings, mean_log_probability, sample_token_maps
    from nextscale.calib_data.sample_bits import BitSamplingSettings
    from nextscale.runtime.image_io import require_absent

    require_absent(out)
    generator = Generator(bundle, SessionOptions(threads=threads, keep_text_encoder=False))
    work = out.with_name(f"{out.name}.partial")
    if takes_text(generator.bundle.manifest):
        refuse("a bundle of text", "cfg_scale", "top_k", "top_p", "score")
        _sample_bits(generator, out, work, prompts, images, BitSamplingSettings(seed, batch, matching))
        return
    refuse("a bundle of classes", "prompts")
    settings = SamplingSettings(images, seed, cfg_scale, top_k, top_p, batch, matching)
    log_probability = None
    with show_resumable_steps(work) as progress:
        maps, report = sample_token_maps(generator, settings, work, progress)
        if score:
            log_probability = mean_log_probability(
                generator, maps, cfg_scale=cfg_scale, batch_size=batch, progress=progress
            )
            maps = replace(maps, settings={**maps.settings, "log_probability": log_probability})
    maps.save(out, _further_files(report, matching))
    shutil.rmtree(work)
    click.echo(f"{printable(str(out))}: {images} token maps of {generator.bundle.manifest.name}, matching {matching}")
    Console().print(_table(report, matching))
    if report.moved:
        before, after = report.log_before / report.moved, report.log_after / report.moved
        click.echo(f"{report.moved} of {report.wanted} wanted tokens reassigned, {report.immovable} could not move")
        click.echo(f"mean log-probability of the reassigned: {before:.3f} before, {after:.3f} after, nats")
    if log_probability is not None:
        click.echo(f"mean log-probability of the maps: {log_probability:.3f} nats per token")


def _sample_bits(
    generator: Generator,
    out: Path,
    work: Path,
    prompts: Path | None,
    images: int,
    settings: BitSamplingSettings,
) -> None:
    from nextscale.calib_data.sample_bits import sample_bit_maps
    from nextscale.calib_data.text_subjects import drawn_subjects
    from nextscale.compiler._caches import sizes_in_full_precision
    from nextscale.models.infinity.prompts import PROMPTS

    bundle = generator.bundle
    if "text_encoder" not in bundle.manifest.graphs:
        raise BundleError(
            f"{bundle.path}: has no text encoder to read prompts; build it in full precision with --text, without "
            "--no-text-encoder"
        )
    sizes = sizes_in_full_precision(bundle.manifest.name, bundle.model, bundle.manifest.sizes)
    texts = features_of_prompts(generator, PROMPTS if prompts is None else read_prompts(prompts))
    subjects = drawn_subjects(texts, sizes, images, np.random.default_rng(settings.seed))
    with show_resumable_steps(work) as progress:
        maps, report = sample_bit_maps(generator, subjects, settings, work, progress)
    maps.save(out)
    shutil.rmtree(work)
    click.echo(
        f"{printable(str(out))}: {images} images of {bundle.manifest.name} as bits, matching {settings.matching}"
    )
    Console().print(_bits_table(report, settings.matching))
    if report.moved:
        before, after = report.log_before / report.moved, report.log_after / report.moved
        click.echo(f"{report.moved} of {report.wanted} wanted bits flipped")
        click.echo(f"mean log-probability of the flipped: {before:.3f} before, {after:.3f} after, nats")


def _bits_table(report: BitMatchingReport, matching: str) -> Table:
    """Of each stage, the mean of the bits."""
    found = report.as_json()["total_variation"]
    columns = {"sampled": "before"} if matching == "none" else {"before": "before", "after": "after"}
    table = Table("stage", "tokens", *columns, title="total variation of a bit")
    for stage, tokens in enumerate(report.tokens):
        table.add_row(str(stage + 1), str(tokens), *(f"{found[key]['stages'][stage]:.3f}" for key in columns.values()))
    table.add_section()
    table.add_row("all", str(report.tokens.sum()), *(f"{found[key]['all']:.3f}" for key in columns.values()))
    return table


def _further_files(report: MatchingReport, matching: str) -> dict[str, Writer]:
    """The frequencies, and a plot of them where matplotlib is installed."""
    files = {FREQUENCIES: npz_writer(report.frequencies())}
    if importlib.util.find_spec("matplotlib"):
        files["matching.png"] = matching_plot(report, matching != "none")
    else:
        click.echo('no matching.png: it needs matplotlib, pip install "nextscale[eval]"', err=True)
    return files


def _table(report: MatchingReport, matching: str) -> Table:
    columns = {"sampled": report.before} if matching == "none" else {"before": report.before, "after": report.after}
    table = Table("stage", "tokens", *columns, title="total variation")
    pooled = [report.target.sum(0), *(counts.sum(0) for counts in columns.values())]
    rows = [(str(stage + 1), stage) for stage in range(len(report.target))]
    for name, stage in rows:
        _add_row(table, name, report.target[stage], [counts[stage] for counts in columns.values()])
    table.add_section()
    _add_row(table, "all", pooled[0], pooled[1:])
    return table


def _add_row(table: Table, name: str, target: np.ndarray, columns: list[np.ndarray]) -> None:
    table.add_row(name, str(columns[0].sum()), *(f"{total_variation(target, counts):.3f}" for counts in columns))
