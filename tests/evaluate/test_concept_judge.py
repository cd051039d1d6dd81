from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from fake_judge import judge_model, write_judge

from nextscale.evaluate.concept_judge import METADATA, ConceptJudge
from nextscale.runtime._errors import NextscaleError


@pytest.fixture(scope="module")
def judge(tmp_path_factory: pytest.TempPathFactory) -> ConceptJudge:
    return ConceptJudge(write_judge(tmp_path_factory.mktemp("judge") / "judge.onnx"), threads=1)


def test_all_that_is_asked_must_be_seen_in_its_place(judge: ConceptJudge) -> None:
    """A picture that is red on the left and green on the right, and one that is blue."""
    pictures = np.zeros((6, 8, 12, 3), np.uint8)
    pictures[:5, :, :6, 0] = pictures[:5, :, 6:, 1] = pictures[5, ..., 2] = 200
    objects = [
        [("rose", "left"), ("leaf", "right")],
        [("poppy", "left")],  # which looks like a rose
        [("rose", "left"), ("sky", "right")],
        [("leaf", "left"), ("leaf", "right")],
        [],
        [("sky", "whole")],
    ]
    found = judge.recognised(pictures, objects)
    assert found.dtype == np.bool_
    assert found.tolist() == [True, True, False, False, True, True]


def test_a_name_tells_one_judge_from_another(judge: ConceptJudge, tmp_path: Path) -> None:
    model = judge_model()
    model.metadata_props["more"] = "metadata"
    ir.save(model, tmp_path / "other.onnx")
    assert re.fullmatch("colours [0-9a-f]{12}", judge.name)
    assert ConceptJudge(tmp_path / "other.onnx").name != judge.name


@pytest.mark.parametrize(
    ("pair", "message"),
    [
        (
            ("cat", "whole"),
            "prompt 2: concept 'cat' is unknown to colours: expected one of 4, such as rose, poppy, leaf",
        ),
        (
            ("rose", "below"),
            "prompt 2: window 'below' is unknown to colours: expected one of 3, such as whole, left, right",
        ),
    ],
)
def test_what_a_judge_does_not_know_is_refused(judge: ConceptJudge, pair: tuple[str, str], message: str) -> None:
    with pytest.raises(NextscaleError, match=re.escape(message)):
        judge.require([[("rose", "left")], [pair]])
    judge.require([[("rose", "left")], []])


INFO = {"name": "j", "concepts": {"a": 0}, "windows": {"whole": [0.5, 0.5, 1]}}
DAMAGED = {
    "no metadata": None,
    "no JSON": "{",
    "a list": "[]",
    "no concepts": json.dumps(INFO | {"concepts": ["a"]}),
    "a window of two": json.dumps(INFO | {"windows": {"whole": [0.5, 0.5]}}),
    "a class that is none": json.dumps(INFO | {"concepts": {"a": "b"}}),
}


@pytest.mark.parametrize("text", DAMAGED.values(), ids=DAMAGED.keys())
def test_damaged_metadata_is_refused(text: str | None, tmp_path: Path) -> None:
    model = judge_model()
    del model.metadata_props[METADATA]
    if text is not None:
        model.metadata_props[METADATA] = text
    ir.save(model, tmp_path / "judge.onnx")
    with pytest.raises(NextscaleError, match=r"judge\.onnx: no judge: its metadata nextscale\.judge is missing or dam"):
        ConceptJudge(tmp_path / "judge.onnx")


def test_files_that_are_no_judges_are_refused(tmp_path: Path) -> None:
    with pytest.raises(NextscaleError, match=r"none\.onnx"):
        ConceptJudge(tmp_path / "none.onnx")
    (tmp_path / "text.onnx").write_text("text")
    with pytest.raises(NextscaleError, match=r"text\.onnx: no ONNX model: "):
        ConceptJudge(tmp_path / "text.onnx")
    model = judge_model()
    model.graph.outputs[0].name = "classes"
    ir.save(model, tmp_path / "other.onnx")
    with pytest.raises(NextscaleError, match=r"other\.onnx: no judge: expected inputs pictures"):
        ConceptJudge(tmp_path / "other.onnx")
