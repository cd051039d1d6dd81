"""One HTML page of bundles and of what was measured of them: tables, plots and pictures side by side."""

from __future__ import annotations

import io
import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import PurePath
from typing import Any, TypeVar

from nextscale.calib_data.match_probabilities import total_variation
from nextscale.evaluate.teacher_forced import KL_IN_WORDS
from nextscale.measure.bench import Measurement
from nextscale.measure.provenance import versions
from nextscale.measure.statistics import Interval
from nextscale.report._page import (
    Html,
    details,
    dot,
    element,
    facts,
    figure,
    heading,
    join,
    json_line,
    page,
    paragraph,
    picture,
    table,
    text,
)
from nextscale.report._rows import Inputs, Row, collect_rows, row_at
from nextscale.report._sheets import Sheet
from nextscale.report.result_files import (
    BenchResult,
    CalibrationResult,
    EvaluateResult,
    ImageFigures,
    MetricsResult,
    ThetaResult,
)
from nextscale.runtime._machine import Machine, describe_machine
from nextscale.runtime._manifest import ModelInfo

_NONE = Html("&ndash;")
_SVG = "image/svg+xml"
T = TypeVar("T")


def report_page(inputs: Inputs, sheets: Sequence[Sheet], title: str) -> str:
    """The report as one HTML document that needs no other file.

    Args:
        inputs: what to report.
        sheets: pictures of the bundles.
        title: the heading.
    """
    rows = collect_rows(inputs)
    return page(
        title,
        [
            element("h1", text(title)),
            *_lead(rows),
            facts(_facts(inputs, sheets)),
            *_summary(inputs, rows),
            *_plots(inputs, rows),
            *(part for sheet in sheets for part in _sheet(sheet, rows)),
            *_speed(inputs, rows),
            *(part for result in inputs.of(ThetaResult) for part in _theta(result)),
            *(part for result in inputs.of(CalibrationResult) for part in _calibration(result)),
            *_recipes(rows),
        ],
    )


# The top: what was compared, and the table


def _lead(rows: Sequence[Row]) -> Iterator[Html]:
    """Which bundle is nearest to full precision and which is fastest, where their intervals leave no doubt."""
    quantized = [row for row in rows if not row.original]
    claims = []
    agreeing = sorted((row.kl.mean, row.kl.stderr, row.label) for row in quantized if row.kl and row.kl.evaluated)
    if len(agreeing) > 1 and agreeing[0][0] + 2 * agreeing[0][1] < agreeing[1][0] - 2 * agreeing[1][1]:
        claims.append(f"{agreeing[0][2]} is nearest to full precision, with {agreeing[0][0]:.3g} nats per token")
    timed = [(row.speed.images_per_second, row.label) for row in quantized if row.speed]
    timed.sort(key=lambda item: -item[0].mean)
    if len(timed) > 1 and timed[0][0].low > timed[1][0].high:
        claims.append(f"{timed[0][1]} is fastest, with {timed[0][0].mean:.3g} images/s")
    if claims:
        yield paragraph(f"Of {len(quantized)} quantized bundles, {' and '.join(claims)}.", "lead")


