"""What `nextscale quantize` found, as one HTML page: what was gained and lost, and what became of each operator.

It is made of what the report's JSON has, so that a report that was kept can be shown later, too.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Sequence

from nextscale.report._error_plot import STYLE as PLOT_STYLE
from nextscale.report._error_plot import Mark, error_plot, kind_color
from nextscale.report._operator_table import (
    FALLEN,
    INTEGER,
    LEFT,
    Values,
    decibels,
    fate,
    name_cell,
    operator_table,
    percent,
    relative,
    row_id,
)
from nextscale.report._operator_table import STYLE as TABLE_STYLE
from nextscale.report._page import (
    Html,
    dot,
    element,
    facts,
    figure,
    heading,
    join,
    page,
    paragraph,
    table,
    text,
)

_COSTLIEST, _MOST_REASONS = 10, 8

_STYLE = """
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(13rem, 1fr)); gap: .8rem; margin: 1.4rem 0; }
.tiles div { background: var(--tint); border-radius: .5rem; padding: .8rem 1rem; font-size: .86rem; line-height: 1.45;
  color: var(--soft); overflow-wrap: anywhere; }
.tiles b { display: block; font-size: 1.7rem; line-height: 1.25; color: var(--ink); letter-spacing: -.015em; }
td a { color: var(--accent); }
.legend span.kind { display: inline-block; margin-right: 1.2rem; }
pre { background: var(--tint); border-radius: .5rem; padding: .7rem 1rem; font-size: .84rem; white-space: pre-wrap;
  overflow-wrap: anywhere; }
