"""`nextscale metrics`: how good and how near to full precision the pictures of bundles are, as sets."""

import json
import math
import sys
from pathlib import Path

import click
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Table

from nextscale.cli import options
from nextscale.cli.results import results_console
from nextscale.evaluate.feature_network import FeatureNetwork
from nextscale.evaluate.generated_statistics import Sampling
from nextscale.evaluate.image_comparison import Job, MetricsRow, as_json, compare_images
from nextscale.evaluate.image_statistics import ImageNetwork
from nextscale.evaluate.inception_network import InceptionNetwork
from nextscale.evaluate.reference_statistics import Reference, read_demo_reference, read_reference
from nextscale.measure.provenance import versions
from nextscale.runtime._bundle import Bundle
from nextscale.runtime._errors import OutputError
from nextscale.runtime._machine import describe_machine
from nextscale.runtime._request import resolve_top_k
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
@options.cfg_scale
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
@click.option("--inception-weights", type=click.Path(path_type=Path, exists=True, dir_okay=False), metavar="FILE",
              help="Use Inception v3 with torch-fidelity's weights, for standard FID and IS.")  # fmt: skip
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
    cfg_scale: float,
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
    """Make pictures with BUNDLES and measure them as sets.

    IS-E: how clear and varied the pictures are (higher is better). FID-E: how far their features are from those of real
    images, or of full precision's pictures (lower is better). Both use the network EfficientNet-Lite0, and cannot be
    compared with FID and IS, which use Inception and need --inception-weights. After Ctrl-C the same command goes on
    from where it was.
    """
    if noise_floor and full_precision is None:
        raise click.UsageError("--noise-floor needs --full-precision")
    if len(set(seeds)) < len(seeds):
        raise click.UsageError("--seed: the same seed twice")
    opened = [Bundle.open(path) for path in bundles]
    original = Bundle.open(full_precision) if full_precision else None
    for bundle in (*opened, *([original] if original else [])):
        bundle.require_classes("compare it by `nextscale evaluate` and `nextscale report`")
    for bundle in opened:
        resolve_top_k(top_k, bundle.model)
    real = _reference(reference)
    network: ImageNetwork = (
        InceptionNetwork(inception_weights, device) if inception_weights else FeatureNetwork(device, threads)
    )
    _make_folder(work)
    if json_path is not None:
        read = [path for bundle in (*opened, *([original] if original else [])) for path in bundle.paths()]
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
            sampling=Sampling(cfg_scale=cfg_scale, top_k=top_k, top_p=top_p),
            batch_size=batch,
            options=SessionOptions(threads=threads),
            on_images=progress.advance,
        )
    results_console(json_path).print(_table(rows, network))
    if json_path is not None:
        settings = {
            "images": images,
            "seeds": list(seeds),
            "cfg_scale": cfg_scale,
            "top_k": resolve_top_k(top_k, opened[0].model),
            "top_p": top_p,
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


def _reference(name: str) -> Reference | None:
    if name == "none":
        return None
    return read_demo_reference() if name == "demo" else read_reference(Path(name))


def _make_folder(work: Path) -> None:
    try:
        work.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"cannot make {work}: {error.strerror}") from None
    require_writable([work / "statistics.npz"])


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
