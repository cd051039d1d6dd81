from __future__ import annotations

import base64
import io
import json
import math
import re
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fake_bundle import read_manifest, write_manifest
from PIL import Image

from nextscale.calib_data.match_probabilities import MatchingReport
from nextscale.evaluate.teacher_forced import KL_IN_WORDS
from nextscale.measure.statistics import Interval
from nextscale.report._page import element, page, table, text
from nextscale.report._rows import Inputs, by_model, collect_rows, read_inputs, same_path
from nextscale.report._sheets import SheetSettings, make_sheets, sheet_images
from nextscale.report.report import report_page
from nextscale.runtime._bundle import Bundle
from nextscale.runtime._errors import NextscaleError
from nextscale.runtime._next_scale_loop import Generator
from nextscale.runtime._session import SessionOptions

pytest.importorskip("matplotlib")
HOSTILE = "<script>alert('x')</script>&\"$x^$_"


def interval(mean: float, half: float | None = 0.1) -> dict[str, float | None]:
    return {"mean": mean, "low": None if half is None else mean - half, "high": None if half is None else mean + half}


def agreement(kl: float, **changes: Any) -> dict[str, Any]:
    figures = {"kl": kl, "kl_stderr": 0.001, "top1": 0.8, "stage_kl": [kl, 2 * kl], "stage_top1": [0.9, 0.7]}
    return {**figures, "images": 8, **changes}


def evaluate_json(bundles: dict[str, float], cfg_scale: float = 4.0) -> dict[str, Any]:
    figures = {name: agreement(kl) for name, kl in bundles.items()}
    return {"reference": "out/fp32", "seed": 1, "cfg_scale": cfg_scale, "bundles": figures}


def measurement(bundle: str, speed: float, **changes: Any) -> dict[str, Any]:
    item = {
        "bundle": bundle, "name": "model", "recipe": "fp32" if bundle.endswith("fp32") else "other",
        "size_bytes": 5_000_000, "batch": 1, "form": "streaming", "image_seconds": interval(1 / speed, 0.01),
        "images_per_second": interval(speed), "stage_seconds": [interval(0.01), interval(0.02)],
        "decoder_seconds": interval(0.03), "speedup": interval(speed / 2),
        "footprint": {"load_seconds": 0.5, "first_seconds": 1.0, "peak_bytes": 200_000_000}, "samples": [1.0, 2.0],
    }  # fmt: skip
    return {**item, **changes}


def bench_json(speeds: dict[str, float], cpu: str = "CPU X") -> dict[str, Any]:
    return {
        "machine": {"cpu": cpu, "isa": ["avx2"], "logical_cpus": 2, "system": "Linux"},
        "versions": {"nextscale": "0.1.0", "onnxruntime": "1.22"},
        "settings": {"threads": 0, "spinning": True, "batches": [1]},
        "measurements": [measurement(bundle, speed) for bundle, speed in speeds.items()],
    }


def metrics_json(rows: dict[str, str], images: int = 100) -> dict[str, Any]:
    return {
        "images": images, "seeds": [0, 1], "cfg_scale": 4.0, "network": "efficientnet", "cpu": "CPU X",
        "versions": {"nextscale": "0.1.0"},
        "rows": [
            {
                "bundle": bundle, "role": role, "seeds": [0, 1], "images": images, "IS-E standard errors": [0.5, 0.6],
                "IS-E": interval(12.345), "FID-E": interval(99.25, None),
                "FID-E to full precision": None if role == "full precision" else interval(3.5),
            }
            for bundle, role in rows.items()
        ],
    }  # fmt: skip


def theta_json() -> dict[str, Any]:
    costs = {"memory": 1, "operations": 2}
    row = {"form": "duplicate", "max_order": 4, "share": 0.005, "scores": costs, "duplicate": costs, "aggregate": costs}
    return {
        "bundle": "out/fp32", "images": 4, "seed": 0, "bits": {"weights": 4, "activations": 6}, "baseline": costs,
        "overheads": [{"theta": 0.03, **row}, {"theta": 0.2, **row}],
        "choices": [{"form": "duplicate", "theta": 0.03, "budget": 0.01}],
        "attentive_shares": {"0.2": [1, 0.1], "0.03": [1, 0.4]},
    }  # fmt: skip


def write_json(path: Path, document: object) -> Path:
    path.write_text(json.dumps(document))
    return path


