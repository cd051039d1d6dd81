"""Table C: images per second of one model by recipe, measured on this machine, with what explains and qualifies it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from nextscale.graph_passes.recipe import Recipe
from nextscale.measure.bundle_contender import bundle_contender
from nextscale.measure.contender import Contender
from nextscale.measure.contest import Contest, require_batches
from nextscale.measure.interleaved import ORDER, Log, require_rounds
from nextscale.measure.kernel_rates import KernelRates, kernel_rates
from nextscale.measure.machine_speed import MachineSpeed, measure_processes, require_cores
from nextscale.measure.provenance import finite, versions
from nextscale.measure.roofline import CONVOLUTIONS, XEON_6226R, roofline_seconds
from nextscale.measure.speed import Speed
from nextscale.measure.statistics import Interval
from nextscale.measure.time_split import TimeSplit, profile_bundle
from nextscale.models.operations import facts_of_bundle, linear_operations
from nextscale.paper._demo_agreement import DemoAgreement, agreement_provenance, demo_agreement
from nextscale.paper._estimated_time import picture_seconds
from nextscale.paper._plan import PICTURES, Pace, PlannedStep
from nextscale.paper.recipe_bundles import FULL_PRECISION, RecipeBundle, UnbuiltBundle
from nextscale.runtime._bundle import Bundle
from nextscale.runtime._cpus import physical_cpus
from nextscale.runtime._errors import NextscaleError
from nextscale.runtime._machine import Machine, describe_machine
from nextscale.runtime._manifest import FUSED, STOCK
from nextscale.runtime._next_scale_loop import Generator
from nextscale.runtime._operators import SLOW_ISA, installed_library, load_library
from nextscale.runtime._session import SessionOptions
from nextscale.runtime._variants import each_variant

PROFILED = 2  # pictures of each row's profile
ANCHORS = (FULL_PRECISION, "default")  # in the rounds of every group of peers


@dataclass(frozen=True)
class PaperRow:
    """A row of the paper's Table C: images/s of VAR-d16 on an Intel Xeon Gold 6226R, and what it calls it."""

    method: str
    images_per_second: float
    half_width: float


PAPER = {
    "fp32": PaperRow("Full precision", 0.1208, 0.0010),
    "brecq-w8a8": PaperRow("BRECQ", 0.2195, 0.0046),
    "litevar-w8a8": PaperRow("LiteVAR", 0.1749, 0.0028),
    "ours-w8a8": PaperRow("Ours", 0.2147, 0.0042),
    "ours-litevar-w8a8": PaperRow("Ours+LiteVAR", 0.1719, 0.0026),
}
ROWS = (*PAPER, "default")


@dataclass(frozen=True)
class TableBundle:
    """A row to measure: the recipe, its bundle, and how the bundle differs from a full build."""

    recipe: Recipe
    bundle: Bundle
    notes: Sequence[str]


@dataclass(frozen=True)
class Prediction:
    """Images per second at batch 1 on a CPU that was not measured: the roofline there times the share reached here."""

    processor: str
    cores: int
    images_per_second: float


@dataclass(frozen=True)
class Row:
    """One row of the table.

    Attributes:
        name: the recipe's, with " fused" behind it where fused graphs ran; or the peer's.
        method: what the table calls it.
        bits: of weights and activations, as the paper writes them; empty for a peer.
        paper_ratio: the paper's images/s over its full precision's; None where the paper has no such row.
        speeds: one for each batch size.
        agreement: with full precision on the demo model; None where it was not measured.
        size_bytes: of the bundle; None for a peer.
        split: of a profiled run at batch 1.
        roofline_seconds: what linear layers and convolutions need for an image at the rates measured here.
        roofline_share: of the time of an image at the smallest batch size.
        predictions: for the paper's CPU.
        notes: how the bundle differs from a full build.
    """

    name: str
    method: str
    bits: str
    paper_ratio: float | None
    speeds: tuple[Speed, ...]
    agreement: DemoAgreement | None = None
    size_bytes: int | None = None
    split: TimeSplit | None = None
    roofline_seconds: float | None = None
    roofline_share: float | None = None
    predictions: tuple[Prediction, ...] = ()
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class PeerGroup:
    """Peers measured in the same rounds as full precision and `default`.

    Attributes:
        anchors: speeds of those two, at each batch size, in these rounds; of `default` in all its forms.
        peers: speeds of the peers, at each batch size.
        leads: images per second of each form of `default` over each peer's, paired by round.
    """

    anchors: tuple[Speed, ...]
    peers: tuple[Speed, ...]
    leads: tuple[Lead, ...]