@media (max-width: 40rem) {
  .tiles { grid-template-columns: 1fr 1fr; }
  .tiles b { font-size: 1.35rem; }
}
@media print {
  .tiles { grid-template-columns: repeat(4, 1fr); }
  .tiles div, pre { print-color-adjust: exact; }
  .tiles b { font-size: 1.2rem; }
}
"""


def quantized_page(report: Values, model: str) -> str:
    """One HTML document that needs no other file.

    Args:
        report: as `to_json` of `nextscale.foreign.Report` gives it.
        model: what the heading names.
    """
    lines = report["lines"]
    kinds = [*dict.fromkeys(line["kind"] for line in lines)]
    title = f"{model}, quantized"
    return page(
        title,
        [
            element("style", Html(_STYLE + PLOT_STYLE + TABLE_STYLE)),
            element("h1", text(title)),
            element("div", *_tiles(report), class_="tiles"),
            facts(_circumstances(report)),
            *_outputs(report),
            *_suggestion(report),
            *_kinds(lines, kinds),
            *_errors(lines, kinds),
            *_operators(lines, kinds),
            heading(2, "Measured on"),
            facts(_machine(report)),
        ],
    )


# The top: what was gained and lost


def _tiles(report: Values) -> Iterator[Html]:
    before, after = report["float_bytes"], report["integer_bytes"]
    yield _tile(f"{_megabytes(after)} MB", f"of {_megabytes(before)} MB in float, {after / max(before, 1):.0%}")
    speed = report["speed"]
    if speed is None:
        yield _tile("no times", "of both models were taken")
    else:
        ratio, took = speed["ratio"], [_milliseconds(speed[f"{kind}_seconds"]) for kind in ("float", "integer")]
        yield _tile(f"{ratio['mean']:.2f} times", f"as fast as float{_ends(ratio)}: {took[0]} to {took[1]} ms")
    fates = Counter(map(fate, report["lines"]))
    fallen = f"; {fates[FALLEN]} more multiply in float all the same" if fates[FALLEN] else ""
    yield _tile(f"{fates[INTEGER]} of {len(report['lines'])}", f"operators that multiply are integer{fallen}")
    errors = {name: lost["error"] for name, lost in report["outputs"].items()}
    if errors:
        worst = max(errors, key=lambda name: relative(errors[name]))
        several = f"the largest of {len(errors)} outputs'" if len(errors) > 1 else "the output's"
        yield _tile(percent(errors[worst]), f"is {several} relative error, that of {worst}")
    else:
        yield _tile("no output", "could be compared with float")


def _tile(number: str, meaning: str) -> Html:
    return element("div", element("b", text(number)), text(meaning))


def _megabytes(size: int) -> str:
    return f"{size / 1e6:.1f}" if size >= 1e6 else f"{size / 1e6:.3f}"


def _circumstances(report: Values) -> dict[str, list[str]]:
    normalized = [f"changed outputs by {_figure(report['normalized'])} at most"] if report["outputs"] else []
    found = {
        "Recipe": [report["recipe"]],
        "Calibrated on": [report["samples"]],
        "Normalizing": normalized,
        "Notes": report["notes"],
    }
    return {name: lines for name, lines in found.items() if lines}


def _machine(report: Values) -> dict[str, list[str]]:
    speed = report["speed"]
    timed = {} if speed is None else {"Speed": [f"{speed['rounds']} rounds of both models in turns, 95% interval"]}
    return {
        "Machine": [report["machine"]],
        "Threads": [str(report["threads"] or "all")],
        **timed,
        "Versions": [", ".join(f"{name} {version}" for name, version in report["versions"].items())],
    }


def _outputs(report: Values) -> Iterator[Html]:
    yield heading(2, "What the outputs lose")
    if report["outputs"]:
        header = ["output", "mean\ndifference", "largest\ndifference", "relative\nerror", "SQNR,\ndB"]
        rows = [
            [name_cell(name), *map(text, (*map(_figure, (lost["mean"], lost["largest"])), *_words(lost["error"])))]
            for name, lost in report["outputs"].items()
        ]
        yield _wrapped(table(header, rows))
        yield paragraph(
            "To the float model's, over all samples. Relative: the root mean square of the difference over that of the "
            "float values; SQNR is the same as signal over noise.",
            "note",
        )
    if report["not_compared"]:
        names = ", ".join(report["not_compared"])
        yield paragraph(f"Not compared, since they have other shapes or are no tensors of numbers: {names}.")


def _suggestion(report: Values) -> Iterator[Html]:
    """What is gained and lost by leaving a few operators in float."""
    suggestion = report["suggestion"]
    if suggestion is None:
        return
    names, ratio = suggestion["names"], suggestion["ratio"]
    fast = "" if ratio is None else f"; the model is then {ratio['mean']:.2f}{_ends(ratio)} times as fast as float"
    which = f"{len(names)} operators cause" if len(names) > 1 else "One operator causes"
    settings = ["[layers]", *(f'{json.dumps(name, ensure_ascii=False)} = "float"' for name in names)]
    yield heading(2, "What to leave in float")
    yield paragraph(
        f"{which} much of what the outputs lose. These lines in a recipe file leave what they name in float{fast}."
    )
    yield element("pre", text("\n".join(settings)))
    rows = [
        [name_cell(name), *map(text, (*_words(report["outputs"][name]["error"]), *_words(lost["error"])))]
        for name, lost in suggestion["outputs"].items()
        if name in report["outputs"]
    ]
    if rows:
        header = ["output", "relative\nerror now", "SQNR now,\ndB", "relative\nerror then", "SQNR then,\ndB"]
        yield _wrapped(table(header, rows))


# What became of the operators


def _kinds(lines: Sequence[Values], kinds: Sequence[str]) -> Iterator[Html]:
    yield heading(2, "What became of the operators")
    if not lines:
        yield paragraph("There are none that multiply.")
        return
    rows, reasons = [], dict[str, list[str]]()
    for place, kind in enumerate(kinds):
        of_kind = [line for line in lines if line["kind"] == kind]
        fates = Counter(map(fate, of_kind))
        counts = (len(of_kind), fates[INTEGER], fates[FALLEN], fates[LEFT])
        rows.append([join(dot(kind_color(place)), text(kind)), *map(text, counts)])
        if fates[LEFT]:
            reasons[kind] = _reasons([line["refused"] for line in of_kind if fate(line) == LEFT])
    yield table(["kind", "operators", "integer", "in float\nall the same", "left\nin float"], rows)
    if reasons:
        yield heading(3, "Why some are left in float")
        yield facts(reasons)


def _reasons(refused: Sequence[str]) -> list[str]:
    """The commonest first, each with how many operators it has."""
    counted = Counter(refused).most_common()
    rest = sum(count for _, count in counted[_MOST_REASONS:])
    shown = [f"{reason} ({count})" for reason, count in counted[:_MOST_REASONS]]
    return [*shown, *([f"other reasons ({rest})"] if rest else [])]


def _errors(lines: Sequence[Values], kinds: Sequence[str]) -> Iterator[Html]:
    """Each operator's own error, and what that does to the outputs."""
    if all(line["error"] is None for line in lines):
        return
    yield heading(2, "Errors of single operators")
    yield _legend(lines, kinds)
    caption = (
        "How much the output of each operator changes on a few samples if it alone is quantized: the root mean "
        "square of the difference over that of the float values."
    )
    yield _plot(lines, kinds, "error", caption)
    if any(line["effect"] for line in lines):
        yield _plot(lines, kinds, "effect", "How much the model's outputs change then, all together.")
        yield from _costliest(lines)


