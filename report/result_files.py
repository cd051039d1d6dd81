"""What the other commands wrote, read back: JSON of evaluate, metrics, bench and theta, and folders of calibrate.

A JSON file is recognised by its keys. Nothing read is trusted: every value is checked, and errors name its place.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from nextscale.calib_data.match_probabilities import MatchingReport
from nextscale.calib_data.token_maps import ARRAYS, MANIFEST
from nextscale.evaluate.teacher_forced import Agreement
from nextscale.measure.bench import BenchReport, Footprint, Measurement
from nextscale.measure.statistics import Interval
from nextscale.runtime._checked_json import JsonNode
from nextscale.runtime._errors import NextscaleError
from nextscale.runtime._machine import Machine
from nextscale.runtime._npz import read_npz
from nextscale.runtime._regular_file import read_regular

FREQUENCIES = "frequencies.npz"
_LIMIT = 64 * 2**20  # bytes; a real file is below 1 MB
_MAX_STAGES = 1000


@dataclass(frozen=True)
class EvaluateResult:
    """`nextscale evaluate`: agreement of bundles, by path, with the bundle `reference`."""

    file: Path
    reference: str
    seed: int
    cfg_scale: float
    agreements: Mapping[str, Agreement]


@dataclass(frozen=True)
class ImageFigures:
    """One row of `nextscale metrics`; None where a figure was not measured.

    Attributes:
        role: "full precision", "noise floor" or "bundle".
        score, fid, distance: means over the seeds with 95% intervals, whose ends are NaN for one seed.
        score_stderr: standard error of the score for the first seed; NaN if unknown.
    """

    bundle: str
    role: str
    seeds: tuple[int, ...]
    images: int
    score: Interval | None
    score_stderr: float
    fid: Interval | None
    distance: Interval | None


@dataclass(frozen=True)
class MetricsResult:
    """`nextscale metrics`; fid_name and score_name are "FID-E" and "IS-E", or as Inception's are called."""

    file: Path
    fid_name: str
    score_name: str
    settings: Mapping[str, Any]
    rows: tuple[ImageFigures, ...]

    def comparable_with(self, other: MetricsResult) -> bool:
        """Whether the figures mean the same: FID depends on the number of images, on the network and so on."""
        keys = ("images", "cfg_scale", "top_k", "top_p", "reference", "network")
        return all(self.settings.get(key) == other.settings.get(key) for key in keys)


@dataclass(frozen=True)
class BenchResult:
    """`nextscale bench`."""

    file: Path
    report: BenchReport


@dataclass(frozen=True)
class ThetaRow:
    """What a theta adds to the operations, as a share of them; for a chosen theta also the budget that it keeps."""

    form: str
    theta: float
    max_order: int
    share: float
    budget: float | None


@dataclass(frozen=True)
class ThetaResult:
    """`nextscale theta`: the share of each stage's tokens above each theta, and what each costs."""

    file: Path
    bundle: str
    bits: str
    images: int
    shares: Mapping[float, tuple[float, ...]]
    rows: tuple[ThetaRow, ...]


@dataclass(frozen=True)
class CalibrationResult:
    """`nextscale calibrate`: how frequent the codebook's entries should be and are."""

    folder: Path
    bundle: str
    images: int
    matching: str
    report: MatchingReport


Result = EvaluateResult | MetricsResult | BenchResult | ThetaResult | CalibrationResult


def is_calibration(folder: Path) -> bool:
    """Whether `nextscale calibrate` made the folder."""
    return (folder / ARRAYS).is_file()


def read_calibration(folder: Path) -> CalibrationResult:
    """Raises NextscaleError where something is missing, damaged or of another kind."""
    manifest = _read_json(folder / MANIFEST)
    settings = manifest["settings"]
    path = folder / FREQUENCIES
    arrays = read_npz(path, ("target", "before", "after"))
    shape = arrays["target"].shape
    for name, array in arrays.items():
        kind = "f" if name == "target" else "iu"
        if array.ndim != 2 or array.shape != shape or array.dtype.kind not in kind or not array.size:
            raise NextscaleError(
                f"{path}: {name}: expected frequencies [stages, entries] as `nextscale calibrate` writes"
            )
        if not np.isfinite(array).all() or array.min() < 0 or not array.sum(1).all():
            raise NextscaleError(f"{path}: {name}: expected frequencies of at least 0 and some tokens at each stage")
    found = manifest.get("report")
    wanted, moved, immovable = (found[name].integer() if found else 0 for name in ("wanted", "moved", "immovable"))
    return CalibrationResult(
        folder=folder,
        bundle=manifest["bundle"]["name"].text(),
        images=manifest["images"].integer(),
        matching=settings["matching"].text(),
        report=MatchingReport(arrays["target"], arrays["before"], arrays["after"], wanted, moved, immovable),
    )


def read_result(file: Path) -> Result:
    """A JSON file that one of the commands wrote with --json.

    Raises:
        NextscaleError: it cannot be read, is of no known kind, or a value is missing or of another kind.
    """
    root = _read_json(file)
    keys = root.items().keys()
    for wanted, read in _READERS.items():
        if keys >= set(wanted):
            return read(file, root)
    raise NextscaleError(f"{file}: not a result of evaluate, metrics, bench or theta; expected what their --json wrote")


def _evaluate(file: Path, root: JsonNode) -> EvaluateResult:
    return EvaluateResult(
        file,
        root["reference"].text(),
        root["seed"].integer(maximum=2**64 - 1),
        root["cfg_scale"].number(),
        {name: _agreement(node) for name, node in root["bundles"].items().items()},
    )