def _facts(inputs: Inputs, sheets: Sequence[Sheet]) -> dict[str, list[str]]:
    """Models, machines, versions and settings."""
    machines: dict[str, list[str]] = {}
    installed: list[Mapping[str, Any]] = []
    found: dict[str, list[str]] = {"Model": [_model(bundle.model) for bundle in inputs.bundles]}
    for evaluated in inputs.of(EvaluateResult):
        counts = " or ".join(map(str, sorted({agreement.images for agreement in evaluated.agreements.values()})))
        settings = f"{counts} teacher-forced images, cfg_scale {evaluated.cfg_scale:g}, seed {evaluated.seed}"
        found.setdefault("Agreement", []).append(settings)
    for timed in inputs.of(BenchResult):
        machines.setdefault(_machine(timed.report.machine), []).append("speed")
        installed.append(timed.report.versions)
        found.setdefault("Speed", []).append(_settings(timed.report.settings))
    if sheets:
        machines.setdefault(_machine(describe_machine()), []).append("pictures")
        installed.append(versions())
        settings = f"seed {sheets[0].settings.seed}, cfg_scale {sheets[0].cfg_scale:g}"
        found["Pictures"] = [f"{sheets[0].settings.images} of each bundle, {settings}"]
    for measured in inputs.of(MetricsResult):
        cpu = json_line(measured.settings.get("cpu", "unknown"))
        machine = next((name for name in machines if name.startswith(f"{cpu},")), cpu)
        machines.setdefault(machine, []).append("image metrics")
        if isinstance(known := measured.settings.get("versions"), Mapping):
            installed.append({key: json_line(value) for key, value in known.items()})
        found.setdefault("Image metrics", []).append(_settings(measured.settings, "cpu", "versions"))
    for theta in inputs.of(ThetaResult):
        settings = f"{theta.images} images of {PurePath(theta.bundle).name}, operations at {theta.bits} bits"
        found.setdefault("Attentive tokens", []).append(settings)
    for maps in inputs.of(CalibrationResult):
        settings = f"{maps.images} token maps of {maps.bundle}, matching {maps.matching}"
        found.setdefault("Calibration", []).append(settings)
    lines = [f"{name} ({', '.join(dict.fromkeys(uses))})" for name, uses in machines.items()]
    whole = [one for one in installed if not any(one.items() < other.items() for other in installed)]
    merged = {"Model": found.pop("Model"), "Machine": lines, "Versions": [_settings(one) for one in whole], **found}
    return {name: list(dict.fromkeys(shown)) for name, shown in merged.items() if shown}


def _model(model: ModelInfo) -> str:
    height, width = model.image_size
    subjects = f"{model.num_classes} classes" if model.num_classes else "texts"
    codes = "tokens of bits" if _is_of_bits(model) else f"{model.vocab_size} codes"
    return (
        f"{model.depth} blocks of width {model.embed_dim}, {height} x {width} pixels of "
        f"{subjects}, {model.num_stages} stages of {model.stages_in_words} "
        f"({model.num_tokens} tokens), {codes}"
    )


def _is_of_bits(model: ModelInfo) -> bool:
    return model.vocab_size == 2


def _machine(machine: Machine) -> str:
    return f"{machine.cpu}, {machine.logical_cpus} logical CPUs, {' '.join(machine.isa) or 'no known ISA flags'}"


def _settings(settings: Mapping[str, Any], *without: str) -> str:
    """Names and values on one line; threads 0 are all."""
    shown = {key: value for key, value in settings.items() if key not in without}
    if shown.get("threads") == 0:
        shown["threads"] = "all"
    return ", ".join(f"{json_line(key)} {_value(value)}" for key, value in shown.items())


def _value(value: Any) -> str:
    """A JSON value for people."""
    if isinstance(value, bool):
        return "on" if value else "off"
    return " ".join(map(json_line, value)) if isinstance(value, list) else json_line(value)


def _summary(inputs: Inputs, rows: Sequence[Row]) -> Iterator[Html]:
    if not rows:
        return
    names = next(((result.fid_name, result.score_name) for result in inputs.of(MetricsResult)), ("FID-E", "IS-E"))
    columns = {
        "recipe": [_optional(row.recipe_name) for row in rows],
        "bits\nw/a": [_optional(_bits(row.recipe)) for row in rows],
        "MB": [_optional(row.size, lambda size: f"{size / 1e6:.1f}") for row in rows],
        "KL,\nnats per token": [_kl_cell(row) for row in rows],
        "top-1": [_optional(row.kl, lambda found: f"{found.top1:.1%}") for row in rows],
        "images/s": [_interval_cell(row.speed.images_per_second if row.speed else None) for row in rows],
        "speed\nratio": [_optional(row.speed, lambda speed: f"{speed.speedup.mean:.2f}") for row in rows],
        names[0]: [_interval_cell(row.pictures.fid if row.pictures else None) for row in rows],
        names[1]: [_score_cell(row.pictures) for row in rows],
        f"{names[0]} to\nfull prec.": [_distance_cell(row) for row in rows],
    }
    shown = {name: cells for name, cells in columns.items() if any(cell != _NONE for cell in cells)}
    yield heading(2, "Summary")
    yield table(
        ["bundle", *shown], [[_name(row), *cells] for row, *cells in zip(rows, *shown.values(), strict=True)], 2
    )
    yield paragraph(" ".join(_legend(inputs, rows, names)), "note")


