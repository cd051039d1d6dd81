"""What a report is made of: bundles and results, brought together by the bundle's path."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePath
from typing import Any, TypeVar

from nextscale.evaluate.teacher_forced import Agreement
from nextscale.measure.bench import Measurement
from nextscale.report._page import json_line
from nextscale.report.result_files import (
    BenchResult,
    EvaluateResult,
    ImageFigures,
    MetricsResult,
    Result,
    is_calibration,
    read_calibration,
    read_result,
)
from nextscale.runtime._bundle import Bundle
from nextscale.runtime._errors import NextscaleError
from nextscale.runtime._manifest import ModelInfo

_COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#7b4fa3", "#8c6d31")
_ORIGINAL_COLOR = "#1d2430"
_LABEL_LENGTH = 48
T = TypeVar("T")


@dataclass(frozen=True)
class Inputs:
    """What a report is made of."""

    bundles: tuple[Bundle, ...] = ()
    results: tuple[Result, ...] = ()

    def of(self, kind: type[T]) -> list[T]:
        """The results of one kind, in the order given."""
        return [result for result in self.results if isinstance(result, kind)]


@dataclass(frozen=True)
class KL:
    """How near a bundle is to full precision.

    Attributes:
        mean, stderr: nats per token; the standard error may be NaN.
        top1: share of the tokens whose likeliest entry is the same.
        evaluated: by `nextscale evaluate`; else on the few images of the build.
    """

    mean: float
    stderr: float
    top1: float
    evaluated: bool


@dataclass
class Row:
    """A bundle, or what files say of one whose folder was not given.

    Attributes:
        path: as given, or as a file names it.
        label: how the report names it.
        color: in plots.
        agreement, speed, pictures: what was measured.
        noise_floor: pictures of full precision from other seeds.
    """

    path: str
    bundle: Bundle | None = None
    original: bool = False
    label: str = ""
    color: str = ""
    agreement: Agreement | None = None
    speed: Measurement | None = None
    pictures: ImageFigures | None = None
    noise_floor: ImageFigures | None = None
    recipe: Mapping[str, Any] = field(default_factory=dict)

    @property
    def size(self) -> int | None:
        return self.bundle.manifest.size if self.bundle else self.speed.size_bytes if self.speed else None

    @property
    def recipe_name(self) -> str | None:
        return json_line(self.recipe["name"]) if "name" in self.recipe else self.speed.recipe if self.speed else None

    @property
    def kl(self) -> KL | None:
        """What `nextscale evaluate` measured, else what the build did."""
        if self.agreement is not None:
            return KL(self.agreement.kl, self.agreement.kl_stderr, self.agreement.top1, True)
        built = self.recipe.get("agreement")
        kl, top1 = (built.get("kl"), built.get("top1")) if isinstance(built, Mapping) else (None, None)
        if not isinstance(kl, float) or not isinstance(top1, float) or not math.isfinite(kl + top1):
            return None
        return KL(kl, math.nan, top1, False)


def read_inputs(paths: Iterable[Path]) -> Inputs:
    """Bundles, folders of calibrate, and JSON files of evaluate, metrics, bench and theta.

    Raises:
        NextscaleError: a path that is none of these, or is damaged.
    """
    bundles, results = [], list[Result]()
    for path in paths:
        if path.is_dir():
            if is_calibration(path):
                results.append(read_calibration(path))
            else:
                bundles.append(Bundle.open(path))
        elif path.exists():
            results.append(read_result(path))
        else:
            raise NextscaleError(
                f"{path}: no such file or folder; expected a bundle, a JSON result or calibration maps"
            )
    return Inputs(tuple(bundles), tuple(results))


def is_original(bundle: Bundle) -> bool:
    """Whether the bundle is in full precision."""
    return str(bundle.manifest.recipe["name"]) == "fp32"


def by_model(bundles: Sequence[Bundle]) -> list[tuple[list[Bundle], Bundle | None]]:
    """The bundles of each model, and the one in full precision if there is one."""
    groups: dict[ModelInfo, list[Bundle]] = {}
    for bundle in bundles:
        groups.setdefault(bundle.model, []).append(bundle)
    return [(group, next(filter(is_original, group), None)) for group in groups.values()]


def collect_rows(inputs: Inputs) -> list[Row]:
    """A row for each bundle, full precision first.

    Of each kind it has the first figures given, and only those measured as the first file of the kind was: at its
    cfg_scale, with its machine, form and batch, with its pictures' settings.
    """
    rows = [
        Row(str(bundle.path), bundle, is_original(bundle), recipe=bundle.manifest.recipe) for bundle in inputs.bundles
    ]

    def row_of(path: str) -> Row:
        if not any(same_path(row.path, path) for row in rows):
            rows.append(Row(path))
        return row_at(rows, path)

    for evaluated in inputs.of(EvaluateResult):
        row_of(evaluated.reference).original = True
        for path, agreement in evaluated.agreements.items():
            row = row_of(path)
            if evaluated.cfg_scale == inputs.of(EvaluateResult)[0].cfg_scale:
                row.agreement = row.agreement or agreement
    for measured in inputs.of(MetricsResult):
        like_the_first = measured.comparable_with(inputs.of(MetricsResult)[0])
        for figures in measured.rows:
            row = row_of(figures.bundle)
            row.original |= figures.role != "bundle"
            if like_the_first and figures.role == "noise floor":
                row.noise_floor = row.noise_floor or figures
            elif like_the_first:
                row.pictures = row.pictures or figures
    speeds = [(timed.report.machine, item) for timed in inputs.of(BenchResult) for item in timed.report.measurements]
    for machine, item in speeds:
        row = row_of(item.bundle)
        row.original |= item.recipe == "fp32"
        first_machine, first = speeds[0]
        if (machine.cpu, item.form, item.batch) == (first_machine.cpu, first.form, first.batch):
            row.speed = row.speed or item
    rows.sort(key=lambda row: not row.original)
    _name_rows(rows)
    return rows


def row_at(rows: Sequence[Row], path: str) -> Row:
    """The row of a path that `collect_rows` has seen."""
    return next(row for row in rows if same_path(row.path, path))


def same_path(one: str, other: str) -> bool:
    """Whether two commands may have meant one folder: relative names are ends of the other's path."""
    a, b = _parts(one), _parts(other)
    if os.path.isabs(one) and os.path.isabs(other):
        return a == b
    shorter = min(len(a), len(b))
    return a[-shorter:] == b[-shorter:]


def _parts(path: str) -> tuple[str, ...]:
    parts = tuple(part for part in PurePath(os.path.normpath(path)).parts if part not in ("..", "/"))
    return parts or tuple(PurePath(os.path.abspath(path)).parts)


def _name_rows(rows: Sequence[Row]) -> None:
    """The shortest ends of the paths that tell the rows apart, and a colour for each."""
    colors = iter(_COLORS * (1 + len(rows) // len(_COLORS)))
    for row in rows:
        parts = _parts(row.path)
        others = [_parts(other.path) for other in rows if other is not row]
        length = next((n for n in range(1, len(parts)) if all(o[-n:] != parts[-n:] for o in others)), len(parts))
        label = "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in "/".join(parts[-length:]))
        row.label = label if len(label) <= _LABEL_LENGTH else f"…{label[1 - _LABEL_LENGTH :]}"
        row.color = _ORIGINAL_COLOR if row.original else next(colors)
