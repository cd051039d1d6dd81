"""What a build of a preset with random weights holds in memory, step by step.

The build runs in a process of its own. Anonymous and file-backed resident memory of it and of all that it starts are
read from /proc twenty times a second; steps are those that a build tells its user. File-backed pages are those of
weights that are mapped from files: the system may drop them when memory is short, and reads them again. Anonymous
memory it must keep.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import click
from build_memory_worker import BUILT, SOURCE, WEIGHTS, Settings
from progress import log
from provenance import provenance, publish

from nextscale.models.infinity.presets import PRESETS as OF_INFINITY
from nextscale.models.var.presets import PRESETS as OF_VAR

WORKER = Path(__file__).with_name("build_memory_worker.py")
INTERVAL = 0.05  # seconds between samples


@dataclass
class Step:
    """One step of the build: since when, for how long, and the most memory in bytes."""

    name: str
    begin: float
    seconds: float = 0.0
    anonymous: int = 0
    from_files: int = 0
    resident: int = 0

    def row(self) -> str:
        gigabytes = " | ".join(f"{count / 1e9:.2f}" for count in (self.anonymous, self.from_files, self.resident))
        return f"| {self.name} | {self.begin:.0f} | {self.seconds:.0f} | {gigabytes} |"


@click.command(help=__doc__)
@click.option("--preset", type=click.Choice([*OF_INFINITY, *OF_VAR]), default="infinity-layer16", show_default=True)
@click.option("--pn", default="0.06M", show_default=True, help="Of Infinity: areas, with commas between.")
@click.option("--recipe", default="default", show_default=True)
@click.option("--images", type=click.IntRange(1), default=2, show_default=True, help="Of calibration.")
@click.option("--as-large", is_flag=True, help="Build as models of more than 4 GB are built.")
@click.option("--no-encoder", is_flag=True, help="Without the encoder, which takes long and little memory.")
@click.option("--threads", type=int, default=2, show_default=True)
@click.option("--work", type=click.Path(path_type=Path), default=Path("out/build_memory"), show_default=True)
@click.option("--name", help="Of the result file.  [default: build_memory_PRESET]")
def main(work: Path, name: str | None, no_encoder: bool, **options: object) -> None:
    settings = Settings(**options, encoder=not no_encoder, out=str(work / str(options["preset"])))
    shutil.rmtree(settings.out, ignore_errors=True)
    weights, steps = watch([sys.executable, "-u", str(WORKER), json.dumps(vars(settings))])
    shutil.rmtree(settings.out)
    publish(name or f"build_memory_{settings.preset}", report(settings, weights, steps))


def report(settings: Settings, weights: int, steps: list[Step]) -> list[str]:
    """Lines of Markdown; weights are bytes in float32."""
    resident, anonymous = (max(steps, key=lambda step: getattr(step, kind)) for kind in ("resident", "anonymous"))
    large = "as a model of more than 4 GB is, " if settings.as_large else ""
    return [
        f"# Memory of a build: {settings.preset}, {settings.pn}, recipe {settings.recipe}",
        "",
        *provenance(settings.threads),
        f"- built {large}with {settings.images} images of calibration, {'with' if settings.encoder else 'without'} the "
        "encoder",
        f"- weights of transformer and VAE in float32: {weights / 1e9:.2f} GB",
        f"- peak of resident memory: {resident.resident / 1e9:.2f} GB, {resident.resident / weights:.2f} of the weights"
        f" ({resident.name})",
        f"- peak of anonymous memory: {anonymous.anonymous / 1e9:.2f} GB, {anonymous.anonymous / weights:.2f} of the "
        f"weights ({anonymous.name})",
        "",
        "| step | from, s | seconds | anonymous, GB | from files, GB | resident, GB |",
        "|---|---|---|---|---|---|",
        *(step.row() for step in steps),
    ]


def watch(command: list[str]) -> tuple[int, list[Step]]:
    """Run the worker, and sample its memory; the bytes of the float weights, and the steps in order."""
    began = time.perf_counter()
    steps, weights = [Step(SOURCE, 0.0)], list[int]()

    def read(lines: Iterable[str]) -> None:
        for line in lines:
            step = line.strip()
            if step.startswith(WEIGHTS):
                weights.append(int(step.removeprefix(WEIGHTS)))
            elif step != steps[-1].name:
                log(step)
                steps.append(Step(step, time.perf_counter() - began))

    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        reader = threading.Thread(target=read, args=(process.stdout,))
        reader.start()
        while process.poll() is None:
            step, (anonymous, from_files) = steps[-1], tree_memory(process.pid)
            step.anonymous, step.from_files = max(step.anonymous, anonymous), max(step.from_files, from_files)
            step.resident = max(step.resident, anonymous + from_files)
            step.seconds = time.perf_counter() - began - step.begin
            time.sleep(INTERVAL)
        reader.join()
    if process.returncode or steps[-1].name != BUILT:
        raise SystemExit(f"the build failed in step: {steps[-1].name}")
    return weights[0], steps[:-1]


def tree_memory(pid: int) -> tuple[int, int]:
    """Anonymous and file-backed resident memory of a process and of those that it started, in bytes."""
    anonymous = from_files = 0
    try:
        status = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
        anonymous = 1024 * int(status["RssAnon"].split()[0])
        from_files = 1024 * sum(int(status[name].split()[0]) for name in ("RssFile", "RssShmem"))
        started = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except (OSError, KeyError):  # it has ended
        return anonymous, from_files
    for child in started:
        more = tree_memory(int(child))
        anonymous, from_files = anonymous + more[0], from_files + more[1]
    return anonymous, from_files


if __name__ == "__main__":
    main()