def write_calibration(folder: Path, **changes: Any) -> Path:
    folder.mkdir()
    counts = np.array([[3, 1, 0], [2, 5, 5]])
    arrays = {"target": counts + [[-0.5, 0.5, 0.0]] * 2, "before": counts, "after": counts} | changes
    report = MatchingReport(counts.astype(float), counts, counts, 7, 5).as_json()
    np.savez(folder / "frequencies.npz", **arrays)
    np.savez(folder / "token_maps.npz")
    manifest = {"schema": 1, "images": 3, "bundle": {"name": "fp32"}, "settings": {"matching": "stagewise"}}
    write_json(folder / "manifest.json", {**manifest, "report": report})
    return folder


class Structure(HTMLParser):
    """Tags, sources of images and text of a page; fails on tags that are not closed in order."""

    def __init__(self, document: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.sources: list[str] = []
        self.words = ""
        self._open: list[str] = []
        self.feed(document)
        self.close()
        assert not self._open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        if tag == "img":
            self.sources.append(dict(attrs)["src"] or "")
        elif tag != "meta":
            self._open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "style" not in self._open:
            self.words += data


def page_of(*paths: Path) -> Structure:
    return Structure(report_page(read_inputs(paths), [], "A title"))


# Reading


def test_each_kind_of_file_is_recognised(tmp_path: Path, fake_bundle: Path) -> None:
    paths = [
        fake_bundle,
        write_json(tmp_path / "e.json", evaluate_json({"out/int8": 0.05})),
        write_json(tmp_path / "b.json", bench_json({"out/int8": 3.0})),
        write_json(tmp_path / "m.json", metrics_json({"out/int8": "bundle"})),
        write_json(tmp_path / "t.json", theta_json()),
        write_calibration(tmp_path / "maps"),
    ]
    inputs = read_inputs(paths)
    assert [bundle.path for bundle in inputs.bundles] == [fake_bundle]
    assert [type(result).__name__ for result in inputs.results] == [
        "EvaluateResult", "BenchResult", "MetricsResult", "ThetaResult", "CalibrationResult",
    ]  # fmt: skip
    report = inputs.results[-1].report  # type: ignore[union-attr]
    assert (report.wanted, report.moved) == (7, 5)  # type: ignore[union-attr]


def refusal(document: object, tmp_path: Path) -> str:
    path = write_json(tmp_path / "result.json", document)
    with pytest.raises(NextscaleError) as caught:
        read_inputs([path])
    message = str(caught.value)
    assert message.startswith(f"{path}: ")
    return message.removeprefix(f"{path}: ")


def test_a_file_of_no_known_kind_is_refused(tmp_path: Path) -> None:
    assert refusal({"a": 1}, tmp_path).startswith("not a result of evaluate, metrics, bench or theta")
    assert refusal([1], tmp_path) == "document: expected a JSON object, found [1]"


WRONG = {
    "text for a number": (("kl", "0.1"), 'bundles.x.kl: expected a finite number, found "0.1"'),
    "infinity": (("kl", math.inf), "bundles.x.kl: expected a finite number, found Infinity"),
    "NaN": (("top1", math.nan), "bundles.x.top1: expected a finite number, found NaN"),
    "an enormous integer": (("kl", 10**400), "bundles.x.kl: expected a finite number, found 1000"),
    "true": (("images", True), "bundles.x.images: expected an integer of at least 0, found true"),
    "a list with text": (("stage_kl", [1, "a"]), 'bundles.x.stage_kl[1]: expected a finite number, found "a"'),
    "no list": (("stage_kl", 1), "bundles.x.stage_kl: expected a list, found 1"),
    "an empty list": (("stage_kl", []), "bundles.x.stage_kl: expected a number for each stage, found []"),
    "other stages": (("stage_top1", [1]), "bundles.x.stage_top1: expected 2 numbers, as in stage_kl, found [1]"),
}


@pytest.mark.parametrize(("change", "message"), WRONG.values(), ids=WRONG.keys())
def test_a_wrong_value_is_refused_by_its_place(tmp_path: Path, change: tuple[str, Any], message: str) -> None:
    document = evaluate_json({})
    document["bundles"]["x"] = agreement(0.1) | dict([change])
    assert refusal(document, tmp_path).startswith(message)


def test_a_missing_key_is_named(tmp_path: Path) -> None:
    document = bench_json({"a": 1.0})
    del document["measurements"][0]["speedup"]["low"]
    assert refusal(document, tmp_path) == 'key "measurements[0].speedup.low" is missing'


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe", b"[" * 100_000], ids=["empty", "cut", "bytes", "deep"])
def test_no_json_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.json").write_bytes(content)
    with pytest.raises(NextscaleError, match=r"a\.json: no JSON: "):
        read_inputs([tmp_path / "a.json"])


@pytest.mark.parametrize(
    "changes",
    [{"target": np.ones(3)}, {"before": np.zeros((2, 3), int)}, {"after": np.ones((2, 4), int)},
     {"target": np.full((2, 3), np.nan)}, {"before": np.ones((2, 3))}],
    ids=["one dimension", "no tokens", "other shape", "NaN", "floats"],
)  # fmt: skip
def test_damaged_frequencies_are_refused(tmp_path: Path, changes: dict[str, Any]) -> None:
    with pytest.raises(NextscaleError, match=r"frequencies\.npz: .*: expected frequencies"):
        read_inputs([write_calibration(tmp_path / "maps", **changes)])


# Which figures belong together


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("/a/b/int8", "/a/b/int8", True),
        ("/a/b/int8", "b/int8", True),
        ("/a/b/int8", "./int8/", True),
        ("../b/int8", "/a/b/int8", True),
        ("/a/b/int8", "/c/b/int8", False),
        ("a/int8", "b/int8", False),
        ("int8", "xint8", False),
    ],
)
def test_same_path(one: str, other: str, same: bool) -> None:
    assert same_path(one, other) is same_path(other, one) is same