@dataclass(frozen=True)
class Lead:
    """How much faster one contender is than another in the same rounds."""

    name: str
    other: str
    batch: int
    ratio: Interval


@dataclass(frozen=True)
class TableC:
    """What was measured, and on what.

    Attributes:
        model: what was built, plain values.
        machine, versions: of this process.
        settings: of the measurement.
        rates: of matrix products, the better of before and after.
        operations: of one image's linear layers and convolutions.
        rows: recipes in the order asked for, then peers.
        failures: by name why a peer is missing.
        machine_speeds: of the recipe `machine_recipe` in several processes.
        recommendation: what gives most images per second here.
        agreement_provenance: how the agreement on the demo model was measured.
        peer_groups: the peers, with what was in the same rounds.
    """

    model: Mapping[str, Any]
    machine: Machine
    versions: Mapping[str, str]
    settings: Mapping[str, Any]
    rates: KernelRates
    operations: int
    rows: tuple[Row, ...]
    failures: Mapping[str, str]
    machine_speeds: tuple[MachineSpeed, ...]
    machine_recipe: str
    recommendation: str
    agreement_provenance: str
    peer_groups: tuple[PeerGroup, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Plain values; what is not finite becomes null."""
        plain: dict[str, Any] = finite(asdict(self))
        return plain

    def warnings(self) -> list[str]:
        """Lines on rows that a reader could mistake for good ones."""
        return [
            f"{row.method} is far from full precision: KL {row.agreement.kl:.2f} nats per token, top-1 "
            f"{row.agreement.top1:.0%} on the demo model"
            for row in self.rows
            if row.agreement is not None and row.agreement.kl > BAD_KL
        ]


BAD_KL = 0.1  # the likeliest entry of every third token is another, on the demo model


def measure_table_c(
    bundles: Sequence[TableBundle],
    convolution_operations: int,
    model: Mapping[str, Any],
    *,
    peers: Sequence[Contender] = (),
    peers_at_once: int | None = None,
    batches: Sequence[int] = (1,),
    processes: Sequence[int] = (),
    options: SessionOptions | None = None,
    repetitions: int = 8,
    half_width: float | None = None,
    minutes: float | None = None,
    warmup: int = 1,
    log: Log = lambda line: None,
) -> TableC:
    """Measure bundles of one model in one interleaved run, and peers in the same or in runs of their own.

    Args:
        bundles: a row each; where both can run, one of its stock and one of its fused graphs.
        convolution_operations: of the model's decoder, on one image.
        model: what it is, for the report.
        peers: what a user would run instead; those that fail are left out.
        peers_at_once: measure them apart from the bundles, no more than so many in memory at the same time, each group
            in the same rounds as full precision and `default`; None measures all with the bundles.
        batches: images at a time.
        processes: also measure this many at the same time, of the recipe `default` or else the last.
        options: threads, memory and operators, of one process; see `each_variant`.
        repetitions: timed rounds; with half_width or minutes, at most.
        half_width: of ratios to full precision, by `Contest.speeds`, that ends the rounds.
        minutes: after which no round begins, of each batch size and each group of peers.
        warmup: rounds before them.
        log: called with a line of progress.
    Raises:
        NextscaleError: nothing to measure, a setting out of range, or a bundle that fails.
    """
    options = options or SessionOptions()
    if not bundles:
        raise NextscaleError("no row to measure")
    require_batches(batches)
    require_rounds(repetitions, warmup)
    require_groups(peers_at_once, half_width, minutes)
    cpus = physical_cpus()
    require_cores(processes, cpus)
    log("rates of matrix products")
    before = kernel_rates(options)
    measured = [Case(item, choice) for item in bundles for choice in cases(item.bundle, options)]
    contenders = [bundle_contender(case.name, case.item.bundle, "generate", case.options) for case in measured]
    anchors = [case.name for case in measured if case.item.recipe.name in ANCHORS]

    failures: dict[str, str] = {}

    def contest(own: Sequence[Contender], others: Sequence[Contender]) -> list[Speed]:
        with Contest(own, optional=others, log=log) as run:
            found = [
                speed
                for batch in sorted(set(batches))
                for speed in run.speeds(
                    batch,
                    repetitions=repetitions,
                    warmup=warmup,
                    reference=FULL_PRECISION,
                    half_width=half_width,
                    minutes=minutes,
                )
            ]
        failures.update(run.failures)
        return [speed for speed in found if speed.name not in failures]

    speeds = contest(contenders, () if peers_at_once else peers)
    groups = [_group(speeds, anchors, peers)] if peers and not peers_at_once else []
    size = peers_at_once or 1
    apart = [peers[first : first + size] for first in range(0, len(peers), size)] if peers_at_once else []
    for group in apart:
        found = contest([item for item in contenders if item.name in anchors], group)
        groups.append(_group(found, anchors, group))
    rates = before.best_with(kernel_rates(options))
    operations = linear_operations(facts_of_bundle(bundles[0].bundle)) | {CONVOLUTIONS: convolution_operations}
    by_name = {case.name: tuple(speed for speed in speeds if speed.name == case.name) for case in measured}
    rows = []
    for case in measured:
        log(f"profiling {case.name}")
        bundle = case.item.bundle
        split = profile_bundle(bundle, case.options, bundle.folder.parent)
        rows.append(_row(case, by_name[case.name], split, rates, operations))
    rows += [
        Row(name, name, "", None, tuple(speed for speed in group.peers if speed.name == name))
        for group in groups
        for name in dict.fromkeys(speed.name for speed in group.peers)
    ]
    # Of its variants the last one: where fused graphs run, they are what is recommended.
    chosen = next((case for case in reversed(measured) if case.item.recipe.name == "default"), measured[-1])

    def pinned(share: Sequence[int]) -> Contender:
        alone = replace(chosen.options, threads=len(share))
        return bundle_contender(chosen.name, chosen.item.bundle, "generate", alone, share)

    together = measure_processes(pinned, cpus, processes, batches, repetitions, log) if processes else []
    return TableC(
        model=model,
        machine=describe_machine(),
        versions=versions(),
        settings={
            "threads": options.threads,
            "spinning": options.spinning,
            "batches": sorted(set(batches)),
            "processes": list(processes),
            "repetitions": repetitions,
            "half_width": half_width,
            "minutes": minutes,
            "peers_at_once": peers_at_once,
            "warmup": warmup,
            "order": ORDER,
        },
        rates=rates,
        operations=sum(operations.values()),
        rows=tuple(rows),
        failures=failures,
        peer_groups=tuple(groups),
        machine_speeds=tuple(together),
        machine_recipe=chosen.name,
        recommendation=recommend(chosen.name, by_name[chosen.name], together, options.threads),
        agreement_provenance=agreement_provenance(),
    )


def plan_table_c(
    rows: Sequence[RecipeBundle | UnbuiltBundle],
    original: RecipeBundle | UnbuiltBundle,
    *,
    batches: Sequence[int],
    processes: Sequence[int],
    options: SessionOptions,
    repetitions: int,
    warmup: int,
) -> list[PlannedStep]:
    """What `measure_table_c` without peers and the builds before it take at most; a batch is drawn with each bundle.

    Args:
        rows: of the table.
        original: full precision, among them or not.
        batches, processes, options, repetitions, warmup: as for `measure_table_c`.
    Raises:
        NextscaleError: a setting is out of range, or fused operators are asked for and cannot run.
    """
    require_batches(batches)
    require_rounds(repetitions, warmup)
    require_cores(processes, physical_cpus())
    at_once = sum(set(batches))

    def batch(item: RecipeBundle) -> float:
        return picture_seconds(Generator(item.bundle, options), None, min(batches))

    pace, each = Pace(original, batch), (warmup + repetitions) * at_once + PROFILED
    steps = [pace.step(item, {PICTURES: each * _variants(item, options)}) for item in rows]
    chosen = next((item for item in rows if item.name == "default"), rows[-1])
    together = sum(processes) * (repetitions + 2) * at_once  # twice half of the rounds behind one that warms up
    if together:
        steps.append(pace.step(chosen, {PICTURES: together}, name=f"{chosen.name} in processes"))
    return steps


def _variants(item: RecipeBundle | UnbuiltBundle, options: SessionOptions) -> int:
    """Of a row's graphs, each of which is measured."""
    if isinstance(item, RecipeBundle):
        return len(cases(item.bundle, options))
    if item.recipe.precision == "fp32" or options.ops != "auto":
        return 1
    library = load_library(Path(options.ops_library)) if options.ops_library else installed_library()
    return 2 if library is not None and library.isa not in ("", SLOW_ISA) else 1


def recommend(recipe: str, speeds: Sequence[Speed], together: Sequence[MachineSpeed], threads: int) -> str:
    """What gives most images per second: one process or several, and how many images at a time.

    Args:
        recipe: what was measured in all these ways.
        speeds: of one process, at each batch size.
        together: of several.
        threads: of the one process; 0 is one for each core.
    """
    alone = "1 process of " + (f"{threads} threads" if threads else "a thread for each core")
    ways = [(speed.images_per_second.mean, f"{alone}, batch {speed.batch}") for speed in speeds]
    if any(speed.processes == 1 for speed in together):
        ways = []  # it was measured again beside the others
    ways += [
        (
            speed.images_per_second.mean,
            f"{speed.processes} pinned {'process' if speed.processes == 1 else 'processes'} of {speed.threads} "
            f"{'thread' if speed.threads == 1 else 'threads'}, batch {speed.batch}",
        )
        for speed in together
    ]
    best, way = max(ways)
    text = f"most images per second on this machine with {recipe}: {way}: {best:.3g} images/s"
    first, first_way = ways[0]
    return text if way == first_way else f"{text}, {best / first:.2f} times those of {first_way} ({first:.3g})"


@dataclass(frozen=True)
class Case:
    """A row to measure in one variant of its graphs, which `options` name."""

    item: TableBundle
    options: SessionOptions

    @property
    def is_fused(self) -> bool:
        return self.options.ops == FUSED

    @property
    def name(self) -> str:
        return f"{self.item.recipe.name} {FUSED}" if self.is_fused else self.item.recipe.name


def cases(bundle: Bundle, options: SessionOptions) -> list[SessionOptions]:
    """A bundle without fused graphs, as one of full precision, has its stock graphs in the table, whatever is asked."""
    has_fused = any(graph.fused is not None for graph in bundle.manifest.graphs.values())
    return each_variant(bundle, options) if has_fused else [replace(options, ops=STOCK)]


def require_groups(peers_at_once: int | None, half_width: float | None, minutes: float | None) -> None:
    """Raises NextscaleError where groups of peers, or what ends their rounds, cannot be so."""
    if peers_at_once is not None and peers_at_once < 1:
        raise NextscaleError(f"peers at once {peers_at_once}: expected at least 1")
    if half_width is not None and not half_width > 0:
        raise NextscaleError(f"half width {half_width}: expected more than 0")
    if minutes is not None and not minutes > 0:
        raise NextscaleError(f"minutes {minutes}: expected more than 0")


def _group(speeds: Sequence[Speed], anchors: Sequence[str], peers: Sequence[Contender]) -> PeerGroup:
    beside = tuple(speed for speed in speeds if speed.name in anchors)
    others = tuple(speed for speed in speeds if speed.name in [peer.name for peer in peers])
    leads = tuple(
        Lead(own.name, other.name, own.batch, own.ratio_to(other))
        for own in beside
        for other in others
        if own.name != FULL_PRECISION and own.batch == other.batch
    )
    return PeerGroup(beside, others, leads)


def _row(
    case: Case, speeds: tuple[Speed, ...], split: TimeSplit, rates: KernelRates, operations: Mapping[str, int]
) -> Row:
    item = case.item
    recipe, paper = item.recipe, PAPER.get(item.recipe.name)
    method = paper.method if paper else recipe.name
    least = roofline_seconds(operations, recipe, rates)
    share = least * speeds[0].images_per_second.mean
    is_float = recipe.precision == "fp32"
    return Row(
        name=case.name,
        method=f"{method}, {FUSED}" if case.is_fused else method,
        bits="32/32" if is_float else f"{recipe.weights.bits}/{recipe.activations.bits}",
        paper_ratio=paper.images_per_second / PAPER[FULL_PRECISION].images_per_second if paper else None,
        speeds=speeds,
        agreement=None if case.is_fused else demo_agreement(recipe.name),
        size_bytes=item.bundle.manifest.size,
        split=split,
        roofline_seconds=least,
        roofline_share=share,
        predictions=tuple(
            Prediction(XEON_6226R.name, cores, share / roofline_seconds(operations, recipe, XEON_6226R.rates(cores)))
            for cores in (1, XEON_6226R.cores)
        ),
        notes=tuple(item.notes),
    )
