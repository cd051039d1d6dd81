"""A table of every operator that multiplies, of which the page shows those of one kind and fate at a time.

The choice is made in CSS alone: the page runs no scripts.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from nextscale.report._page import Html, element, join, text

Values = Mapping[str, Any]

# Fates: the places of the choices that show them; 0 shows all.
INTEGER, FALLEN, LEFT = 1, 2, 3
_FATES = {INTEGER: "integer", FALLEN: "in float all the same", LEFT: "left in float"}
NONE = Html("&ndash;")

STYLE = """
.wrapped td:first-child, .operators td:nth-child(3) { white-space: normal; overflow-wrap: anywhere; min-width: 13rem; }
@media (min-width: 64rem) { .operators td:first-child { min-width: 26rem; } }
fieldset { border: 0; margin: 0 0 .2rem; padding: 0 0 0 5.5rem; font-size: .88rem; position: relative; }
legend { position: absolute; left: 0; color: var(--soft); padding: .2rem 0; }
fieldset label { display: inline-block; margin-right: 1.2rem; padding: .2rem 0; cursor: pointer; }
fieldset input { margin: 0 .3rem 0 0; accent-color: var(--accent); }
tr.left td { color: var(--soft); }
tr:target td, tr:target td:first-child { background: #fff3c9; }
mark { white-space: nowrap; background: #fdebd3; color: #8a3b00; border-radius: .25rem; padding: 0 .35rem; }
@supports not selector(:has(a)) { fieldset { display: none; } }
@media (max-width: 40rem) {
  .wrapped td:first-child { min-width: 9rem; }
  .operators table, .operators tbody { display: block; }
  .operators thead, .operators td.none { display: none; }
  .operators tr { display: block; padding: .45rem 0; border-bottom: 1px solid var(--line); }
  .operators td { display: inline; border: 0; padding: 0 .8rem 0 0; }
  .operators td:first-child { display: block; max-width: none; position: static; }
  .operators td[data-of]::before { content: attr(data-of) " "; color: var(--soft); }
}
@media print { fieldset { display: none; } mark { print-color-adjust: exact; } }
"""


def fate(line: Values) -> int:
    """What became of an operator: INTEGER; FALLEN, which was to become so and multiplies in float; or LEFT."""
    return LEFT if line["refused"] is not None else INTEGER if line["is_integer"] else FALLEN


def relative(error: Values) -> float:
    """An error's relative figure, for which JSON has no number where it is infinite."""
    return math.inf if error["relative"] is None else float(error["relative"])


def percent(error: Values) -> str:
    """The relative figure in words."""
    found = relative(error)
    return f"{100 * found:.3g}%" if found < math.inf else "∞"


def decibels(error: Values) -> str:
    """The signal over the noise in words; infinite where nothing is lost, or everything."""
    return f"{error['sqnr']:.1f}" if error["sqnr"] is not None else "∞" if relative(error) == 0 else "-∞"


def name_cell(name: str) -> Html:
    """A name of the user's model, which may break behind a slash."""
    return Html(text(name).replace("/", "/<wbr>"))


def row_id(place: int) -> str:
    """What a link to the row of an operator names."""
    return f"operator-{place}"


def operator_table(lines: Sequence[Values], kinds: Sequence[str]) -> Html:
    """Choices of kind and fate, and below them the table.

    Args:
        lines: of the report, in the graph's order.
        kinds: that there are.
    """
    of_kind, of_fate = Counter(line["kind"] for line in lines), Counter(map(fate, lines))
    kind_choices = {place: f"{kind} ({of_kind[kind]})" for place, kind in enumerate(kinds, 1)}
    fate_choices = {place: f"{words} ({of_fate[place]})" for place, words in _FATES.items() if of_fate[place]}
    header = ("operator", "kind", "multiplied by, or why not", "ranges", "own\nerror", "SQNR,\ndB", "outputs'\nerror")
    head = element("tr", *(element("th", text(name), class_="text" if i < 4 else "") for i, name in enumerate(header)))
    body = (_row(place, line, kinds.index(line["kind"]) + 1) for place, line in enumerate(lines))
    return element(
        "div",
        element("style", Html("\n".join([*_hidings("kind", kind_choices), *_hidings("fate", fate_choices)]))),
        _choices("kind", kind_choices),
        _choices("fate", fate_choices),
        element("div", element("table", element("thead", head), element("tbody", *body)), class_="scroll wrapped"),
        class_="operators",
    )


def _choices(name: str, choices: Mapping[int, str]) -> Html:
    buttons = [
        element(
            "label",
            Html(f'<input type="radio" name="{name}" id="{name}-{place}"{"" if place else " checked"}>'),
            text(words),
        )
        for place, words in {0: "all", **choices}.items()
    ]
    return element("fieldset", element("legend", text(name)), *buttons)


def _hidings(name: str, choices: Mapping[int, str]) -> Iterator[str]:
    """What each choice hides."""
    for place in choices:
        yield f".operators:has(#{name}-{place}:checked) tbody tr:not(.{name}-{place}) {{ display: none; }}"


def _row(place: int, line: Values, kind: int) -> Html:
    error, effect, left = line["error"], line["effect"], " left" if fate(line) == LEFT else ""
    cells = [
        element("td", name_cell(line["name"]), class_="text"),
        element("td", text(line["kind"]), class_="text"),
        element("td", _became(line), class_="text"),
        _cell(line["ranges"], "ranges by", "text"),
        _cell(error and percent(error), "error"),
        _cell(error and decibels(error), "SQNR"),
        _cell(effect and percent(effect), "of the outputs"),
    ]
    return element("tr", *cells, id=row_id(place), class_=f"kind-{kind} fate-{fate(line)}{left}")


def _became(line: Values) -> Html:
    if line["refused"] is not None:
        return text(line["refused"])
    kernels = text(" + ".join(line["kernels"]) or "no kernel found")
    return kernels if line["is_integer"] else join(kernels, Html(" "), element("mark", text(_FATES[FALLEN])))


def _cell(words: str | None, of: str, kind: str = "") -> Html:
    """A cell that says on narrow screens, where the table has no header, what it is."""
    if words is None:
        return element("td", NONE, class_=f"{kind} none".strip())
    return element("td", text(words), class_=kind, **{"data-of": of})
