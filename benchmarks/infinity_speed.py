"""How fast Infinity draws at one size, and with how much memory, beside PyTorch and OpenVINO.

    python benchmarks/infinity_speed.py --preset infinity-2b --rounds 8
    python benchmarks/infinity_speed.py --preset infinity-125m --contender int8-stock --contender int8-fused

Weights are random, and so are the texts' features, of 64 tokens: a text encoder is no part of the time nor of the
memory. A turn is a process of its own, which loads, draws one picture that does not count and one that does, and ends:
no two models are in memory at the same time. Bundles, exported graphs and finished turns are kept in WORK, so that the
same command goes on where it was interrupted; after a change of the code, the machine or the settings, turns begin
anew, while bundles are built again only once they are removed.

Peers run what a user would: our module in bfloat16 with caches of keys and values, and the exported graph of a stage
that NNCF made int8 (`nextscale.measure.peers`). The roofline is that of table C: operations of linear layers and
convolutions at the rate that ONNX Runtime's own integer products reach on this machine.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import click
import torch
from infinity_speed_parts import CALIBRATION_IMAGES, bundle_folder, peer_folder, sized
from progress import log
from provenance import RESULTS, circumstances, provenance, publish

from nextscale.graph_passes.recipe import load_recipe
from nextscale.measure.bundle_contender import bundle_contender
from nextscale.measure.contender import Contender, Worker
from nextscale.measure.interleaved import ORDER, interleave
from nextscale.measure.kernel_rates import KernelRates, kernel_rates
from nextscale.measure.peers import INFINITY_NAMES
from nextscale.measure.peers.contenders import contender as peer_contender
from nextscale.measure.peers.setup import finish
from nextscale.measure.provenance import finite
from nextscale.measure.random_request import TEXT_TOKENS, Subject
from nextscale.measure.roofline import CONVOLUTIONS, roofline_seconds
from nextscale.measure.statistics import Interval, mean_interval, ratio_interval
from nextscale.models.infinity.bsq_vae import BSQVAE
from nextscale.models.infinity.presets import PRESETS, get_preset
from nextscale.models.infinity.schedules import AREAS
from nextscale.models.operations import convolution_operations, facts_of_bundle, linear_operations
from nextscale.runtime._bundle import Bundle
from nextscale.runtime._errors import NextscaleError
from nextscale.runtime._manifest import FUSED, STOCK
from nextscale.runtime._operators import installed_library, load_library
from nextscale.runtime._session import SessionOptions

FULL_PRECISION, INT8_STOCK, INT8_FUSED = "fp32", "int8-stock", "int8-fused"
OURS = {FULL_PRECISION: ("fp32", STOCK), INT8_STOCK: ("default", STOCK), INT8_FUSED: ("default", FUSED)}
CHOSEN = (*OURS, "pytorch-bf16", "openvino-int8")
PARTS = Path(__file__).with_name("infinity_speed_parts.py")


@dataclass(frozen=True)
class Turn:
    """What a process took.

    Attributes:
        name: of the contender.
        round: counted from 0.
        seconds: of the second picture.
        peak_bytes: of the process's memory, Python included.
        load_seconds: until it could draw.
        versions: of what it ran on.
    """

    name: str
    round: int
    seconds: float
    peak_bytes: int
    load_seconds: float
    versions: Mapping[str, str]


class Record:
    """Finished turns in a file, a line each behind a line of the circumstances; those of others are forgotten."""

    def __init__(self, path: Path, found: Mapping[str, Any]) -> None:
        self._path, first = path, json.dumps(finite(dict(found)))
        lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
        if lines[:1] != [first]:
            if lines:
                log(f"{path}: of another commit, machine or setting: beginning anew")
            lines = [first]
            path.write_text(first + "\n", encoding="utf-8")
        self._turns = {(turn.name, turn.round): turn for turn in (Turn(**json.loads(line)) for line in lines[1:])}

    def turn(self, contender: Contender, text_tokens: int) -> Callable[[int], Turn]:
        """A turn of `interleave`, which is not taken again."""

        def take(done: int) -> Turn:
            key = contender.name, done
            if key not in self._turns:
                self._turns[key] = measure(contender, done, text_tokens)
                with self._path.open("a", encoding="utf-8") as file:
                    file.write(json.dumps(asdict(self._turns[key])) + "\n")
                log(f"{contender.name}: {self._turns[key].seconds:.3f} s")
            return self._turns[key]

        return take


def measure(contender: Contender, done: int, text_tokens: int) -> Turn:
    """One turn, of a process that is gone after it."""
    with Worker(contender) as worker:
        worker.request(1, 2 * done, text_tokens=text_tokens)
        reply = worker.request(1, 2 * done + 1, text_tokens=text_tokens)
        return Turn(
            contender.name, done, reply.seconds, reply.peak_memory_bytes, worker.load_seconds, dict(worker.versions)
        )


@click.command(help=__doc__)
@click.option("--preset", type=click.Choice(list(PRESETS)), default="infinity-2b", show_default=True)
@click.option("--blocks", type=click.IntRange(1), help="The first so many alone.  [default: all]")
@click.option("--area", type=click.Choice(list(AREAS)), default="0.06M", show_default=True)
@click.option("--ratio", default="1:1", show_default=True, help="Width to height.")
@click.option("--text-tokens", type=click.IntRange(1, 512), default=TEXT_TOKENS, show_default=True)
@click.option("--threads", type=click.IntRange(1), default=2, show_default=True)
@click.option("--ops-library", default="", help="nextscale-ops, where it is not the installed one.")
@click.option("--contender", "names", type=click.Choice([*OURS, *INFINITY_NAMES]), multiple=True, default=CHOSEN)
@click.option("--rounds", type=click.IntRange(2), default=8, show_default=True, help="With --minutes, at most.")
@click.option("--minutes", type=click.FloatRange(0, min_open=True), help="After which no round begins.")
@click.option("--work", type=click.Path(path_type=Path), default=Path("out/infinity_speed"), show_default=True)
@click.option("--name", help="Of the result files.  [default: infinity_speed_SIZE_AREA]")
def main(
    preset: str,
    blocks: int | None,
    area: str,
    ratio: str,
    text_tokens: int,
    threads: int,
    ops_library: str,
    names: tuple[str, ...],
    rounds: int,
    minutes: float | None,
    work: Path,
    name: str | None,
) -> None:
    blocks = get_preset(preset).config.depth if blocks is None else blocks
    model = sized(preset, blocks).name
    place = work / f"{model}_{area}_{ratio.replace(':', 'x')}"
    place.mkdir(parents=True, exist_ok=True)
    failures = make(names, [preset, str(blocks), area, ratio, str(threads)], place, threads)
    options = SessionOptions(threads=threads, ops_library=ops_library)
    subject = Subject(text_tokens=text_tokens)
    contenders = [contender(item, place, options, subject) for item in names if item not in failures]
    if not contenders:
        raise click.ClickException("no contender could be made")
    operators = load_library(Path(ops_library)) if ops_library else installed_library()
    settings = {
        "preset": preset,
        "blocks": blocks,
        "area": area,
        "ratio": ratio,
        "text_tokens": text_tokens,
        "threads": threads,
        "operators": None if operators is None else operators.isa,
    }
    record = Record(place / "turns.jsonl", circumstances(settings))
    rates = kernel_rates(options)
    turns = interleave(
        {item.name: record.turn(item, text_tokens) for item in contenders},
        repetitions=rounds,
        warmup=0,
        minutes=minutes,
        optional=INFINITY_NAMES,
        on_failure=lambda item, error: failures.update({item: str(error)}),
        log=log,
    )
    rates = rates.best_with(kernel_rates(options))
    least = {item: roofline(preset, place, item, text_tokens, rates) for item in turns if item in OURS}
    counted = len(next(iter(turns.values())))
    lines = [
        f"# The speed of {model} at {area}, {ratio}",
        "",
        *provenance(threads),
        f"- operators: nextscale-ops for {settings['operators']}; load average of the last minute "
        f"{os.getloadavg()[0]:.1f}",
        f"- random weights, one picture of both guided rows, random features of {text_tokens} tokens; the text encoder "
        "is not included",
        f"- {counted} rounds, {ORDER}; a process for each turn, which loads, draws a picture, and another that counts",
        "- seconds are means, ratios geometric means of the same round, with 95% intervals; memory is the resident "
        "peak of the process, the largest of all rounds",
        f"- roofline: {rates.int8 / 1e12:.3f} T operations per second of integers, {rates.float32 / 1e12:.3f} T in "
        "float32",
        f"- peers: {peer_versions(turns)}",
        f"- ranges were observed on {CALIBRATION_IMAGES} pictures, NNCF's on one: speed does not depend on them",
        "",
        *table(turns, least),
        *(f"\n{item} is missing: {why}" for item, why in failures.items()),
    ]
    name = name or f"infinity_speed_{model.removeprefix('infinity-')}_{area}"
    publish(name, lines)
    document = {
        **circumstances({**settings, "rounds": counted}),
        "turns": [asdict(turn) for of_one in turns.values() for turn in of_one],
        "ratios": {item: {other: asdict(over(turns, item, other)) for other in turns} for item in turns},
        "roofline_seconds": least,
        "rates": asdict(rates),
        "failures": failures,
    }
    (RESULTS / f"{name}.json").write_text(json.dumps(finite(document), indent=1) + "\n", encoding="utf-8")


def make(names: Iterable[str], of: Sequence[str], place: Path, threads: int) -> dict[str, str]:
    """Make what is not there yet; returns by name why a peer could not be made."""
    failures = {}
    for name in names:
        if name in OURS:
            recipe = OURS[name][0]
            if not bundle_folder(place, recipe).exists():
                log(f"building {recipe}")
                run_parts(of, place, recipe)
            continue
        peers = peer_folder(place)
        try:
            if peers.missing(name) is not None:
                log(f"making {name}")
                if any(not path.exists() for path in stored(name, place)):
                    run_parts(of, place, name)
                peers.work.mkdir(exist_ok=True)
                finish(name, peers, threads, log)
        except (NextscaleError, subprocess.CalledProcessError, OSError) as error:
            failures[name] = " ".join(str(error).split())
            log(f"{name}: failed: {failures[name]}")
    return failures


def stored(name: str, place: Path) -> list[Path]:
    """What a peer needs that is made with the model in memory."""
    peers = peer_folder(place)
    return [path for path in peers.needs(name) if path in (peers.exported, peers.models)]


def run_parts(of: Sequence[str], place: Path, name: str) -> None:
    subprocess.run([sys.executable, str(PARTS), *of, str(place), name], check=True)


def contender(name: str, place: Path, options: SessionOptions, subject: Subject) -> Contender:
    if name not in OURS:
        return peer_contender(name, peer_folder(place), options.threads)
    recipe, ops = OURS[name]
    library = options.ops_library if ops == FUSED else ""
    chosen = SessionOptions(threads=options.threads, ops=ops, ops_library=library)
    return bundle_contender(name, Bundle.open(bundle_folder(place, recipe)), "generate", chosen, subject=subject)


def roofline(preset: str, place: Path, name: str, text_tokens: int, rates: KernelRates) -> float:
    """Seconds of a picture at the least."""
    recipe, bundle = OURS[name][0], Bundle.open(bundle_folder(place, OURS[name][0]))
    model = bundle.model
    with torch.device("meta"):
        vae = BSQVAE(get_preset(preset).vae)
    convolutions = convolution_operations(vae.decode, (model.latent_channels, *model.latent_size))
    operations = linear_operations(facts_of_bundle(bundle, 0, text_tokens)) | {CONVOLUTIONS: convolutions}
    return roofline_seconds(operations, load_recipe(recipe), rates)


def table(turns: Mapping[str, Sequence[Turn]], least: Mapping[str, float]) -> list[str]:
    """A line for each contender."""
    lines = [
        "| | seconds | over full precision | int8-fused over it | of the roofline | memory, GB | load, s |",
        "|---" * 7 + "|",
    ]
    for name, of_one in turns.items():
        seconds = mean_interval([turn.seconds for turn in of_one])
        faster = shown(over(turns, name, FULL_PRECISION)) if FULL_PRECISION in turns else ""
        lead = shown(over(turns, INT8_FUSED, name)) if INT8_FUSED in turns else ""
        share = f"{least[name] / seconds.mean:.0%}" if name in least else ""
        memory = max(turn.peak_bytes for turn in of_one) / 1e9
        load = mean_interval([turn.load_seconds for turn in of_one]).mean
        lines.append(f"| {name} | {shown(seconds)} | {faster} | {lead} | {share} | {memory:.2f} | {load:.1f} |")
    return lines


def peer_versions(turns: Mapping[str, Sequence[Turn]]) -> str:
    """Of the libraries that are no part of nextscale."""
    found = {name: of_one[-1].versions for name, of_one in turns.items() if name not in OURS}
    own = ("numpy", "python")
    told = [
        f"{name} with {library} {version}"
        for name, versions in found.items()
        for library, version in versions.items()
        if library not in own
    ]
    return ", ".join(told) or "none"


def over(turns: Mapping[str, Sequence[Turn]], name: str, other: str) -> Interval:
    """How many times as fast one is as another."""
    theirs, own = ([turn.seconds for turn in turns[item]] for item in (other, name))
    return ratio_interval(theirs, own)


def shown(value: Interval) -> str:
    return f"{value.mean:.3g} [{value.low:.3g}, {value.high:.3g}]"


if __name__ == "__main__":
    main()
