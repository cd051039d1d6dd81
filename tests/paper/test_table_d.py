"""Table D on a tiny model of OneFormer's forms: rows and what is measured of them, COCO's folder, and going on."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from numpy.typing import NDArray
from PIL import Image
from tiny_segmenter import (
    BEHIND_GELU,
    DEFORMABLE,
    NAMES,
    QUERIES,
    RANK_3,
    SIDE,
    SWIN,
    segmenter_model,
    segmenter_samples,
    write_segmenter,
)

from nextscale.foreign.normalize import normalize
from nextscale.paper import _integer_models
from nextscale.paper._coco import AveragePrecision, Coco
from nextscale.paper._coco_scores import coco_scores
from nextscale.paper._segmentation_agreement import Thresholds, agreement, see
from nextscale.paper._segmentation_scores import VOID
from nextscale.paper._table_d_operations import multiply_adds, operations
from nextscale.paper._table_d_page import markdown
from nextscale.paper._table_d_rows import ROWS, layers_behind_gelu, plan_rows
from nextscale.paper.segmentation import Queries
from nextscale.paper.segmenter import Segmenter, read_photographs
from nextscale.paper.store import Store
from nextscale.paper.table_d import PAPER, Measuring, TableD, measure_table_d
from nextscale.runtime._errors import NextscaleError
from nextscale.runtime._session import SessionOptions

ONE_THREAD = SessionOptions(threads=1)
ALL = Thresholds(score=0, overlap=0)
MEASURING = Measuring(ALL, rounds=0, budget=0.5)
EXAMPLES = Path(__file__).parents[2] / "examples" / "oneformer"
SHIFTED = "ours-litevar-w4a4"


def photographs(count: int = 3) -> list[NDArray[np.uint8]]:
    rng = np.random.default_rng(5)
    return [rng.integers(0, 256, (20 + 10 * i, 48, 3), dtype=np.uint8) for i in range(count)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With model.onnx and samples.npz."""
    folder = tmp_path_factory.mktemp("table-d")
    write_segmenter(folder / "model.onnx")
    np.savez(folder / "samples.npz", **segmenter_samples())
    return folder


def measured(folder: Path, rows: tuple[str, ...], measuring: Measuring = MEASURING) -> TableD:
    given = (folder / "model.onnx", folder / "samples.npz", photographs(), rows, Store(folder / "store"))
    return measure_table_d(*given, measuring=measuring, options=ONE_THREAD)


@pytest.fixture(scope="module")
def table(folder: Path) -> TableD:
    return measured(folder, (SHIFTED, "fp32", "static-w8a8"))


@pytest.mark.exact_products
def test_rows_say_what_they_are(table: TableD) -> None:
    full, shifted, static = table.rows
    assert [row.name for row in table.rows] == ["fp32", SHIFTED, "static-w8a8"]
    assert (shifted.method, shifted.bits, shifted.paper) == (
        "Ours+LiteVAR",
        "4/4",
        PAPER[SHIFTED],
    )
    assert (full.agreement, full.attention_errors, full.operations.integer) == (None, {}, 0)
    assert (static.method, static.bits, static.paper, static.attention_errors) == ("static-w8a8", "8/8", None, {})
    assert set(shifted.attention_errors) == {*SWIN, *RANK_3}
    assert all(0 < error < 1 for error in shifted.attention_errors.values())
    taken, layers = shifted.integer["linear layer"]
    assert static.integer["linear layer"] == (layers, layers)
    assert taken == layers - 1
    assert shifted.integer["attention"] == (7, 8)
    assert table.refused == {DEFORMABLE: "its consumer how is Reshape, not MatMul"}
    assert (table.left_out, shifted.fallen, table.photographs) == ((), (), 3)
    assert table.model["image_size"] == [SIDE, SIDE]
    assert table.calibration.startswith("6 of ")