def _legend(inputs: Inputs, rows: Sequence[Row], names: tuple[str, str]) -> Iterator[str]:
    """What the columns that are there mean."""
    if any(row.kl for row in rows):
        yield (
            "KL: how far the probabilities of the tokens are from full precision's, on the same token maps, ± its "
            "standard error; top-1: share of the tokens whose likeliest entry is full precision's."
        )
        if any(row.bundle and _is_of_bits(row.bundle.model) for row in rows):
            yield "Where tokens are bits, KL is that of all bits of a token, and top-1 the share of equal bits."
        if not all(row.bundle and _is_of_bits(row.bundle.model) for row in rows):
            yield KL_IN_WORDS
    if any(row.kl and not row.kl.evaluated for row in rows):
        yield "Figures marked “at build” are of the few images that the build compares."
    if timed := next(iter(inputs.of(BenchResult)), None):
        first = timed.report.measurements[0] if timed.report.measurements else None
        if first:
            yield (
                f"Speed: {_form(first)}, ± half the 95% interval; the ratio is to the first bundle of its run, "
                f"{PurePath(first.bundle).name}, from paired repetitions."
            )
    if any(row.pictures for row in rows):
        yield (
            f"{names[0]} falls with better pictures, {names[1]} rises; ± half the 95% interval over seeds, or for one "
            f"seed {names[1]}'s standard error."
        )
    if any(row.noise_floor for row in rows):
        yield "In parentheses: full precision against itself from other seeds, the noise floor."


def _kl_cell(row: Row) -> Html:
    if row.kl is None:
        return _NONE
    if not row.kl.evaluated:
        return join(text(f"{row.kl.mean:.4f}"), element("small", text(" at build")))
    return _with_small(f"{row.kl.mean:.4f}", "" if math.isnan(row.kl.stderr) else f" ± {row.kl.stderr:.4f}")


def _score_cell(figures: ImageFigures | None) -> Html:
    if figures is None or figures.score is None:
        return _NONE
    score = figures.score
    if math.isnan(score.high) and not math.isnan(figures.score_stderr):
        score = replace(score, low=score.mean - figures.score_stderr, high=score.mean + figures.score_stderr)
    return _interval_cell(score)


def _distance_cell(row: Row) -> Html:
    if row.noise_floor and row.noise_floor.distance:
        return join(text("("), _interval_cell(row.noise_floor.distance), text(")"))
    return _interval_cell(row.pictures.distance if row.pictures else None)


def _bits(recipe: Mapping[str, Any]) -> str | None:
    """Bits of weights and activations, as far as the recipe says."""
    if recipe.get("name") == "fp32":
        return "float32"
    parts = [recipe.get(part) for part in ("weights", "activations")]
    bits = [part.get("bits") for part in parts if isinstance(part, Mapping)]
    return "/".join(map(json_line, bits)) if len(bits) == 2 else None


# Plots


def _plots(inputs: Inputs, rows: Sequence[Row]) -> Iterator[Html]:
    figures = [
        *_speed_figure(rows),
        *(part for result in inputs.of(EvaluateResult) for part in _stage_figures(result, rows)),
        *(part for result in inputs.of(BenchResult) for part in _time_figures(result, rows)),
    ]
    if figures:
        yield heading(2, "Agreement and speed")
        yield element("div", *figures, class_="plots")


