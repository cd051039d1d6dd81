"""Where a fused generation's time goes, by operator and by stage, beside what the processor could do at most.

    python benchmarks/roofline.py BUNDLE [--threads 2] [--ops-library FILE] [--area 0.06M --ratio 1:1] [--name roofline]

BUNDLE has fused graphs; where it has several sizes, one is chosen, and where it takes text, features are random. Two
limits stand beside each operator that multiplies codes: the rate of ONNX Runtime's own products at their best (the
denominator of `nextscale table-c`), and the rate of this processor's fastest instruction with all operands in
registers, which benchmarks/processor_limits.cc measures. It also measures how fast memory is read, which bounds stages
of few tokens: each of them reads all weights. Attention in float multiplies no codes. Convolutions by Winograd's
algorithm make fewer products than are counted, and may pass the limit. Needs GCC 12 or later. Times are those of
profiled runs, medians of several.
"""

from __future__ import annotations

import json
import math
import statistics
import subprocess
import tempfile
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path

import click
from provenance import provenance, publish

from nextscale.measure.kernel_rates import kernel_rates
from nextscale.measure.profile_events import GenerationProfile, OperatorTime, profile_generation
from nextscale.measure.random_request import TEXT_TOKENS, Subject
from nextscale.runtime import Bundle, SessionOptions

RUNS = 5
SOURCE = Path(__file__).with_name("processor_limits.cc")
Key = tuple[str, int | None]


def operations(operator: OperatorTime) -> tuple[int, int]:
    """Operations on codes, a multiply-add being two, and bytes of weights; none for other operators."""
    shapes = operator.inputs
    if operator.op_type in ("Linear", "PairLinear"):
        weight = next(shape for shape in shapes[1:] if len(shape) == 2 and shape[0] == shapes[0][-1])
        products = 2 if operator.op_type == "PairLinear" else 1
        count = math.prod(shapes[0])  # 0: of the class, which the first stage alone computes
        return 2 * products * count * weight[1], math.prod(weight) if count else 0
    if operator.op_type == "Convolution":
        channels = shapes[0][-1]
        # Others have four axes too: what is added to the result.
        weights = sum(math.prod(shape) for shape in shapes[1:] if is_kernel(shape, channels))
        return 2 * math.prod(shapes[0][:-1]) * weights, weights
    return 0, 0


def is_kernel(shape: tuple[int, ...], channels: int) -> bool:
    """Whether these are a convolution's weights: [out, C, size, size], or in columns [size size C, out]."""
    if len(shape) == 2:
        return shape[0] in (4 * channels, 9 * channels)
    return len(shape) == 4 and shape[1] == channels and shape[2] == shape[3] in (2, 3)


def limits(threads: int) -> dict[str, float]:
    with tempfile.TemporaryDirectory() as folder:
        program = Path(folder) / "limits"
        for command in (["c++", "-O2", "-std=c++17", "-pthread", SOURCE, "-o", program], [program, threads]):
            done = subprocess.run([*map(str, command)], capture_output=True, text=True, check=False)
            if done.returncode != 0:
                raise SystemExit(f"error: {command[0]}: {done.stderr.strip()[-1000:]}")
    found: dict[str, float] = json.loads(done.stdout)
    return found


def medians(profiles: Iterable[GenerationProfile]) -> dict[Key, float]:
    """Seconds by operator and stage, None being what is outside the stages."""
    found: dict[Key, list[float]] = defaultdict(list)
    for profile in profiles:
        sums: dict[Key, float] = defaultdict(float)
        for operator in profile.operators:
            sums[operator.op_type or "session", operator.stage] += operator.seconds
        for key, seconds in sums.items():
            found[key].append(seconds)
    return {key: statistics.median(seconds) for key, seconds in found.items()}


