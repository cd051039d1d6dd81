"""The page of a report: everything is there, nothing of the model's names gets through, and odd reports look right."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from html.parser import HTMLParser
from typing import Any

import pytest

from nextscale.foreign.compare import Difference
from nextscale.foreign.own_errors import Error
from nextscale.foreign.report import Line, Report, Speed
from nextscale.foreign.suggestion import Suggestion
from nextscale.measure.statistics import Interval
from nextscale.report._error_plot import Mark, error_plot
from nextscale.report._quantized_page import quantized_page

HOSTILE = "</style></title><script>alert('x')</script>&\"\x1b[2J\x00\x7f\u202e"
NOTHING, ALL = Error(0.0, math.inf), Error(math.inf, -math.inf)
LINEAR = Line(
    "block/q/MatMul",
    "linear layer",
    "tensor",
    None,
    ("MatMulIntegerToFloat",),
    True,
    Error(0.0217, 33.3),
    Error(0.003, 50.5),
)
FALLEN = Line(
    "block/fc/MatMul", "linear layer", "image", None, ("MatMul",), False, Error(0.05, 26.0), Error(0.011, 39.2)
)
LEFT = Line("conv", "convolution", refused="convolutions stay as they are")
REPORT = Report(
    recipe="static-w8a8",
    notes=("opset 14 to 21", "channels are not equalized"),
    samples="32 of samples.npz",
    normalized=2.4e-7,
    lines=(LEFT, LINEAR, FALLEN),
    blocks=(),
    outputs={"y": Difference(0.0054, 0.124, Error(0.0153, 36.3)), "z": Difference(0.0, 0.0, NOTHING)},
    not_compared=("boxes",),
    float_bytes=97_500_000,
    integer_bytes=34_200_000,
    suggestion=None,
    speed=Speed(0.0577, 0.0325, Interval(1.78, 1.33, 2.38), 5),
    threads=2,
    machine="CPU X",
    versions={"nextscale": "0.1.0", "onnxruntime": "1.22"},
)
DASH = "\N{EN DASH}"
VOID = {"meta", "input", "wbr"}


class Document(HTMLParser):
    """What a browser would find.

    Attributes:
        tags: of every element with its attributes.
        rows: of the table of operators: attributes and texts of cells.
        marks: elements of the plot that stand for operators, and their titles.
        text: outside of style sheets.
    """

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.rows: list[tuple[dict[str, str | None], list[str]]] = []
        self.marks: list[tuple[str, str]] = []
        self._texts: list[str] = []
        self._open: list[str] = []
        self.feed(page)
        self.close()
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self._open.append(tag)
        if tag == "tr":
            self.rows.append((dict(attrs), []))
        if tag == "td":
            self.rows[-1][1].append("")
        if tag in ("circle", "path"):
            self.marks.append((tag, ""))

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self._open and self._open[-1] != "style":
            self._texts.append(data)
        if "td" in self._open:
            self.rows[-1][1][-1] += data
        if self._open[-2:-1] and self._open[-2] in ("circle", "path"):
            self.marks[-1] = (self.marks[-1][0], self.marks[-1][1] + data)

    @property
    def text(self) -> str:
        return "".join(self._texts)

    def operators(self) -> Iterator[tuple[str, list[str]]]:
        """Classes and cells of the rows of the table of all operators."""
        for attributes, cells in self.rows:
            if (attributes.get("id") or "").startswith("operator-"):
                yield attributes["class"] or "", cells


def shown(report: Report = REPORT, model: str = "vit.onnx") -> Document:
    return Document(quantized_page(report.to_json(), model))


def many(count: int, name: str = "encoder/layer.{}/attention/output/dense/MatMul") -> tuple[Line, ...]:
    lines = (
        LINEAR,
        FALLEN,
        LEFT,
        replace(LINEAR, kind="attention", error=Error(1.5e-5, 96.0), effect=Error(1e-7, 140.0)),
    )
    return tuple(replace(lines[i % len(lines)], name=name.format(i)) for i in range(count))


def test_the_headline() -> None:
    text = shown().text
    assert "vit.onnx, quantized" in text
    assert "34.2 MBof 97.5 MB in float, 35%" in text
    assert "1.78 timesas fast as float [1.33, 2.38]: 57.7 to 32.5 ms" in text
    assert "1 of 3operators that multiply are integer; 1 more multiply in float all the same" in text
    assert "1.53%is the largest of 2 outputs' relative error, that of y" in text


def test_what_it_was_made_of() -> None:
    document = shown()
    for words in ("static-w8a8", "32 of samples.npz", *REPORT.notes, "CPU X", "nextscale 0.1.0, onnxruntime 1.22"):
        assert words in document.text
    assert ["y", "0.0054", "0.124", "1.53%", "36.3"] in [cells for _, cells in document.rows]
    assert ["z", "0", "0", "0%", "∞"] in [cells for _, cells in document.rows]
    assert "tensors of numbers: boxes." in document.text


def test_every_operator_has_a_row() -> None:
    assert [*shown().operators()] == [
        ("kind-1 fate-3 left", ["conv", "convolution", "convolutions stay as they are", DASH, DASH, DASH, DASH]),
        ("kind-2 fate-1",
         ["block/q/MatMul", "linear layer", "MatMulIntegerToFloat", "tensor", "2.17%", "33.3", "0.3%"]),
        ("kind-2 fate-2",
         ["block/fc/MatMul", "linear layer", "MatMul in float all the same", "image", "5%", "26.0", "1.1%"]),
    ]  # fmt: skip


def test_every_operator_has_a_mark() -> None:
    document = shown()
    assert document.marks == [
        ("path", "conv"),
        ("circle", "block/q/MatMul: 2.17%"),
        ("circle", "block/fc/MatMul: 5%"),
        ("path", "conv"),
        ("circle", "block/q/MatMul: 0.3%"),
        ("circle", "block/fc/MatMul: 1.1%"),
    ]
    assert [attributes.get("class") for tag, attributes in document.tags if tag == "circle"] == 2 * [None, "hollow"]


def test_each_choice_hides_by_a_class_that_rows_have() -> None:
    page = quantized_page(REPORT.to_json(), "vit.onnx")
    document = Document(page)
    choices = [attributes["id"] or "" for tag, attributes in document.tags if tag == "input"]
    assert choices == ["kind-0", "kind-1", "kind-2", "fate-0", "fate-1", "fate-2", "fate-3"]
    classes = {name for of_row, _ in document.operators() for name in of_row.split()}
    for choice in choices:
        hides = f".operators:has(#{choice}:checked) tbody tr:not(.{choice}) {{ display: none; }}"
        assert (hides in page) == (not choice.endswith("-0")) == (choice in classes)


def test_what_costs_most_is_linked_to_its_row() -> None:
    document = shown()
    ids = [attributes["id"] for _, attributes in document.tags if "id" in attributes]
    links = [attributes["href"] or "" for tag, attributes in document.tags if tag == "a"]
    assert links == ["#operator-2", "#operator-1"]
    assert {link[1:] for link in links} <= set(ids)
    assert len(set(ids)) == len(ids)


def test_what_to_leave_in_float() -> None:
    left = Suggestion(
        ("block/q/MatMul", 'a "b"'), {"y": Difference(0.003, 0.1, Error(0.01, 40.0))}, Interval(1.6, 1.2, 2.1)
    )
    document = shown(replace(REPORT, suggestion=left))
    assert "2 operators cause much of what the outputs lose." in document.text
    assert "leave what they name in float; the model is then 1.60 [1.20, 2.10] times as fast as float." in document.text
    assert '[layers]\n"block/q/MatMul" = "float"\n"a \\"b\\"" = "float"' in document.text
    assert ["y", "1.53%", "36.3", "1%", "40.0"] in [cells for _, cells in document.rows]
    untimed = shown(replace(REPORT, speed=None, suggestion=replace(left, names=("conv",), ratio=None)))
    assert "One operator causes much of what the outputs lose." in untimed.text
    assert "leave what they name in float." in untimed.text


def test_untrusted_text_is_text() -> None:
    line = replace(LINEAR, name=HOSTILE, kernels=(HOSTILE,))
    report = replace(
        REPORT,
        recipe=HOSTILE,
        notes=(HOSTILE,),
        samples=HOSTILE,
        lines=(line, replace(line, kernels=(HOSTILE,), is_integer=False), Line(HOSTILE, "product", refused=HOSTILE)),
        outputs={HOSTILE: REPORT.outputs["y"]},
        not_compared=(HOSTILE,),
        machine=HOSTILE,
        versions={HOSTILE: HOSTILE},
    )
    page = quantized_page(report.to_json(), HOSTILE)
    document = Document(page)
    assert page.replace("\n", "").isprintable()
    assert "script" not in {tag for tag, _ in document.tags}
    assert r"<script>alert('x')</script>&" in document.text
    assert r"\x1b[2J\x00\x7f\u202e" in document.text


def test_it_fetches_nothing_and_runs_nothing() -> None:
    document = shown()
    assert not {"script", "link", "iframe", "object", "img", "form"} & {tag for tag, _ in document.tags}
    assert [attributes["content"] for tag, attributes in document.tags if "http-equiv" in attributes] == [
        "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
    ]
    for _, attributes in document.tags:
        assert not [name for name in attributes if name.startswith("on") or name == "src"]
        assert (attributes.get("href") or "#").startswith("#")
    assert "url(" not in quantized_page(REPORT.to_json(), "vit.onnx")


@pytest.mark.parametrize("name", ["encoder/layer.{}/attention/output/dense/MatMul", "{}" + "block/" * 30])
def test_two_thousand_operators(name: str) -> None:
    page = quantized_page(replace(REPORT, lines=many(2000, name)).to_json(), "vit.onnx")
    assert len(page.encode()) < 2_000_000
    document = Document(page)
    assert [cells[0] for _, cells in document.operators()] == [name.format(i) for i in range(2000)]
    assert len(document.marks) == 2 * 2000


ODD: dict[str, tuple[dict[str, Any], list[str], list[str]]] = {
    "nothing taken": (
        {"lines": (LEFT, replace(LEFT, name="other"))},
        ["0 of 2operators", "convolutions stay as they are (2)"],
        ["Errors of single operators", "all the same;"],
    ),
    "nothing multiplies": (
        {"lines": ()}, ["0 of 0operators", "There are none that multiply."], ["All operators that multiply"]
    ),
    "nothing lost": ({"lines": (replace(LINEAR, error=NOTHING, effect=NOTHING),)}, ["0%"], ["Those that cost"]),
    "everything lost": ({"lines": (replace(LINEAR, error=ALL, effect=ALL),)}, ["∞", "-∞"], ["nan"]),
    "no error known": (
        {"lines": (replace(LINEAR, error=None, effect=None),)}, ["1 of 1operators"], ["Errors of single operators"]
    ),
    "no kernel": ({"lines": (replace(FALLEN, kernels=()),)}, ["no kernel found in float all the same"], []),
    "no outputs": (
        {"outputs": {}, "not_compared": ("boxes",)},
        ["no outputcould be compared with float", "tensors of numbers: boxes."],
        ["mean difference", "Normalizing"],
    ),
    "one output": ({"outputs": {"y": REPORT.outputs["y"]}}, ["1.53%is the output's relative error, that of y"], []),
    "an output infinitely off": (
        {"outputs": {"y": Difference(math.inf, math.inf, ALL)}}, ["∞is the output's"], []
    ),
    "normalizing goes wrong": ({"normalized": math.inf}, ["changed outputs by ∞ at most"], []),
    "not timed": ({"speed": None}, ["no timesof both models were taken"], ["rounds"]),
    "no notes": ({"notes": ()}, ["static-w8a8"], ["Notes"]),
    "all threads": ({"threads": 0}, ["Threadsall"], []),
}  # fmt: skip


@pytest.mark.parametrize(("changes", "present", "absent"), ODD.values(), ids=ODD.keys())
def test_odd_reports(changes: dict[str, Any], present: Sequence[str], absent: Sequence[str]) -> None:
    text = shown(replace(REPORT, **changes)).text
    assert [words for words in present if words not in text] == []
    assert [words for words in absent if words in text] == []


@pytest.mark.parametrize("errors", [[0.0, math.inf], [1e-9, 1e7], [0.5], [0.1, 0.1], [1.0, 100.0], [3e-5, 0.2]])
def test_marks_lie_within_the_frame_by_size(errors: list[float]) -> None:
    plot = error_plot([Mark(str(error), 0, error, False, True) for error in errors], "errors")
    heights = [float(found) for found in re.findall(r'cy="([^"]*)"', plot)]
    rules = [float(found) for found in re.findall(r'y1="([^"]*)"', plot)][:-1]
    assert heights == sorted(heights, reverse=True)
    assert min(rules) <= min(heights)
    assert max(heights) <= max(rules)
    assert 2 <= len(rules) <= 10