def rows_of(tmp_path: Path, *documents: object) -> dict[str, Any]:
    paths = [write_json(tmp_path / f"{i}.json", document) for i, document in enumerate(documents)]
    return {row.label: row for row in collect_rows(read_inputs(paths))}


def test_figures_are_joined_by_path_and_full_precision_is_first(tmp_path: Path) -> None:
    rows = rows_of(
        tmp_path,
        bench_json({"/home/me/out/int8": 3.0, "/home/me/out/fp32": 2.0}),
        evaluate_json({"out/int8": 0.05}),
        metrics_json({"int8": "bundle", "fp32": "noise floor"}),
    )
    assert list(rows) == ["fp32", "int8"]
    assert (rows["fp32"].original, rows["int8"].original) == (True, False)
    assert (rows["int8"].kl.mean, rows["int8"].speed.images_per_second.mean) == (0.05, 3.0)
    assert rows["int8"].pictures.score == Interval(12.345, 12.345 - 0.1, 12.345 + 0.1)
    assert (rows["fp32"].pictures, rows["fp32"].noise_floor.role) == (None, "noise floor")
    assert rows["fp32"].color != rows["int8"].color


def test_equal_names_get_as_much_of_their_paths_as_tells_them_apart(tmp_path: Path) -> None:
    assert list(rows_of(tmp_path, bench_json({"/x/a/int8": 1.0, "/x/b/int8": 1.0, "/x/b/other": 1.0}))) == [
        "a/int8", "b/int8", "other",
    ]  # fmt: skip


def test_only_figures_measured_alike_are_in_one_column(tmp_path: Path) -> None:
    rows = rows_of(
        tmp_path,
        evaluate_json({"a": 0.1}),
        evaluate_json({"a": 0.2, "b": 0.3}, cfg_scale=1.5),
        bench_json({"a": 1.0}),
        bench_json({"b": 1.0}, cpu="another"),
        metrics_json({"a": "bundle"}),
        metrics_json({"b": "bundle"}, images=5),
    )
    assert rows["a"].kl.mean == 0.1
    assert rows["a"].speed
    assert rows["a"].pictures
    assert rows["b"].kl is rows["b"].speed is rows["b"].pictures is None


def test_the_build_s_agreement_is_the_last_resort(tmp_path: Path, damaged: Path) -> None:
    manifest = read_manifest(damaged)
    manifest["recipe"] = {"name": "mine", "agreement": {"kl": 0.25, "top1": 0.5}}
    write_manifest(damaged, manifest)
    assert "0.2500 at build" in page_of(damaged).words
    evaluated = write_json(tmp_path / "e.json", evaluate_json({"damaged": 0.125}))
    words = page_of(damaged, evaluated).words
    assert "0.1250 ± 0.0010" in words
    assert "at build" not in words


# The page


