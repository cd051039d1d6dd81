"""HTML by hand: elements whose text is escaped, and the page around them.

`Html` marks what is markup already; every function here takes plain text and escapes it, unless its type is Html.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import Any, NewType

from nextscale.runtime._text import printable

Html = NewType("Html", str)

_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<title>{title}</title>
<style>{style}</style>
</head>
<body>
<main>
{body}
</main>
</body>
</html>
"""

_STYLE = """
:root { color-scheme: light; --ink: #1d2430; --soft: #5c6675; --line: #dfe3e8; --tint: #f5f7f9; --accent: #2a6f97; }
* { box-sizing: border-box; }
html { -webkit-text-size-adjust: 100%; }
body { margin: 0; background: #fff; color: var(--ink); overflow-wrap: break-word;
  font: 16px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif; }
main { max-width: 72rem; margin: 0 auto; padding: 2rem 1.25rem 4rem; }
h1 { font-size: 1.9rem; line-height: 1.2; letter-spacing: -.015em; margin: 0 0 .6rem; }
h2 { font-size: 1.25rem; margin: 2.8rem 0 .7rem; padding-top: .8rem; border-top: 2px solid var(--ink); }
h3 { font-size: 1rem; margin: 1.6rem 0 .4rem; }
p { margin: .4rem 0 .8rem; max-width: 46rem; }
.lead { font-size: 1.1rem; }
.note, figcaption { color: var(--soft); font-size: .86rem; line-height: 1.45; }
dl.facts { display: grid; grid-template-columns: max-content 1fr; gap: .3rem 1.2rem; margin: 1.4rem 0;
  padding: .9rem 1.1rem; background: var(--tint); border-radius: .5rem; font-size: .9rem; }
dl.facts dt { color: var(--soft); }
dl.facts dd { grid-column: 2; margin: 0; min-width: 0; overflow-wrap: anywhere; }
.scroll { overflow-x: auto; margin: .6rem 0; }
table { border-collapse: collapse; font-size: .88rem; font-variant-numeric: tabular-nums; min-width: 100%; }
th, td { padding: .42rem .65rem; text-align: right; white-space: nowrap; border-bottom: 1px solid var(--line);
  vertical-align: baseline; }
th:first-child, td:first-child { text-align: left; padding-left: 0; position: sticky; left: 0; background: #fff; }
td.text, th.text { text-align: left; }
thead th { font-weight: 600; color: var(--soft); border-bottom: 1px solid var(--ink); vertical-align: bottom;
  white-space: pre-line; line-height: 1.3; }
tbody tr:last-child td { border-bottom-color: var(--ink); }
td small { color: var(--soft); font-size: .92em; }
b.name { font-weight: 600; }
.dot { display: inline-block; width: .7em; height: .7em; border-radius: 50%; margin-right: .5em; }
.plots { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 27rem), 1fr)); gap: 1.2rem 2rem; }
figure { margin: .6rem 0; min-width: 0; break-inside: avoid; }
figure img { display: block; width: 100%; height: auto; }
figure.sheet { margin: 1.2rem 0 1.8rem; max-width: 52rem; }
figure.sheet p { margin: .5rem 0 .15rem; font-size: .86rem; line-height: 1.3; }
figure.sheet img { border-radius: .2rem; }
figcaption { margin-top: .5rem; }
details { border: 1px solid var(--line); border-radius: .5rem; margin: .5rem 0; padding: 0 1rem; }
summary { cursor: pointer; padding: .6rem 0; }
summary small { color: var(--soft); margin-left: .5em; }
details table { margin-bottom: 1rem; }
details td { white-space: normal; overflow-wrap: anywhere; }
details td:first-child { white-space: nowrap; color: var(--soft); padding-right: 1.5rem; }
@media (max-width: 40rem) {
  main { padding: 1.2rem .9rem 3rem; }
  h1 { font-size: 1.5rem; }
  dl.facts { grid-template-columns: 1fr; gap: 0; }
  dl.facts dd { grid-column: 1; }
  dl.facts dd:has(+ dt) { margin-bottom: .5rem; }
  th, td { padding: .38rem .5rem; }
  td:first-child, th:first-child { min-width: 6.5rem; max-width: 40vw; white-space: normal; overflow-wrap: break-word; }
}
@page { size: A4; margin: 14mm; }
@media print {
  body { font-size: 10.5pt; }
  main { max-width: none; padding: 0; }
  table { font-size: 7.6pt; min-width: 0; }
  th, td { padding: .3rem .4rem; }
  th:first-child, td:first-child { position: static; }
  .scroll { overflow: visible; }
  h2, h3, h2 + p { break-after: avoid; }
  tr, dl.facts { break-inside: avoid; }
  .plots { grid-template-columns: 1fr 1fr; gap: .8rem 1.2rem; }
  dl.facts, .dot { print-color-adjust: exact; -webkit-print-color-adjust: exact; }
}
"""