def _speed_figure(rows: Sequence[Row]) -> Iterator[Html]:
    from nextscale.report._plots import Point, speed_plot

    points = [
        Point(row.label, row.color, row.speed.images_per_second, row.kl.mean, row.kl.stderr, row.kl.evaluated)
        for row in rows
        if row.speed and row.kl and row.kl.mean > 0
    ]
    speeds = [(row.original, row.speed) for row in rows if row.speed]
    if points:
        original = next((speed.images_per_second.mean for original, speed in speeds if original), None)
        svg = speed_plot(points, original, f"images/s, {_form(speeds[0][1])}")
        caption = "KL against speed: better is lower and to the right; the dotted line joins those that none beats."
        if not all(point.firm for point in points):
            caption += " Hollow: KL of the few images compared at build."
        yield figure(picture(svg, _SVG, "KL against speed"), caption)


def _stage_figures(result: EvaluateResult, rows: Sequence[Row]) -> Iterator[Html]:
    from nextscale.report._plots import Line, stages_plot

    found = [(row_at(rows, path), agreement) for path, agreement in result.agreements.items()]
    found = [(row, agreement) for row, agreement in found if not row.original]
    if found:
        settings = f"cfg_scale {result.cfg_scale:g}, seed {result.seed}"
        kl = [Line(row.label, row.color, agreement.stage_kl.tolist()) for row, agreement in found]
        top1 = [Line(row.label, row.color, agreement.stage_top1.tolist()) for row, agreement in found]
        svg = stages_plot(kl, "KL, nats per token")
        yield figure(picture(svg, _SVG, "KL by stage"), f"KL by stage, {settings}.")
        svg = stages_plot(top1, "top-1, %", percent=True)
        yield figure(picture(svg, _SVG, "Top-1 agreement by stage"), f"Top-1 agreement by stage, {settings}.")


def _time_figures(result: BenchResult, rows: Sequence[Row]) -> Iterator[Html]:
    from nextscale.report._plots import Line, stages_plot

    streaming = [measurement for measurement in result.report.measurements if measurement.stage_seconds]
    for batch in sorted({measurement.batch for measurement in streaming}):
        lines = [
            Line(row.label, row.color, [1e3 * seconds.mean for seconds in measurement.stage_seconds])
            for measurement in streaming
            for row in [row_at(rows, measurement.bundle)]
            if measurement.batch == batch
        ]
        svg = stages_plot(lines, "ms per image")
        yield figure(picture(svg, _SVG, "Time by stage"), f"Time by stage, streaming, batch {batch}, before decoding.")


# Pictures


def _sheet(sheet: Sheet, rows: Sequence[Row]) -> Iterator[Html]:
    labels = {id(row.bundle): row for row in rows}
    if sheet.forced_stages:
        yield heading(2, "Pictures after two common stages")
        yield paragraph(
            f"As above, but the first {sheet.forced_stages} stages take full precision's tokens, so that the layout is "
            "the same and what differs is the detail."
        )
    else:
        yield heading(2, "Pictures")
        yield paragraph(
            f"Each column is one {'class' if sheet.subjects.texts is None else 'prompt'} and seed. A token that "
            "changes changes all after it, so even a faithful bundle may draw another picture of the same quality."
        )
    strips = [sheet.strips(row) for row in sheet.rows]
    for number, names in enumerate(sheet.captions()):
        content = []
        for row, encoded in zip(sheet.rows, strips, strict=True):
            shown = labels[id(row.bundle)]
            same = f", {row.same:.0%} of its tokens as in full precision" if row.same is not None else ""
            content.append(element("p", _name(shown), element("span", text(same), class_="note")))
            content.append(picture(*encoded[number], f"{shown.label}: {', '.join(names)}"))
        caption = " · ".join(names)
        yield element(
            "figure",
            *content,
            element("figcaption", text(caption)),
            class_="sheet",
            style=f"max-width:{6.5 * sheet.columns}rem",
        )