def test_agreement_is_that_of_what_both_see(table: TableD, folder: Path) -> None:
    exact = Segmenter(folder / "model.onnx", ONE_THREAD)
    expected = see(exact, photographs(), ALL, lambda done: None)
    for row in table.rows[1:]:
        (path,) = (folder / "store" / "entries").glob(f"model-model-{row.name}-*/data/{row.name}.onnx")
        found = see(Segmenter(path, ONE_THREAD), photographs(), ALL, lambda done: None)
        assert row.agreement == agreement(expected, found, len(NAMES))
        assert 0 < row.agreement.pixels.mean <= 1
        assert 0 < row.agreement.miou <= 1
        assert row.agreement.segments > 0
    itself = agreement(expected, expected, len(NAMES))
    assert (itself.pixels.mean, itself.miou, itself.pq) == (1, 1, 1)


def test_the_same_call_goes_on(table: TableD, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*given: object) -> None:
        raise AssertionError("made again")

    monkeypatch.setattr(_integer_models, "quantize_model", fail)
    monkeypatch.setattr("nextscale.paper._segmentation_figures.see", fail)
    assert measured(folder, ("fp32", SHIFTED, "static-w8a8")).rows == table.rows
    (kept,) = (folder / "store" / "figures").glob("fp32-*.json")
    content = kept.read_text()
    kept.write_text("{")
    with pytest.raises(NextscaleError, match=r"fp32-\w+\.json: damaged; delete the file"):
        measured(folder, ("fp32",))
    kept.write_text(content)


def test_rows_are_timed_in_turns(folder: Path) -> None:
    (full,) = measured(folder, ("fp32",), replace(MEASURING, rounds=2)).rows
    assert full.speed is not None
    assert full.speed.seconds > 0
    assert full.speed.ratio.mean == 1


@pytest.mark.exact_products
def test_a_row_that_cannot_be_made_is_left_out(folder: Path) -> None:
    found = measured(folder, ("fp32", "ours-w6a6"), replace(MEASURING, budget=1e-6))
    assert [row.name for row in found.rows] == ["fp32"]
    assert len(found.left_out) == 1
    assert found.left_out[0].startswith("ours-w6a6: a budget of 0.00% is too small")


def test_the_page_says_what_was_measured(table: TableD) -> None:
    page = markdown(table)
    for text in (
        "BRECQ, LiteVAR and Ours learn the rounding of residual blocks",
        "agreement is with full precision, on 3 photographs that nobody has annotated",
        "| Ours+LiteVAR | 4/4 |",
        "| 65.0 | 40.6 | 52.2 |",
        "no mIoU, AP or PQ against annotations",
        f"- {DEFORMABLE} stays in float: its consumer how is Reshape, not MatMul",
        "## Error of A V by attention",
        "within a budget of 50.00%",
        "- weights: drawn",
    ):
        assert text in page, text
    assert "| mIoU |" not in page  # of no annotations
    plain = json.loads(json.dumps(table.to_json(), allow_nan=False))
    assert plain["rows"][1]["paper"] == {"miou": 65.0, "ap": 40.6, "pq": 52.2}


# Rows and operations


def test_the_papers_rows_are_there() -> None:
    rows, left_out = plan_rows(ROWS, ["fc2"])
    assert set(PAPER) <= {row.name for row in rows}
    assert left_out == []
    by_name = {row.name: row for row in rows}
    plain, gelu, shift = (by_name[f"{method}-w6a6"].recipe for method in ("brecq", "litevar", "ours"))
    assert plain is not None
    assert gelu is not None
    assert shift is not None
    assert replace(gelu, layers={}, name=plain.name, description=plain.description) == plain
    assert gelu.layers == {"fc2": "float"}
    assert (plain.attention.shift_and_sum, shift.attention.shift_and_sum) == ("off", "residual")
    assert [row.method for row in rows if row.bits == "4/4"] == ["BRECQ", "LiteVAR", "Ours", "Ours+LiteVAR", "default"]


REFUSED_ROWS = {
    "fp32,mine": 'no recipe is named "mine"',
    "fp32,default,default": "one is there twice",
    "default": "no full precision (fp32), the reference",
    "fp32,brecq-w5a5": 'no recipe is named "brecq-w5a5"',
}