def test_the_summary_has_every_figure(tmp_path: Path) -> None:
    documents = (
        evaluate_json({"out/int8": 0.05, "out/other": 0.2}),
        bench_json({"out/fp32": 2.0, "out/int8": 3.0, "out/other": 4.0}),
        metrics_json({"out/fp32": "full precision", "out/int8": "bundle"}),
        theta_json(),
    )
    found = page_of(
        *(write_json(tmp_path / f"{i}.json", document) for i, document in enumerate(documents)),
        write_calibration(tmp_path / "maps"),
    )
    for expected in (
        "A title", "CPU X, 2 logical CPUs, avx2 (speed, image metrics)", "0.0500 ± 0.0010", "80.0%", "3.00 ± 0.10",
        "1.50", "99.25", "12.35 ± 0.10", "3.50 ± 0.10", "int8 is nearest to full precision", "other is fastest",
        "chosen for 1.00%", "5 of 7 wanted tokens were reassigned", "spinning on", KL_IN_WORDS,
    ):  # fmt: skip
        assert expected in found.words
    kinds = [source.partition(";")[0] for source in found.sources]
    assert kinds == ["data:image/svg+xml"] * 5 + ["data:image/png"]


def test_nothing_is_loaded_from_elsewhere(tmp_path: Path) -> None:
    document = report_page(read_inputs([write_json(tmp_path / "b.json", bench_json({"a": 1.0}))]), [], "t")
    assert not re.search(r"<(script|link|iframe|object)|@import|url\(", document)
    assert all(source.startswith("data:image/") for source in Structure(document).sources)


def test_the_same_inputs_give_the_same_page(tmp_path: Path) -> None:
    inputs = read_inputs(
        [write_json(tmp_path / "b.json", bench_json({"a": 1.0})), write_calibration(tmp_path / "maps")]
    )
    assert report_page(inputs, [], "t") == report_page(inputs, [], "t")


def test_text_from_files_is_text(tmp_path: Path, damaged: Path) -> None:
    manifest = read_manifest(damaged)
    manifest["name"] = manifest["licence"] = HOSTILE
    manifest["recipe"] = {
        "name": HOSTILE,
        HOSTILE: {HOSTILE: [HOSTILE, "\ud800"]},
        "kernels": {HOSTILE: {"a": HOSTILE}},
    }
    write_manifest(damaged, manifest)
    bench = bench_json({HOSTILE: 1.0, f"_{HOSTILE}": 2.0}, cpu=HOSTILE)
    bench["settings"][HOSTILE] = HOSTILE
    evaluate = evaluate_json({HOSTILE: 0.1, f"_{HOSTILE}": 0.2, "日本": 0.3})
    metrics = metrics_json({HOSTILE: "bundle"}) | {HOSTILE: {HOSTILE: [HOSTILE]}, "versions": {"a": [HOSTILE]}}
    paths = [write_json(tmp_path / f"{i}.json", document) for i, document in enumerate((bench, evaluate, metrics))]
    document = report_page(read_inputs([damaged, *paths]), [], HOSTILE)
    document.encode()
    assert "<script" not in document
    assert HOSTILE in Structure(document).words


def test_where_recipes_differ(tmp_path: Path, fake_bundle: Path) -> None:
    bundles = []
    for name, bits in (("a", 8), ("b", 4)):
        (tmp_path / name).mkdir()
        for file in fake_bundle.iterdir():
            (tmp_path / name / file.name).write_bytes(file.read_bytes())
        manifest = read_manifest(fake_bundle)
        manifest["recipe"] = {"name": name, "weights": {"bits": bits, "range": "mse"}, "activations": {"bits": 8}}
        write_manifest(tmp_path / name, manifest)
        bundles.append(tmp_path / name)
    words = page_of(*bundles).words
    differing = words[words.index("Where they differ") : words.index("folder")]
    assert "weights.\nbits" in differing
    assert "range" not in differing
    assert "4/8" in words


def test_nothing_given_is_an_empty_page() -> None:
    assert "A title" in Structure(report_page(Inputs(), [], "A title")).words


def test_html_escapes_text_and_attributes() -> None:
    assert element("p", text("<&>"), class_='"') == '<p class="&quot;">&lt;&amp;&gt;</p>'
    assert "<th" not in table([], [[text("a")]])
    assert "<title>&lt;b&gt;</title>" in page("<b>", [])


# Plots


def test_front_holds_those_that_none_beats() -> None:
    from nextscale.report._plots import Point, pareto_front

    def point(speed: float, kl: float) -> Point:
        return Point("", "", Interval(speed, speed, speed), kl, 0.0, True)

    points = [point(1, 0.1), point(2, 0.3), point(1.5, 0.4), point(0.5, 0.05), point(0.4, 0.05), point(2, 0.35)]
    assert pareto_front(points) == [points[3], points[0], points[1]]


