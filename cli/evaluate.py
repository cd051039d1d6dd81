"""`nextscale evaluate`: how far bundles are from full precision, teacher-forced."""

import json
import sys
from pathlib import Path

import click
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from nextscale.cli.options import BUNDLE, threads
from nextscale.evaluate.teacher_forced import Agreement, as_json, teacher_forced
from nextscale.runtime.image_io import require_writable, write_files
from nextscale.runtime.next_scale_loop import Generator
from nextscale.runtime.request import DEFAULT_CFG_SCALE
from nextscale.runtime.session import SessionOptions


@click.command()
@click.argument("reference", type=BUNDLE)
@click.argument("bundles", type=BUNDLE, nargs=-1, required=True)
@click.option("--images", type=click.IntRange(1), default=256, show_default=True)
@click.option("--seed", type=click.IntRange(0, 2**63 - 1), default=1, show_default=True)
@click.option("--cfg-scale", type=float, default=DEFAULT_CFG_SCALE, show_default=True)
@click.option("--batch", type=click.IntRange(1), default=4, show_default=True, help="Images at a time.")
@click.option("--json", "json_path", type=click.Path(path_type=Path), help="Also write the figures there.")
@threads
def evaluate(
    reference: Path,
    bundles: tuple[Path, ...],
    images: int,
    seed: int,
    cfg_scale: float,
    batch: int,
    json_path: Path | None,
    threads: int,
) -> None:
    """Compare BUNDLES with the full-precision bundle REFERENCE of the same model.

    REFERENCE samples token maps; each bundle is fed those, and its distributions are compared with the reference's:
    KL in nats a token, and the share of tokens whose likeliest entry is the same.
    """
    if json_path is not None:
        require_writable([json_path])
    options = SessionOptions(threads=threads)
    candidates = {str(path): Generator(path, options) for path in bundles}
    with Progress(console=Console(stderr=True, quiet=not sys.stderr.isatty())) as progress:
        task = progress.add_task("comparing", total=images)
        agreements = teacher_forced(
            Generator(reference, options),
            candidates,
            images=images,
            seed=seed,
            cfg_scale=cfg_scale,
            batch_size=batch,
            on_images=lambda done: progress.update(task, completed=done),
        )
    Console().print(_table(agreements))
    if json_path is not None:
        settings = {"reference": str(reference), "seed": seed, "cfg_scale": cfg_scale}
        text = json.dumps({**settings, "bundles": as_json(agreements)}, indent=1) + "\n"
        write_files({json_path: lambda file: file.write(text.encode())})


def _table(agreements: dict[str, Agreement]) -> Table:
    table = Table("bundle", "KL, nats a token", "top-1 agreement", "KL by stage")
    for name, agreement in agreements.items():
        stages = " ".join(f"{kl:.3f}" for kl in agreement.stage_kl)
        table.add_row(name, f"{agreement.kl:.4f} ± {agreement.kl_stderr:.4f}", f"{agreement.top1:.1%}", stages)
    return table