@pytest.mark.parametrize("rows", REFUSED_ROWS)
def test_rows_that_there_are_none_of(rows: str) -> None:
    with pytest.raises(NextscaleError) as error:
        plan_rows(rows.split(","), [])
    assert REFUSED_ROWS[rows] in str(error.value)


def test_layers_behind_a_gelu() -> None:
    """Of one operator, and of Erf; where there is none, rows that ask for it are left out."""
    assert layers_behind_gelu(normalize(segmenter_model()).model.graph) == [BEHIND_GELU]
    written_out = segmenter_model()
    (gelu,) = (node for node in written_out.graph if node.op_type == "Gelu")
    gelu.op_type = "Erf"
    assert layers_behind_gelu(written_out.graph) == [BEHIND_GELU]
    gelu.op_type = "Relu"
    assert layers_behind_gelu(written_out.graph) == []
    rows, left_out = plan_rows(["fp32", "litevar-w6a6", "brecq-w6a6"], [])
    assert [row.name for row in rows] == ["fp32", "brecq-w6a6"]
    assert left_out == ["litevar-w6a6: no linear layer of the model reads a GELU"]


def test_multiply_adds_by_hand() -> None:
    counts = multiply_adds(normalize(segmenter_model()).model.graph)
    assert counts["patches"] == 8 * 8 * 8 * 3 * 4 * 4
    assert counts["fc1"] == 64 * 8 * 16
    assert counts["window_mix"] == 2 * 16 * 2 * 4 * 4 * 4  # both products, of 16 windows and 2 heads
    assert counts["cross0_mix"] == 2 * 2 * QUERIES * 64 * 4
    assert counts["h0_masks"] == QUERIES * 8 * 64  # an einsum
    found = operations({"a": 100, "b": 300}, {"b": (6, 4)})
    assert (found.integer, found.bits) == (0.75, 100 * 256 + 300 * 24)


# The model


BAD_INFO = {
    "no tasks": ({"tasks": None}, "'tasks'"),
    "tasks of several lengths": ({"tasks": {"semantic": [1], "instance": [1, 2], "panoptic": [1]}}, "same length"),
    "no colours": ({"mean": [0.5]}, "mean or std"),
    "a std of zero": ({"std": [0, 1, 1]}, "mean or std"),
    "an endless deviation": ({"std": [1, 1, math.inf]}, "a mean or std that are not those of three colours"),
    "unknown things": ({"things": [3]}, "things that are none of its 3 classes"),
}


@pytest.mark.parametrize("case", BAD_INFO)
def test_metadata_that_do_not_fit(case: str, tmp_path: Path) -> None:
    changes, message = BAD_INFO[case]
    with pytest.raises(NextscaleError) as error:
        Segmenter(write_segmenter(tmp_path / "model.onnx", **changes), ONE_THREAD)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_models_that_segment_nothing(tmp_path: Path) -> None:
    with pytest.raises(NextscaleError, match="no such file"):
        Segmenter(tmp_path / "none.onnx", ONE_THREAD)
    model = segmenter_model()
    ir.save(model, tmp_path / "model.onnx")
    Segmenter(tmp_path / "model.onnx", ONE_THREAD)
    model.metadata_props.clear()
    ir.save(model, tmp_path / "model.onnx")
    with pytest.raises(NextscaleError, match=r"no nextscale\.segmentation in its metadata"):
        Segmenter(tmp_path / "model.onnx", ONE_THREAD)
    model.graph.inputs[0].name = "picture"
    ir.save(model, tmp_path / "model.onnx")
    with pytest.raises(NextscaleError, match="no segmentation model: it has no pixel_values"):
        Segmenter(tmp_path / "model.onnx", ONE_THREAD)
    write_segmenter(tmp_path / "two.onnx", classes=["cat", "dog"], things=[])
    with pytest.raises(NextscaleError, match=r"expected \[1, Q, 3\] for its 2 classes"):
        Segmenter(tmp_path / "two.onnx", ONE_THREAD).queries(photographs()[0], "semantic")