def test_many_crowded_points_and_lines_are_drawn() -> None:
    from nextscale.report._plots import Line, Point, speed_plot, stages_plot

    speed = Interval(2.0, math.nan, math.nan)
    points = [Point(f"bundle {i}" * 4, "#0072b2", speed, 0.1 * 3**i, math.nan, i % 2 == 0) for i in range(30)]
    assert speed_plot(points, None, "images/s").startswith(b"<?xml")
    lines = [Line("name " * 12, "#0072b2", [0.0, 1e-9, 1e9]) for _ in range(30)]
    assert stages_plot(lines, "KL").startswith(b"<?xml")


# Pictures


@pytest.fixture(scope="module")
def model_bundles(fp32_bundle: Path, int8_bundle: Path) -> list[Bundle]:
    return [Bundle.open(int8_bundle), Bundle.open(fp32_bundle)]


SETTINGS = SheetSettings(images=10, seed=3, batch_size=4, session=SessionOptions(threads=1))


def test_sheets_are_the_bundles_pictures(model_bundles: list[Bundle]) -> None:
    int8, fp32 = model_bundles
    drawn: list[int] = []
    free, forced = make_sheets(model_bundles, fp32, SETTINGS, lambda bundle, images: drawn.append(images))
    assert sum(drawn) == sheet_images(model_bundles, fp32, SETTINGS) == 30
    assert [row.bundle for row in free.rows] == [row.bundle for row in forced.rows] == [fp32, int8]
    assert sorted(free.subjects.class_labels) == list(range(10))
    original = Generator(fp32).generate(free.subjects.class_labels, seed=3)
    other = Generator(int8).generate(free.subjects.class_labels, seed=3)
    np.testing.assert_array_equal(free.rows[0].images, original.images)
    np.testing.assert_array_equal(free.rows[1].images, other.images)
    assert free.rows[0].same is None
    assert free.rows[1].same == np.mean(original.token_maps == other.token_maps)
    tokens = np.full_like(original.token_maps, -1)
    tokens[:, :5] = original.token_maps[:, :5]  # stages of 1 and 4 tokens
    common = Generator(int8).generate(free.subjects.class_labels, seed=3, forced_tokens=tokens)
    assert (free.forced_stages, forced.forced_stages) == (0, 2)
    np.testing.assert_array_equal(forced.rows[0].images, original.images)
    np.testing.assert_array_equal(forced.rows[1].images, common.images)
    assert forced.rows[1].same == np.mean(original.token_maps[:, 5:] == common.token_maps[:, 5:])


def test_strips_hold_eight_pictures_and_their_parameters(model_bundles: list[Bundle]) -> None:
    (sheet,) = make_sheets(model_bundles[:1], None, SETTINGS)
    assert sheet.rows[0].same is None
    strips = sheet.strips(sheet.rows[0])
    assert [len(names) for names in sheet.captions()] == [8, 2]
    for number, (data, mime) in enumerate(strips):
        image = Image.open(io.BytesIO(data))
        assert (mime, image.size) == ("image/png", (8 * 9, 8))  # pictures of 8 pixels and one between
        parameters = json.loads(image.info["nextscale"])
        assert (parameters["seed"], parameters["first_image"]) == (3, 8 * number)
    first = np.asarray(Image.open(io.BytesIO(strips[1][0])))
    np.testing.assert_array_equal(first[:, :8], sheet.rows[0].images[8])


def test_chosen_classes_share_the_pictures(model_bundles: list[Bundle]) -> None:
    settings = SheetSettings(images=5, classes=("class 7", "2"))
    assert settings.labels(model_bundles[0]).tolist() == [7, 7, 7, 2, 2]


def test_sheets_are_in_the_page(model_bundles: list[Bundle]) -> None:
    inputs = Inputs(tuple(model_bundles))
    ((group, original),) = by_model(inputs.bundles)
    document = Structure(report_page(inputs, make_sheets(group, original, SETTINGS), "t"))
    assert len(document.sources) == 2 * 2 * 2
    assert "Pictures after two common stages" in document.words
    data = base64.b64decode(document.sources[0].partition(",")[2])
    assert Image.open(io.BytesIO(data)).size == (72, 8)


def test_a_pipe_is_refused(tmp_path: Path, make_fifo: Callable[[Path], Path]) -> None:
    with pytest.raises(NextscaleError, match="not a regular file"):
        read_inputs([make_fifo(tmp_path / "result.json")])