@click.command(help=__doc__)
@click.argument("bundle", type=click.Path(path_type=Path, file_okay=False, exists=True))
@click.option("--threads", type=click.IntRange(1), default=2, show_default=True)
@click.option("--ops-library", default="", help="nextscale-ops, where it is not the installed one.")
@click.option("--area", help="Of the pictures, of several sizes.  [default: the first's]")
@click.option("--ratio", help="Width to height, of several sizes.  [default: the first's]")
@click.option("--text-tokens", type=click.IntRange(1), default=TEXT_TOKENS, show_default=True, help="Of a text.")
@click.option("--name", default="roofline", show_default=True, help="Of the result file.")
def main(
    bundle: Path, threads: int, ops_library: str, area: str | None, ratio: str | None, text_tokens: int, name: str
) -> None:
    opened = Bundle.open(bundle)
    subject = Subject(opened.manifest.choose_size(area, ratio), text_tokens)
    options = SessionOptions(threads=threads, ops="fused", ops_library=ops_library)
    with tempfile.TemporaryDirectory() as folder:
        profiles = [profile_generation(opened, options, Path(folder), subject=subject) for _ in range(RUNS)]
    seconds = medians(profiles)
    work: dict[Key, int] = defaultdict(int)
    read: dict[Key, int] = defaultdict(int)
    for operator in profiles[0].operators:
        count, size = operations(operator)
        work[operator.op_type, operator.stage] += count
        read[operator.op_type, operator.stage] += size
    stock_rate = kernel_rates(SessionOptions(threads=threads)).int8
    found = limits(threads)
    instruction, limit = max(
        ((key, rate) for key, rate in found.items() if key not in ("threads", "memory")), key=lambda item: item[1]
    )
    total = sum(seconds.values())
    lines = [
        "# The roofline of fused operators",
        "",
        *provenance(threads),
        f"- {opened.manifest.name}, recipe {opened.manifest.recipe['name']}, batch 1{_shown(opened, subject)}; a "
        f"profiled picture takes {1e3 * total:.0f} ms (medians of {RUNS})",
        f"- ONNX Runtime's own products of codes, at their best: {stock_rate / 1e12:.3f} T operations per second",
        *(
            f"- {key}, operands in registers: {rate / 1e12:.3f} T operations per second"
            for key, rate in found.items()
            if key not in ("threads", "memory")
        ),
        f"- memory is read at {found['memory'] / 1e9:.1f} GB per second",
        "",
        f"| operator | ms | of the picture | G operations | T/s | of ONNX Runtime's | of {instruction} |",
        "|---|---|---|---|---|---|---|",
    ]
    kinds = sorted({kind for kind, _ in seconds}, key=lambda kind: -sum(_of(seconds, kind)))
    for kind in kinds:
        taken, count = sum(_of(seconds, kind)), sum(_of(work, kind))
        if taken < 0.005 * total:
            continue
        rate = count / taken
        shares = [f"{count / 1e9:.1f}", f"{rate / 1e12:.3f}", f"{rate / stock_rate:.0%}", f"{rate / limit:.0%}"]
        lines.append(
            f"| {kind} | {1e3 * taken:.1f} | {taken / total:.1%} | {' | '.join(shares if count else [''] * 4)} |"
        )
    lines += [
        "",
        "Linear layers by stage: what their operations need at that instruction's rate, and reading their weights.",
        "",
        "| stage | ms | linear layers, ms | operations, ms | weights, ms | the larger, of the time |",
        "|---|---|---|---|---|---|",
    ]
    for stage in range(len(profiles[0].stages)):
        layers = [(kind, stage) for kind in ("Linear", "PairLinear") if (kind, stage) in seconds]
        taken = sum(seconds[key] for key in layers)
        computing = sum(work[key] for key in layers) / limit
        reading = sum(read[key] for key in layers) / found["memory"]
        everything = statistics.median(profile.stages[stage] for profile in profiles)
        cells = [f"{1e3 * value:.2f}" for value in (everything, taken, computing, reading)]
        lines.append(f"| {stage + 1} | {' | '.join(cells)} | {max(computing, reading) / taken:.0%} |")
    publish(name, lines)


def _shown(bundle: Bundle, subject: Subject) -> str:
    """The size and the text, where there is a choice of them."""
    manifest = bundle.manifest
    size = f", {'x'.join(map(str, manifest.sizes[subject.size].image_size))} pixels" if manifest.sizes else ""
    return size + (f", texts of {subject.text_tokens} tokens" if manifest.input_of_kind("text_features") else "")


def _of(by_key: dict[Key, float] | dict[Key, int], kind: str) -> list[float]:
    return [value for (found, _), value in by_key.items() if found == kind]


if __name__ == "__main__":
    main()