def _agreement(node: JsonNode) -> Agreement:
    kl, top1 = _numbers(node["stage_kl"]), _numbers(node["stage_top1"])
    if len(kl) != len(top1):
        node["stage_top1"].refuse(f"{len(kl)} numbers, as in stage_kl")
    return Agreement(
        kl=node["kl"].number(),
        kl_stderr=_number_or_nan(node["kl_stderr"]),
        top1=node["top1"].number(),
        stage_kl=np.array(kl),
        stage_top1=np.array(top1),
        images=node["images"].integer(),
    )


def _metrics(file: Path, root: JsonNode) -> MetricsResult:
    nodes = root["rows"].elements()
    names = [key for node in nodes for key in node.items()]
    fid = _prefix(root, names, " to full precision")
    score = _prefix(root, names, " standard errors")
    rows = tuple(
        ImageFigures(
            bundle=node["bundle"].text(),
            role=node["role"].text(),
            seeds=tuple(seed.integer() for seed in node["seeds"].elements()),
            images=node["images"].integer(),
            score=_optional_interval(node[score]),
            score_stderr=next((_number_or_nan(item) for item in node[f"{score} standard errors"].elements()), math.nan),
            fid=_optional_interval(node[fid]),
            distance=_optional_interval(node[f"{fid} to full precision"]),
        )
        for node in nodes
    )
    settings = {key: node.value for key, node in root.items().items() if key != "rows"}
    return MetricsResult(file, fid, score, settings, rows)


def _prefix(root: JsonNode, names: list[str], ending: str) -> str:
    found = {name.removesuffix(ending) for name in names if name.endswith(ending)}
    if len(found) != 1:
        root["rows"].refuse(f'rows with one figure "...{ending}"')
    return found.pop()


def _bench(file: Path, root: JsonNode) -> BenchResult:
    machine = root["machine"]
    return BenchResult(
        file,
        BenchReport(
            machine=Machine(
                cpu=machine["cpu"].text(),
                isa=tuple(item.text() for item in machine["isa"].elements()),
                logical_cpus=machine["logical_cpus"].integer(),
                system=machine["system"].text(),
            ),
            versions={name: node.text() for name, node in root["versions"].items().items()},
            settings={name: node.value for name, node in root["settings"].items().items()},
            measurements=tuple(_measurement(node) for node in root["measurements"].elements()),
        ),
    )


def _measurement(node: JsonNode) -> Measurement:
    decoder, footprint = node.get("decoder_seconds"), node.get("footprint")
    return Measurement(
        bundle=node["bundle"].text(),
        name=node["name"].text(),
        recipe=node["recipe"].text(),
        size_bytes=node["size_bytes"].integer(),
        batch=node["batch"].integer(),
        form=node["form"].text(),
        image_seconds=_interval(node["image_seconds"]),
        images_per_second=_interval(node["images_per_second"]),
        stage_seconds=tuple(_interval(item) for item in node["stage_seconds"].elements()),
        decoder_seconds=_interval(decoder) if decoder else None,
        speedup=_interval(node["speedup"]),
        footprint=Footprint(
            footprint["load_seconds"].number(),
            footprint["first_seconds"].number(),
            footprint["peak_bytes"].integer(),
        )
        if footprint
        else None,
        samples=(),
    )


def _theta(file: Path, root: JsonNode) -> ThetaResult:
    shares: dict[float, tuple[float, ...]] = {}
    for name, node in root["attentive_shares"].items().items():
        try:
            theta = float(name)
        except ValueError:
            node.refuse("a number as its key")
        shares[theta] = tuple(_numbers(node))
    if len({len(stages) for stages in shares.values()}) > 1:
        root["attentive_shares"].refuse("as many stages for each theta")
    chosen = {
        (node["form"].text(), node["theta"].number()): node["budget"].number() for node in root["choices"].elements()
    }
    rows = [
        ThetaRow(
            form := node["form"].text(),
            theta := node["theta"].number(),
            node["max_order"].integer(),
            node["share"].number(),
            chosen.get((form, theta)),
        )
        for node in root["overheads"].elements()
    ]
    bits = root["bits"]
    return ThetaResult(
        file=file,
        bundle=root["bundle"].text(),
        bits=f"{bits['weights'].integer()}/{bits['activations'].integer()}",
        images=root["images"].integer(),
        shares=dict(sorted(shares.items())),
        rows=tuple(rows),
    )


_READERS: dict[tuple[str, ...], Callable[[Path, JsonNode], Result]] = {
    ("bundles", "reference"): _evaluate,
    ("rows", "network"): _metrics,
    ("measurements", "machine"): _bench,
    ("attentive_shares", "choices"): _theta,
}


def _interval(node: JsonNode) -> Interval:
    return Interval(node["mean"].number(), _number_or_nan(node["low"]), _number_or_nan(node["high"]))


def _optional_interval(node: JsonNode) -> Interval | None:
    return None if node.value is None else _interval(node)


def _number_or_nan(node: JsonNode) -> float:
    return math.nan if node.value is None else node.number()


def _numbers(node: JsonNode) -> list[float]:
    """Between one and _MAX_STAGES numbers."""
    nodes = node.elements()
    if not 1 <= len(nodes) <= _MAX_STAGES:
        node.refuse("a number for each stage")
    return [item.number() for item in nodes]


def _read_json(path: Path) -> JsonNode:
    content = read_regular(path, _LIMIT, ", which no result is")
    try:
        return JsonNode.parse(content, str(path))
    except (ValueError, RecursionError) as error:
        raise NextscaleError(f"{path}: no JSON: {error}") from None