def _plot(lines: Sequence[Values], kinds: Sequence[str], key: str, caption: str) -> Html:
    marks = []
    for line in lines:
        error, became = line[key], fate(line)
        label = line["name"] if error is None else f"{line['name']}: {percent(error)}"
        number = None if error is None else relative(error)
        marks.append(Mark(label, kinds.index(line["kind"]), number, became == LEFT, became == INTEGER))
    return figure(element("div", error_plot(marks, caption), class_="scroll"), caption)


def _costliest(lines: Sequence[Values]) -> Iterator[Html]:
    effects = [(relative(line["effect"]), place) for place, line in enumerate(lines) if line["effect"] is not None]
    costliest = [place for effect, place in sorted(effects, key=lambda item: -item[0])[:_COSTLIEST] if effect > 0]
    if costliest:
        yield heading(3, "Those that cost the outputs most")
        rows = [
            [
                element("a", name_cell(line["name"]), href=f"#{row_id(place)}"),
                text(line["kind"]),
                text(percent(line["error"])),
                text(percent(line["effect"])),
            ]
            for place in costliest
            for line in [lines[place]]
        ]
        yield _wrapped(table(["operator", "kind", "own\nerror", "outputs'\nerror"], rows, 2))


def _legend(lines: Sequence[Values], kinds: Sequence[str]) -> Html:
    fates = {fate(line) for line in lines}
    shown = [join(dot(kind_color(place)), text(kind)) for place, kind in enumerate(kinds)]
    shown += [Html("&#9675; multiplies in float all the same")] if FALLEN in fates else []
    shown += [Html("&times; left in float")] if LEFT in fates else []
    return element("p", *(element("span", item, class_="kind") for item in shown), class_="legend note")


def _operators(lines: Sequence[Values], kinds: Sequence[str]) -> Iterator[Html]:
    if lines:
        yield heading(2, "All operators that multiply")
        yield operator_table(lines, kinds)


# Figures


def _wrapped(content: Html) -> Html:
    """A table whose texts may take several lines."""
    return element("div", content, class_="wrapped")


def _milliseconds(seconds: float) -> str:
    return f"{1e3 * seconds:.0f}" if seconds >= 1 else f"{1e3 * seconds:.3g}"


def _ends(interval: Values) -> str:
    return f" [{interval['low']:.2f}, {interval['high']:.2f}]" if None not in interval.values() else ""


def _figure(value: float | None) -> str:
    """Infinite where JSON has no number."""
    return "∞" if value is None else f"{value:.3g}"


def _words(error: Values) -> tuple[str, str]:
    return percent(error), decibels(error)