def test_a_photograph_is_fitted_and_its_masks_are_its_own_size(folder: Path) -> None:
    """48 x 20 pixels become 32 x 13; below them is the mean colour, 0 once it is subtracted."""
    segmenter, photograph = Segmenter(folder / "model.onnx", ONE_THREAD), np.full((20, 48, 3), 255, np.uint8)
    values = segmenter.feed(photograph, "panoptic")["pixel_values"]
    assert values.shape == (1, 3, SIDE, SIDE)
    np.testing.assert_allclose(values[:, :, :13], 2, atol=1e-6)  # (1 - .5) / .25
    assert not values[:, :, 13:].any()
    assert segmenter.queries(photograph, "panoptic").masks.shape == (QUERIES, 20, 48)


def example(name: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, EXAMPLES / f"{name}.py", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_the_examples_programs(folder: Path, tmp_path: Path) -> None:
    """Photographs into samples, and what a model sees drawn beside them."""
    (tmp_path / "photographs").mkdir()
    for i, pixels in enumerate(photographs()):
        Image.fromarray(pixels).save(tmp_path / "photographs" / f"{i}.png")
    done = example("samples", folder / "model.onnx", tmp_path / "photographs", tmp_path / "samples.npz")
    assert (done.returncode, done.stderr, done.stdout) == (0, "", f"{tmp_path / 'samples.npz'}: 3 samples\n")
    found = np.load(tmp_path / "samples.npz")
    assert found["task_inputs"].tolist() == [[1, 2, number, 0] for number in (3, 4, 5)]
    assert found["pixel_values"].shape == (3, 3, SIDE, SIDE)
    options = ("--images", tmp_path / "photographs", "--score", 0, "--overlap", 0, "--out", tmp_path / "sheet.png")
    done = example("segment", folder / "model.onnx", folder / "model.onnx", *options)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.count(" segments: ") == 6
    sheet = np.asarray(Image.open(tmp_path / "sheet.png"))
    assert sheet.shape == (3 * (27 + 4), 5 * (SIDE + 4), 3)  # the tallest photograph is of 40 x 48 pixels
    column = SIDE + 4
    np.testing.assert_array_equal(sheet[:, column : 3 * column], sheet[:, 3 * column :])
    done = example("segment", tmp_path / "none.onnx", *options)
    assert (done.returncode, done.stderr.count("\n"), done.stderr[:7]) == (1, 1, "error: ")


def test_folders_without_photographs(tmp_path: Path) -> None:
    with pytest.raises(NextscaleError, match="no such folder"):
        read_photographs(tmp_path / "none")
    with pytest.raises(NextscaleError, match="no files; expected photographs"):
        read_photographs(tmp_path)
    (tmp_path / "a.png").write_bytes(b"no picture")
    with pytest.raises(NextscaleError, match=r"a\.png: no picture"):
        read_photographs(tmp_path)


# COCO


def coco_folder(folder: Path, pictures: int = 2) -> Path:
    """Categories 7, 13 and 200; each picture has a cat, a crowd of dogs, sky, and a line that nobody annotated."""
    categories = [{"id": 200, "name": "sky", "isthing": 0}, {"id": 7, "name": "cat", "isthing": 1}]
    categories.append({"id": 13, "name": "dog", "isthing": 1})
    images, annotations = [], []
    (folder / "val2017").mkdir(parents=True)
    (folder / "annotations" / "panoptic_val2017").mkdir(parents=True)
    for number in range(1, pictures + 1):
        ids = np.zeros((8, 12), np.int64)
        ids[:4, :6], ids[:4, 6:], ids[4:7] = 5, 70_000, 300
        colours = np.stack([ids % 256, ids // 256 % 256, ids // 256**2], axis=-1).astype(np.uint8)
        Image.fromarray(colours).save(folder / "annotations" / "panoptic_val2017" / f"{number}.png")
        Image.fromarray(np.full((8, 12, 3), 40 * number, np.uint8)).save(folder / "val2017" / f"{number}.png")
        images.append({"id": number, "file_name": f"{number}.png", "height": 8, "width": 12})
        told = [(5, 7, 0), (70_000, 13, 1), (300, 200, 0)]
        parts = [{"id": i, "category_id": category, "iscrowd": crowd} for i, category, crowd in told]
        annotations.append({"image_id": number, "file_name": f"{number}.png", "segments_info": parts})
    document = {"images": images, "annotations": annotations, "categories": categories}
    (folder / "annotations" / "panoptic_val2017.json").write_text(json.dumps(document))
    return folder


def test_pictures_of_coco(tmp_path: Path) -> None:
    coco = Coco(coco_folder(tmp_path / "coco"))
    assert (len(coco), coco.names, coco.things) == (2, ["cat", "dog", "sky"], {0, 1})
    picture = coco[1]
    assert (picture.number, picture.crowds, picture.segments.classes.tolist()) == (2, {2}, [0, 1, 2])
    assert (picture.pixels == 80).all()
    assert picture.classes[[0, 0, 4, 7], [0, 6, 0, 0]].tolist() == [0, 1, 2, VOID]
    assert len(Coco(tmp_path / "coco", 1)) == 1


class Perfect(Segmenter):
    """It knows the answers."""

    def __init__(self, coco: Coco) -> None:
        self._answers = {coco[i].pixels.tobytes(): coco[i].segments for i in range(len(coco))}

    def queries(self, pixels: NDArray[np.uint8], task: str) -> Queries:
        segments = self._answers[pixels.tobytes()]
        masks = [np.where(segments.ids == i, 9.0, -9.0) for i in range(1, 4)]
        classes = 20 * np.eye(4)[segments.classes]
        return Queries(classes.astype(np.float32), np.array(masks, np.float32))


def test_all_three_metrics_of_perfect_answers(tmp_path: Path) -> None:
    pytest.importorskip("pycocotools")
    coco = Coco(coco_folder(tmp_path / "coco"))
    found = coco_scores(coco, Perfect(coco), Thresholds(), lambda done: None)
    assert (found.pictures, found.miou, found.pq) == (2, 100, 100)
    assert found.ap == pytest.approx(100)


def test_without_pycocotools(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pycocotools.mask", None)
    with pytest.raises(NextscaleError, match=r'AP needs pycocotools, .*: pip install "nextscale\[coco\]"'):
        AveragePrecision([0])


def test_folders_that_are_no_coco(tmp_path: Path, folder: Path) -> None:
    with pytest.raises(NextscaleError, match=r"panoptic_val2017\.json: cannot be read: No such file"):
        Coco(tmp_path)
    coco = coco_folder(tmp_path / "coco")
    document = coco / "annotations" / "panoptic_val2017.json"
    told = json.loads(document.read_text())
    document.write_text(json.dumps({**told, "annotations": []}))
    with pytest.raises(NextscaleError, match="annotates no picture"):
        Coco(coco)
    document.write_text(json.dumps({**told, "categories": [{"id": 7}]}))
    with pytest.raises(NextscaleError, match="no panoptic annotations: 'name'"):
        Coco(coco)
    document.write_text(json.dumps({**told, "categories": [{"id": math.inf}]}))
    with pytest.raises(NextscaleError, match="no panoptic annotations: cannot convert float infinity"):
        Coco(coco)
    document.write_text(json.dumps({**told, "categories": told["categories"][:2]}))
    with pytest.raises(NextscaleError, match="segments of picture 1: KeyError 13"):
        Coco(coco)[0]
    given = (folder / "model.onnx", folder / "samples.npz", photographs(), ("fp32",), Store(tmp_path / "store"))
    with pytest.raises(NextscaleError, match="the model has 3 classes; expected COCO's 2 categories"):
        measure_table_d(*given, coco=Coco(coco), options=ONE_THREAD)