# Details


def _speed(inputs: Inputs, rows: Sequence[Row]) -> Iterator[Html]:
    results = [result for result in inputs.of(BenchResult) if result.report.measurements]
    if results:
        yield heading(2, "Speed and memory")
    header = ["bundle", "form", "batch", "s per image", "images/s", "ratio", "95% interval", "load, s", "peak MB", "MB"]
    for result in results:
        cells = []
        for item in result.report.measurements:
            footprint = item.footprint
            cells.append(
                [
                    _name(row_at(rows, item.bundle)),
                    text(item.form),
                    text(item.batch),
                    _interval_cell(item.image_seconds, 3),
                    _interval_cell(item.images_per_second),
                    text(f"{item.speedup.mean:.2f}"),
                    text(f"{item.speedup.low:.2f} to {item.speedup.high:.2f}") if item.speedup.low > 0 else _NONE,
                    _optional(footprint, lambda found: f"{found.load_seconds:.2f}"),
                    _optional(footprint, lambda found: f"{found.peak_bytes / 1e6:.0f}"),
                    text(f"{item.size_bytes / 1e6:.1f}"),
                ]
            )
        yield table(header, cells, 2)
        yield paragraph(f"{_machine(result.report.machine)}; {_settings(result.report.settings)}.", "note")


def _theta(result: ThetaResult) -> Iterator[Html]:
    from nextscale.report._plots import Line, stages_plot

    yield heading(2, f"Attentive tokens of {PurePath(result.bundle).name}")
    yield paragraph(
        "Tokens whose mean attention is above theta are attentive: shift-and-sum rounds their values more finely, at "
        f"the cost of extra operations. {result.images} images, {result.bits} bits."
    )
    if result.shares:
        shades = _shades(len(result.shares))
        lines = [
            Line(f"{theta:g}", color, share)
            for (theta, share), color in zip(result.shares.items(), shades, strict=True)
        ]
        svg = stages_plot(lines, "tokens above theta, %", percent=True, legend_title="theta")
        shown = figure(picture(svg, _SVG, "Attentive tokens by stage"), "Share of each stage's tokens.")
    else:
        shown = Html("")
    chosen = [
        [
            text(row.form),
            element("b", text(f"{row.theta:g}")) if row.budget is not None else text(f"{row.theta:g}"),
            text(row.max_order),
            text(f"{row.share:.2%}"),
            _optional(row.budget, lambda budget: f"chosen for {budget:.2%}"),
        ]
        for row in result.rows
    ]
    costs = table(["form", "theta", "largest\norder", "extra\noperations", "budget"], chosen)
    yield element("div", shown, costs, class_="plots")


def _calibration(result: CalibrationResult) -> Iterator[Html]:
    from nextscale.calib_data.plot_matching import matching_plot

    report, matched = result.report, result.matching != "none"
    yield heading(2, f"Calibration: {result.folder.name}")
    yield paragraph(
        f"{result.images} token maps of {result.bundle}, matching {result.matching}: how often each entry of the "
        "codebook occurs, against how often its probability asks for."
        + (f" {report.moved:,} of {report.wanted:,} wanted tokens were reassigned." if report.wanted else "")
    )
    columns = {"before": report.before, "after": report.after} if matched else {"sampled": report.before}
    stages = [
        [
            text(stage + 1),
            text(f"{report.before[stage].sum():,}"),
            *(text(f"{total_variation(report.target[stage], counts[stage]):.3f}") for counts in columns.values()),
        ]
        for stage in range(len(report.target))
    ]
    pooled = [text(f"{total_variation(report.target.sum(0), counts.sum(0)):.3f}") for counts in columns.values()]
    stages.append([element("b", text("all")), text(f"{report.before.sum():,}"), *pooled])
    file = io.BytesIO()
    matching_plot(report, matched)(file)
    yield figure(picture(file.getvalue(), "image/png", "Target and actual frequencies"), "Target and actual frequency.")
    yield details(
        text("Total variation by stage"), table(["stage", "tokens", *(f"TV {name}" for name in columns)], stages)
    )


