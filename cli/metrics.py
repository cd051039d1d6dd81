"""`nextscale metrics`: how good and how near to full precision the pictures of bundles are, as sets."""

import json
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Table

from nextscale.calib_data.text_subjects import takes_text
from nextscale.cli import options
from nextscale.cli.judging_options import feature_network, real_pictures
from nextscale.cli.judging_options import inception_weights as inception_weights_option
from nextscale.cli.results import results_console
from nextscale.cli.subjects import prompts_file, read_prompts
from nextscale.evaluate.generated_statistics import Sampling, TextSampling
from nextscale.evaluate.image_comparison import Job, MetricsRow, as_json, compare_images
from nextscale.evaluate.image_statistics import ImageNetwork
from nextscale.measure.provenance import versions
from nextscale.runtime._bundle import Bundle
from nextscale.runtime._machine import describe_machine
from nextscale.runtime._outputs import make_folder
from nextscale.runtime._request import DEFAULT_CFG_SCALE, resolve_top_k
from nextscale.runtime._session import SessionOptions
from nextscale.runtime._text import printable
from nextscale.runtime.image_io import require_writable, write_files


@click.command()
@click.argument("bundles", type=options.BUNDLE, nargs=-1, required=True)
@click.option(
    "--images", type=click.IntRange(2), default=5000, show_default=True, help="Pictures of each bundle and seed."
)
@click.option("--seed", "seeds", type=click.IntRange(0, 2**62), multiple=True, default=(0,), show_default=True,
              help="Repeat for several: figures are then means with 95% intervals.")  # fmt: skip
@options.bundle_cfg_scale
@prompts_file()
@options.size
@options.top_k
@options.top_p
@click.option("--reference", default="demo", show_default=True, metavar="demo|none|FILE.npz",
              help="Statistics of real images; demo: 7,500 photographs of the demo model's classes.")  # fmt: skip
@click.option(
    "--full-precision",
    type=options.BUNDLE,
    metavar="BUNDLE",
    help="Also measure the distance to this bundle's pictures.",
)
@click.option("--noise-floor", is_flag=True, help="Also measure full precision with other seeds.")
@inception_weights_option
@click.option("--device", type=click.Choice(["cpu", "cuda"]), default="cpu", help="Where the feature network runs.")
@click.option("--json", "json_path", type=click.Path(path_type=Path), help="Also write the figures to this file.")
@click.option("--work", type=click.Path(path_type=Path, file_okay=False), default=Path("out/metrics"),
              show_default=True, help="Where statistics are kept; the same settings go on with them.")  # fmt: skip
@click.option("--batch", type=click.IntRange(1), default=8, show_default=True, help="Images at a time.")
@options.threads
def metrics(
    bundles: tuple[Path, ...],
    images: int,
    seeds: tuple[int, ...],
    cfg_scale: float | None,
    prompts: Path | None,
    area: str | None,
    ratio: str | None,
    top_k: int | None,
    top_p: float,
    reference: str,
    full_precision: Path | None,
    noise_floor: bool,
    inception_weights: Path | None,
    device: str,
    json_path: Path | None,
    work: Path,
    batch: int,
    threads: int,
) -> None:
    """Make pictures with BUNDLES, of classes or of --prompts, and measure them as sets.

    IS-E: how clear and varied the pictures are (higher is better). FID-E: how far their features are from those of real
    images, or of full precision's pictures (lower is better). Both use the network EfficientNet-Lite0, and cannot be
    compared with FID and IS, which use Inception and need --inception-weights. After Ctrl-C the same command goes on
    from where it was.

    Bundles of text need --prompts, drawn in turn at one size with the bundle's filters. Photographs of their subjects
    are yours to give: there is no --reference unless you name a file. IS-E asks how clearly a picture is of one of
    ImageNet's classes, which says little of prompts that are of none.
    """
    if noise_floor and full_precision is None:
        raise click.UsageError("--noise-floor needs --full-precision")
    if len(set(seeds)) < len(seeds):
        raise click.UsageError("--seed: the same seed twice")
    opened = [Bundle.open(path) for path in bundles]
    original = Bundle.open(full_precision) if full_precision else None
    every = [*opened, *([original] if original else [])]
    sampling = _sampling(every, cfg_scale, top_k, top_p, prompts, area, ratio)
    if isinstance(sampling, TextSampling) and not options.is_given("reference"):
        reference = "none"
    real = real_pictures(reference)
    network = feature_network(inception_weights, threads, device)
    make_folder(work)
    require_writable([work / "statistics.npz"])
    if json_path is not None:
        read = [path for bundle in every for path in bundle.paths()] + ([] if prompts is None else [prompts])
        read += [] if reference in ("demo", "none") else [Path(reference)]
        require_writable([json_path], [*read, *([inception_weights] if inception_weights else [])])
    with _Progress(images) as progress:
        rows = compare_images(
            opened,
            network,
            work,
            full_precision=original,
            noise_floor=noise_floor,
            reference=real,
            images=images,
            seeds=seeds,
            sampling=sampling,
            batch_size=batch,
            options=SessionOptions(threads=threads),
            on_images=progress.advance,
        )
    results_console(json_path).print(_table(rows, network))
    if json_path is not None:
        settings = {
            "images": images,
            "seeds": list(seeds),
            **_told(sampling, opened[0]),
            "reference": reference,
            "network": network.name,
            "device": device,
            "threads": threads,
            "batch": batch,
            "cpu": describe_machine().cpu,
            "versions": {**versions(), **_torch_version()},
        }
        text = json.dumps({**settings, "rows": as_json(rows, network)}, indent=1, allow_nan=False) + "\n"
        write_files({json_path: lambda file: file.write(text.encode())})