def page(title: str, parts: Iterable[Html]) -> str:
    """A whole document; it loads nothing, and tells the browser that it may not."""
    return _PAGE.format(title=escape(printable(title)), style=_STYLE, body="\n".join(parts))


def join(*parts: Html) -> Html:
    return Html("".join(parts))


def text(value: object) -> Html:
    """Any value as text; line breaks are spaces in HTML."""
    return Html(escape("\n".join(map(printable, str(value).split("\n")))))


def element(tag: str, *content: Html, **attributes: str) -> Html:
    """An element.

    Args:
        tag: its name.
        content: markup.
        attributes: by name, `class_` for class; values are escaped.
    """
    written = "".join(f' {name.rstrip("_")}="{escape(printable(value))}"' for name, value in attributes.items())
    return Html(f"<{tag}{written}>{''.join(content)}</{tag}>")


def heading(level: int, title: str) -> Html:
    return element(f"h{level}", text(title))


def paragraph(content: str, kind: str = "") -> Html:
    return element("p", text(content), **({"class_": kind} if kind else {}))


def facts(items: Mapping[str, Sequence[str]]) -> Html:
    """A list of names, each with its lines."""
    rows = []
    for name, lines in items.items():
        rows += [element("dt", text(name)), *(element("dd", text(line)) for line in lines)]
    return element("dl", *rows, class_="facts")


def table(header: Sequence[str], rows: Iterable[Sequence[Html]], texts: int = 1) -> Html:
    """A table that scrolls sideways where the screen is narrow; all but the first `texts` columns are right-aligned.

    A line break in the header stays one.
    """

    def cells(tag: str, items: Iterable[Html]) -> Html:
        return join(*(element(tag, item, **({"class_": "text"} if i < texts else {})) for i, item in enumerate(items)))

    head = element("thead", element("tr", cells("th", map(text, header)))) if header else Html("")
    body = element("tbody", *(element("tr", cells("td", row)) for row in rows))
    return element("div", element("table", head, body), class_="scroll")


def picture(data: bytes, mime: str, alternative: str) -> Html:
    """An image inside the page."""
    source = f"data:{mime};base64,{base64.b64encode(data).decode()}"
    return Html(f'<img src="{source}" alt="{escape(printable(alternative))}">')


def figure(content: Html, caption: str, kind: str = "") -> Html:
    return element("figure", content, element("figcaption", text(caption)), **({"class_": kind} if kind else {}))


def details(summary: Html, content: Html) -> Html:
    """What opens at a click; printed as it is then."""
    return element("details", element("summary", summary), content)


def dot(color: str) -> Html:
    """A disc in a colour of the plots."""
    return element("span", class_="dot", style=f"background:{color}")


def json_line(value: Any) -> str:
    """Any JSON value on one line without control characters."""
    return printable(value if isinstance(value, str) else json.dumps(value, ensure_ascii=False))
