from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from fake_judge import judge_model, write_judge

from nextscale.evaluate.concept_judge import METADATA, ConceptJudge
from nextscale.export.autoencoder_parts import to_numbers
from nextscale.export.graph_builder import add_output, finish, new_builder
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
    "an infinite class": '{"name": "j", "concepts": {"a": 1e999}, "windows": {}}',
    "a class below 0": json.dumps(INFO | {"concepts": {"a": -1}}),
    "a window beyond floats": json.dumps(INFO | {"windows": {"whole": [0.5, 0.5, 10**400]}}),
    "a window of no number": json.dumps(INFO | {"windows": {"whole": [float("nan"), 0.5, 1]}}),
    "a window of no side": json.dumps(INFO | {"windows": {"whole": [0.5, 0.5, 0]}}),
    "a concept of two lines": json.dumps(INFO | {"concepts": {"a\nb": 0}}),
    "a name of two lines": json.dumps(INFO | {"name": "a\u2028b"}),
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


def judge_of(path: Path, info: object, logits: str, pictures: list[str | int]) -> Path:
    """A judge whose logits are made of the pictures' means over each of 3 channels, float32 [B, 3]."""
    builder = new_builder("judge")
    op = builder.op
    given = builder.input("pictures", ir.DataType.UINT8, pictures)
    builder.input("windows", ir.DataType.FLOAT, ["B", 3])
    means = op.ReduceMean(to_numbers(op, given), [2, 3], keepdims=0)
    shape = {"of rank 3": ["B", 3, 1], "of one row": [1, 3]}.get(logits, ["B", 3])
    kinds = {"of ints": ir.DataType.INT64, "of doubles": ir.DataType.DOUBLE}
    made = {
        "sound": lambda: op.Mul(means, 1.0),
        "of ints": lambda: op.Cast(means, to=ir.DataType.INT64),
        "of doubles": lambda: op.Cast(means, to=ir.DataType.DOUBLE),
        "of rank 3": lambda: op.Unsqueeze(means, [2]),
        "of one row": lambda: op.ReduceMean(means, [0], keepdims=1),
    }[logits]()
    add_output(builder, made, "logits", kinds.get(logits, ir.DataType.FLOAT), shape)
    model = finish(builder)
    model.metadata_props[METADATA] = json.dumps(info)
    ir.save(model, path)
    return path


FREE: list[str | int] = ["B", "H", "W", 3]
UNFIT = {
    "one picture": ("sound", [1, "H", "W", 3], r"cannot judge pictures \[3, 48, 64, 3\]; expected a judge of any B"),
    "one size": ("sound", ["B", 32, 32, 3], r"cannot judge pictures"),
    "integers": ("of ints", FREE, r"gives logits int64 \[3, 3\]; expected float32 \[B, K\]"),
    "doubles": ("of doubles", FREE, r"gives logits float64 \[3, 3\]; expected"),
    "rank 3": ("of rank 3", FREE, r"gives logits float32 \[3, 3, 1\]; expected"),
    "one row": ("of one row", FREE, r"gives 1 rows of logits for 3 pictures"),
}


@pytest.mark.parametrize(("logits", "pictures", "message"), UNFIT.values(), ids=UNFIT.keys())
def test_a_judge_is_tried_when_it_is_read(logits: str, pictures: list[str | int], message: str, tmp_path: Path) -> None:
    path = judge_of(tmp_path / "judge.onnx", INFO, logits, pictures)
    with pytest.raises(NextscaleError, match=rf"judge\.onnx: {message}[^\n]*$"):
        ConceptJudge(path, threads=1)


def test_a_class_that_the_logits_do_not_have_is_refused(tmp_path: Path) -> None:
    path = judge_of(tmp_path / "judge.onnx", INFO | {"concepts": {"a": 2}}, "sound", FREE)
    assert ConceptJudge(path, threads=1).info.concepts == {"a": 2}
    judge_of(path, INFO | {"concepts": {"a": 2, "b": 3}}, "sound", FREE)
    with pytest.raises(NextscaleError, match=r"concept 'b' is of class 3; its logits have classes 0 to 2"):
        ConceptJudge(path, threads=1)