def _sampling(
    bundles: Sequence[Bundle],
    cfg_scale: float | None,
    top_k: int | None,
    top_p: float,
    prompts: Path | None,
    area: str | None,
    ratio: str | None,
) -> Sampling | TextSampling:
    """What the options say of pictures, all of classes or all of text."""
    of_text = [takes_text(bundle.manifest) for bundle in bundles]
    if not all(of_text):
        for bundle in bundles:
            bundle.require_classes("compare bundles of text with each other")
        options.refuse("a bundle of classes", "prompts", "area", "ratio")
        for bundle in bundles:
            resolve_top_k(top_k, bundle.model)
        return Sampling(cfg_scale=DEFAULT_CFG_SCALE if cfg_scale is None else cfg_scale, top_k=top_k, top_p=top_p)
    options.refuse("a bundle of text", "top_k", "top_p")
    if prompts is None:
        raise click.UsageError("these bundles make pictures of text: give --prompts, one a line")
    size = options.chosen_size(bundles[0].manifest, area, ratio).index
    return TextSampling(tuple(read_prompts(prompts)), cfg_scale=cfg_scale, size=size)


def _told(sampling: Sampling | TextSampling, bundle: Bundle) -> dict[str, Any]:
    """What a JSON file says of the pictures, besides their seeds."""
    if isinstance(sampling, Sampling):
        top_k = resolve_top_k(sampling.top_k, bundle.model)
        return {"cfg_scale": sampling.cfg_scale, "top_k": top_k, "top_p": sampling.top_p}
    manifest = bundle.manifest
    cfg_scale = manifest.default_cfg_scale if sampling.cfg_scale is None else sampling.cfg_scale
    pixels = list(manifest.models[sampling.size].image_size)
    return {"cfg_scale": cfg_scale, "image_size": pixels, "prompts": list(sampling.prompts)}


class _Progress:
    """A line for each bundle and seed on a terminal; nothing elsewhere."""

    def __init__(self, images: int) -> None:
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
        self.bar = Progress(*columns, console=Console(stderr=True, quiet=not sys.stderr.isatty()))
        self.images, self.tasks = images, dict[tuple[str, int], TaskID]()

    def __enter__(self) -> "_Progress":
        self.bar.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self.bar.stop()

    def advance(self, job: Job, seed: int, done: int) -> None:
        key = (str(job.bundle.path), seed)
        if key not in self.tasks:
            self.tasks[key] = self.bar.add_task(f"{job.bundle.manifest.name}, seed {seed}", total=self.images)
        self.bar.update(self.tasks[key], completed=done)


def _table(rows: list[MetricsRow], network: ImageNetwork) -> Table:
    fid, score = network.metrics
    spread = "95% interval over seeds" if len(rows[0].seeds) > 1 else f"± of {score}: standard error"
    table = Table(caption=f"{network.name}; {spread}; {fid} falls with the number of images: compare equal numbers")
    for header in ("bundle", "images", score, fid, f"{fid} to\nfull precision"):
        table.add_column(header, justify="left" if header == "bundle" else "right", overflow="fold")
    for row in rows:
        bundle = printable(str(row.bundle))
        name = bundle if row.role == "bundle" else f"{bundle}\n({row.role})"
        seeds = f" x {len(row.seeds)}" if len(row.seeds) > 1 else ""
        table.add_row(
            name,
            f"{row.metrics[0].images}{seeds}",
            _cell(row, "inception_score", row.metrics[0].inception_score.stderr if not seeds else math.nan),
            _cell(row, "fid"),
            _cell(row, "fid_to_full_precision"),
        )
    return table


def _cell(row: MetricsRow, figure: str, stderr: float = math.nan) -> str:
    interval = row.interval(figure)
    if interval is None:
        return "-"
    half = stderr if math.isnan(interval.high) else interval.high - interval.mean
    return f"{interval.mean:.2f}" if math.isnan(half) else f"{interval.mean:.2f} ± {half:.2f}"


def _torch_version() -> dict[str, str]:
    import torch

    return {"torch": torch.__version__}