def _recipes(rows: Sequence[Row]) -> Iterator[Html]:
    bundles = [row for row in rows if row.bundle]
    if not bundles:
        return
    flat = {row.label: dict(_flattened(row.recipe)) for row in bundles if not row.original}
    keys = list(dict.fromkeys(key for recipe in flat.values() for key in recipe))
    hidden = ("name", "description", "agreement", "kernels")
    differing = [
        key
        for key in keys
        if key.partition(".")[0] not in hidden and len({recipe.get(key) for recipe in flat.values()}) > 1
    ]
    yield heading(2, "Recipes")
    if differing:
        yield heading(3, "Where they differ")
        quantized = [row for row in bundles if not row.original]
        cells = [[_name(row), *(_optional(flat[row.label].get(key)) for key in differing)] for row in quantized]
        yield table(["bundle", *(key.replace(".", ".\n") for key in differing)], cells, 1 + len(differing))
    for row in bundles:
        yield _bundle_details(row)


def _bundle_details(row: Row) -> Html:
    assert row.bundle is not None
    manifest = row.bundle.manifest
    items = {
        "folder": str(row.bundle.path),
        "name": manifest.name,
        "size": f"{manifest.size / 1e6:.1f} MB",
        **{key: value for key, value in _flattened(row.recipe) if key.partition(".")[0] != "kernels"},
        **_kernels(row.recipe.get("kernels")),
        **{f"version: {json_line(key)}": json_line(value) for key, value in manifest.versions.items()},
        "licence": manifest.licence,
    }
    description = row.recipe.get("description")
    summary = join(_name(row), element("small", text(description)) if isinstance(description, str) else Html(""))
    return details(summary, table([], [[text(key), text(value)] for key, value in items.items()], 2))


def _flattened(values: Mapping[str, Any], prefix: str = "", depth: int = 0) -> Iterator[tuple[str, str]]:
    """Nested tables as keys with dots; values on one line."""
    for key, value in values.items():
        name = f"{prefix}{json_line(key)}"
        if isinstance(value, Mapping) and value and depth < 4:
            yield from _flattened(value, f"{name}.", depth + 1)
        else:
            yield name, json_line(value)


def _kernels(kernels: Any) -> dict[str, str]:
    """How many layers of each graph got each kernel."""
    if not isinstance(kernels, Mapping):
        return {}
    return {
        f"kernels: {json_line(graph)}": ", ".join(
            f"{count} {kernel}" for kernel, count in Counter(map(json_line, found.values())).items()
        )
        for graph, found in kernels.items()
        if isinstance(found, Mapping)
    }


# Cells


def _name(row: Row) -> Html:
    return join(dot(row.color), element("b", text(row.label), class_="name"))


def _optional(value: T | None, shown: Callable[[T], object] = str) -> Html:
    """A dash for None."""
    return _NONE if value is None else text(shown(value))


def _interval_cell(interval: Interval | None, decimals: int = 2) -> Html:
    """The mean, and half the interval if it is known."""
    if interval is None:
        return _NONE
    half = (interval.high - interval.low) / 2
    addition = f" ± {half:.{decimals}f}" if math.isfinite(half) else ""
    return _with_small(f"{interval.mean:.{decimals}f}", addition)


def _with_small(value: str, addition: str) -> Html:
    return join(text(value), element("small", text(addition)))


def _form(measurement: Measurement) -> str:
    name = "generate.onnx" if measurement.form == "generate" else measurement.form
    return f"{name}, batch {measurement.batch}"


def _shades(count: int) -> list[str]:
    """From dark to light for growing theta."""
    from matplotlib import colormaps
    from matplotlib.colors import to_hex

    return [to_hex(colormaps["viridis"](0.85 * i / max(count - 1, 1))) for i in range(count)]
