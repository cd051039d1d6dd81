from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from fake_bundle import CLASS_NAMES, LATENT, NUM_CLASSES, PIXELS, read_manifest, write_fake_bundle, write_manifest
from fake_measures import FakeClassifier, FakeDistance
from PIL import Image

from nextscale.evaluate import _kept_figures
from nextscale.evaluate.imagenet_classes import imagenet_ids
from nextscale.graph_passes.recipe import load_recipe
from nextscale.paper import _editing, table_3
from nextscale.paper._class_scores import ClassClipScore, ClassProbability, prompt_names
from nextscale.paper._editing import (
    CLASS_EDITING,
    INPAINTING,
    OUTPAINTING,
    REGION,
    WHOLE,
    Editing,
    Measures,
    edit_results,
    edited,
    pixel_mask,
    regions,
    remade,
)
from nextscale.paper._estimated_time import build_seconds
from nextscale.paper._photographs import Photographs, fitted, read_photographs
from nextscale.paper._picture_sheet import GAP, HEADER, LEAST_SIDE, MARGIN
from nextscale.paper._rows import NOISE_FLOOR, method_of
from nextscale.paper._table_3_page import markdown
from nextscale.paper._table_3_sheet import sheet
from nextscale.paper.recipe_bundles import RecipeBundle, UnbuiltBundle
from nextscale.paper.table_3 import ROWS, Table3, jobs, measure_table_3, plan_table_3
from nextscale.runtime import Bundle, Generator
from nextscale.runtime._errors import NextscaleError
from nextscale.runtime._session import SessionOptions

N = 9
ONE_THREAD = SessionOptions(threads=1, ops="stock")
EDITING = Editing(batch_size=4)
DISTANCES = {"alex": FakeDistance("alex"), "vgg": FakeDistance("vgg")}
# "tabby cat" is not ImageNet's name of that class.
SCORE = ClassProbability(FakeClassifier(), imagenet_ids(CLASS_NAMES, NUM_CLASSES))
MEASURES = Measures(DISTANCES, SCORE)


@pytest.fixture
def photographs() -> Photographs:
    rng = np.random.default_rng(0)
    labels = np.array([0, 4, 2, 0, -1, 0, 3, 0, 1])
    return Photographs(rng.integers(0, 256, (N, PIXELS, PIXELS, 3), np.uint8), labels, 20)


@pytest.fixture
def generator(fake_encoder_bundle: Path) -> Generator:
    return Generator(fake_encoder_bundle, ONE_THREAD)


@pytest.fixture(scope="module")
def bundles(fake_encoder_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> list[RecipeBundle]:
    """Full precision, and another bundle of other weights that says it is a recipe."""
    other = write_fake_bundle(tmp_path_factory.mktemp("rows") / "brecq-w4a4", 1, encoder=True)
    recipe = {"name": "brecq-w4a4", "weights": {"bits": 4}, "activations": {"bits": 4}, "calibration": {"images": 64}}
    write_manifest(other, read_manifest(other) | {"recipe": recipe})
    return [RecipeBundle("fp32", Bundle.open(fake_encoder_bundle)), RecipeBundle("brecq-w4a4", Bundle.open(other))]


def measure(bundles: list[RecipeBundle], photographs: Photographs, work: Path, **options: object) -> Table3:
    measures = options.pop("measures", MEASURES)
    return measure_table_3(bundles, photographs, measures, EDITING, work, options=ONE_THREAD, **options)  # type: ignore[arg-type]


def test_boxes_have_half_the_sides_and_stay_when_there_are_more(generator: Generator) -> None:
    model = generator.bundle.model
    boxes = regions(model, 50, seed=3)
    assert boxes.shape == (50, LATENT, LATENT)
    assert (boxes.sum((1, 2)) == 4).all()  # 2 x 2 of 3 x 3
    assert len({box.tobytes() for box in boxes}) == 4  # all places
    assert np.array_equal(regions(model, 7, seed=3), boxes[:7])
    assert not np.array_equal(regions(model, 50, seed=4), boxes)
    assert np.array_equal(remade(OUTPAINTING, boxes[0]), ~boxes[0])
    assert np.array_equal(remade(INPAINTING, boxes[0]), boxes[0])


def test_photographs_are_edited_as_one_by_one(generator: Generator, photographs: Photographs) -> None:
    """Several at a time, each with its own mask: the pictures of `Generator.edit`, blended as there."""
    model, editing = generator.bundle.model, replace(EDITING, seed=5, cfg_scale=2.0)
    boxes, labels = regions(model, 4, seed=0), np.array([5, 0, 3, 5])
    made = edited(
        generator, photographs.images[:4], generator.encode(photographs.images[:4]), boxes, labels, range(4), editing
    )
    for i, (image, box, label) in enumerate(zip(photographs.images[:4], boxes, labels, strict=True)):
        one = generator.edit(
            image, pixel_mask(box, model), [int(label)], first_image=i, seed=5, cfg_scale=2.0, top_p=editing.top_p
        )
        assert np.array_equal(made[i], one.images[0])
        assert np.array_equal(made[i][~pixel_mask(box, model)], image[~pixel_mask(box, model)])


def test_rows_are_measured_and_compared_with_full_precision(
    bundles: list[RecipeBundle], photographs: Photographs, tmp_path: Path
) -> None:
    told = list[tuple[str, int]]()
    table = measure(
        bundles, photographs, tmp_path, left_out=["ours: no"], on_images=lambda name, done: told.append((name, done))
    )
    assert told == [(name, done) for name in ("fp32", NOISE_FLOOR, "brecq-w4a4") for done in (0, 4, 8, 9)]
    full, floor, brecq = table.rows
    columns = ["inpainting alex", "inpainting vgg", "outpainting alex", "outpainting vgg", WHOLE, REGION]
    assert list(full.figures) == columns
    assert (full.method, full.bits, full.differences) == ("Full precision", "32/32", {})
    assert (floor.name, floor.method) == (NOISE_FLOOR, "Full precision, another seed")
    assert (brecq.method, brecq.bits, brecq.calibration_images) == ("BRECQ", "4/4", 64)
    assert brecq.paper is not None
    assert brecq.paper.inpainting == 0.2912
    for row in (floor, brecq):
        for column in columns:
            difference, mine, original = row.differences[column], row.figures[column], full.figures[column]
            assert difference is not None
            assert mine is not None
            assert original is not None
            assert difference.mean == pytest.approx(mine.mean - original.mean, abs=1e-9)
            assert difference.low < difference.mean < difference.high
    inside, outside = (full.figures[f"{task} alex"] for task in (INPAINTING, OUTPAINTING))
    assert inside is not None
    assert outside is not None
    assert 0 < outside.mean != inside.mean > 0
    assert table.photographs == {"edited": N, "available": 20, "enlarged": 0, "with a class": 7}
    # Of the 7 photographs only goldfish (0) have a probability in the fake classifier.
    known = [i for i, label in enumerate(photographs.labels) if label not in (-1, 1)]
    expected = SCORE(photographs.images[known], photographs.labels[known]).mean()
    whole = table.photographs_scored[WHOLE]
    assert whole is not None
    assert whole.mean == pytest.approx(expected)

    page = markdown(table)
    for text in (
        "| BRECQ | 4/4 |",
        "0.2912 | 0.2207",
        "no CLIP score",
        "left out: ours: no",
        "on 7 photographs",
        "64 images",
    ):
        assert text in page
    document = json.loads(json.dumps(table.to_json(), allow_nan=False))
    assert [row["name"] for row in document["rows"]] == ["fp32", NOISE_FLOOR, "brecq-w4a4"]
    assert document["rows"][2]["differences"]["inpainting alex"].keys() == {"mean", "low", "high"}
    assert "sheet" not in document


def test_the_sheet_has_a_line_for_each_photograph(
    bundles: list[RecipeBundle], photographs: Photographs, tmp_path: Path
) -> None:
    table = measure(bundles, photographs, tmp_path)
    assert [row.task for row in table.sheet] == [INPAINTING] * 3 + [OUTPAINTING] * 3 + [CLASS_EDITING] * 2
    pixels = sheet(table)
    factor = -(-LEAST_SIDE // PIXELS)
    cell = PIXELS * factor + GAP
    assert pixels.shape == (HEADER + 8 * cell, MARGIN + 5 * cell, 3)
    first = table.sheet[0]
    photograph, masked, *results = (
        pixels[HEADER : HEADER + cell - GAP : factor, MARGIN + c * cell : MARGIN + (c + 1) * cell - GAP : factor]
        for c in range(5)
    )
    assert np.array_equal(photograph, photographs.images[0])
    assert (masked[first.mask] == 128).all()
    assert np.array_equal(masked[~first.mask], photograph[~first.mask])
    assert np.array_equal(results, first.pictures)
    for row in table.sheet:
        assert all(np.array_equal(picture[~row.mask], row.photograph[~row.mask]) for picture in row.pictures)


class Brightness:
    """Gives a picture its brightness, and remembers the prompts."""

    name = "CLIP of a test"

    def __init__(self) -> None:
        self.prompts = set[str]()

    def __call__(self, images: np.ndarray, prompts: Sequence[str]) -> np.ndarray:
        assert len(images) == len(prompts)
        self.prompts |= set(prompts)
        return images.mean((1, 2, 3)) / 255


def test_the_clip_score_stands_beside_the_papers(
    bundles: list[RecipeBundle], photographs: Photographs, tmp_path: Path
) -> None:
    """Of all classes that have a name, ImageNet's or not."""
    clip = Brightness()
    score = ClassClipScore(clip, prompt_names(CLASS_NAMES, NUM_CLASSES))
    table = measure(bundles, photographs, tmp_path, measures=Measures(DISTANCES, score))
    assert (table.class_score, table.classifier) == ("CLIP score", "CLIP of a test")
    assert table.photographs["with a class"] == (photographs.labels >= 0).sum()
    names = {CLASS_NAMES[label] for label in photographs.labels if label >= 0}
    assert clip.prompts == {f"a photo of {name.split(',')[0]}" for name in names}
    whole = table.photographs_scored[WHOLE]
    assert whole is not None
    assert whole.mean == pytest.approx(photographs.images[photographs.labels >= 0].mean() / 255)
    page = markdown(table)
    assert "| CLIP score, picture | CLIP score, box | paper: inpaint | paper: outpaint | paper: CLIP score |" in page
    assert "0.2912 | 0.2207 | 0.2289 |" in page
    assert 'the features that CLIP of a test has of the picture and of "a photo of [class]"' in page
    assert "class probability" not in page


def test_prompts_have_the_first_name_of_a_class() -> None:
    assert prompt_names(["tench, Tinca tinca", "tabby cat"], 2) == ["tench", "tabby cat"]
    assert prompt_names(None, 1000)[:2] == ["tench", "goldfish"]
    assert prompt_names(None, 10) == []


def test_without_a_class_there_is_no_class_editing(
    bundles: list[RecipeBundle], photographs: Photographs, tmp_path: Path
) -> None:
    table = measure(bundles, photographs, tmp_path, measures=Measures(DISTANCES))
    assert all(CLASS_EDITING not in column for row in table.rows for column in row.figures)
    assert [row.task for row in table.sheet] == [INPAINTING] * 3 + [OUTPAINTING] * 3
    assert "no class-conditional editing" in markdown(table)
    assert sheet(table).shape[2] == 3


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many photographs were encoded, call by call."""
    calls = list[int]()
    encode = Generator.encode
    monkeypatch.setattr(Generator, "encode", lambda self, images: (calls.append(len(images)), encode(self, images))[1])
    return calls


def test_an_interrupted_run_goes_on(
    generator: Generator,
    photographs: Photographs,
    tmp_path: Path,
    counted: list[int],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def run(given: Photographs = photographs, editing: Editing = EDITING) -> dict[str, np.ndarray]:
        counted.clear()
        return dict(edit_results(generator, given, MEASURES, editing, tmp_path, on_images).figures)

    def on_images(done: int) -> None:
        if done == 8 and interrupts:
            raise KeyboardInterrupt

    interrupts = True
    with pytest.raises(KeyboardInterrupt):
        run()
    interrupts = False
    there = run()
    assert counted == [1]
    assert run()[WHOLE].shape == (N,)
    assert counted == []
    fewer = replace(photographs, images=photographs.images[:5], labels=photographs.labels[:5])
    np.testing.assert_array_equal(run(fewer)["inpainting alex"], there["inpainting alex"][:5])
    assert counted == []
    (path,) = tmp_path.iterdir()

    at_once = edit_results(generator, photographs, MEASURES, EDITING, tmp_path_of(tmp_path, "new")).figures
    assert at_once.keys() == there.keys()
    for column, values in at_once.items():
        np.testing.assert_array_equal(values, there[column])

    # Other photographs begin again; another seed has a file of its own.
    run(replace(photographs, labels=photographs.labels[::-1].copy()))
    assert counted == [4, 4, 1]
    run(editing=replace(EDITING, seed=1))
    assert counted == [4, 4, 1]
    for content in (b"", b"no npz"):
        path.write_bytes(content)
        with pytest.raises(NextscaleError, match="damaged"):
            run()
    np.savez(path, other=np.zeros(1))
    with pytest.raises(NextscaleError, match="damaged; delete the file"):
        run()


def tmp_path_of(tmp_path: Path, name: str) -> Path:
    folder = tmp_path.parent / f"{tmp_path.name}-{name}"
    folder.mkdir()
    return folder


def test_long_runs_save_meanwhile(
    generator: Generator, photographs: Photographs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_kept_figures, "SAVE_EVERY", -1.0)
    written = list[int]()
    write = _editing._write
    monkeypatch.setattr(
        _editing, "_write", lambda path, results, digests: (written.append(len(results)), write(path, results, digests))
    )
    edit_results(generator, photographs, MEASURES, EDITING, tmp_path)
    assert written == [4, 8, 9]


def test_a_plan_counts_what_is_left(bundles: list[RecipeBundle], photographs: Photographs, tmp_path: Path) -> None:
    first = replace(photographs, images=photographs.images[:4], labels=photographs.labels[:4])
    measure(bundles[:1], first, tmp_path)
    unbuilt = UnbuiltBundle("ours-w4a4", load_recipe("ours-w4a4"), 9, 1e3)
    planned = plan_table_3([*bundles, unbuilt], photographs, MEASURES, EDITING, tmp_path, ONE_THREAD)
    assert [(step.name, step.basis, step.left["photographs"]) for step in planned] == [
        ("fp32", "its own batch", 5), (NOISE_FLOOR, "its own batch", 5), ("brecq-w4a4", "its own batch", N),
        ("ours-w4a4", "full precision's batch", N),
    ]  # fmt: skip
    assert planned[0].seconds == planned[1].seconds > 0
    # An image is a quarter of a photograph.
    building = build_seconds(unbuilt.recipe, planned[0].seconds / 5 / 4)
    assert planned[3].seconds == pytest.approx(planned[0].seconds / 5 * N + building)
    assert [step.bytes for step in planned] == [0, 0, 0, 9]


def test_rows_are_the_papers_and_ours() -> None:
    assert len(ROWS) == len(set(ROWS)) == 16
    assert {"fp32", "default", "default-w4a4", "ours-litevar-w6a6", "brecq-w8a8"} < set(ROWS)
    assert set(table_3.PAPER) < set(ROWS)
    assert [method_of(name) for name in ("fp32", "default", "default-w4a4", "ours-litevar-w6a6", "rtn-w4a4")] == [
        "Full precision", "default", "default", "Ours+LiteVAR", "rtn-w4a4",
    ]  # fmt: skip


def test_bundles_that_cannot_be_compared_are_refused(
    bundles: list[RecipeBundle], fake_bundle: Path, fp32_bundle: Path, tmp_path: Path
) -> None:
    for given, message in (
        (bundles[1:], "rows: 0 of full precision"),
        ([bundles[0], RecipeBundle("int8", Bundle.open(fake_bundle))], "has no encoder; build it again"),
        ([bundles[0], RecipeBundle("int8", Bundle.open(fp32_bundle))], "not the model of"),
    ):
        with pytest.raises(NextscaleError, match=message):
            jobs(given, EDITING)


# Photographs


def npz(folder: Path, **arrays: np.ndarray) -> Path:
    np.savez(folder / "photographs.npz", **arrays)
    return folder / "photographs.npz"


def test_photographs_of_a_file_are_drawn_by_a_seed(generator: Generator, tmp_path: Path) -> None:
    model = generator.bundle.model
    images = np.random.default_rng(1).integers(0, 256, (20, PIXELS, PIXELS, 3), np.uint8)
    path = npz(tmp_path, images=images, labels=np.arange(20) % NUM_CLASSES)
    few, many = (read_photographs(path, model, count, seed=0) for count in (6, 50))
    assert (len(few), len(many), many.available) == (6, 20, 20)
    assert np.array_equal(many.images[:6], few.images)
    assert np.array_equal(many.digests()[:6], few.digests())
    order = np.random.default_rng(0).permutation(20)
    assert np.array_equal(few.images, images[order[:6]])
    assert np.array_equal(few.labels, order[:6] % NUM_CLASSES)
    assert not np.array_equal(read_photographs(path, model, 6, seed=1).images, few.images)


def test_photographs_of_a_folder_are_fitted(generator: Generator, tmp_path: Path) -> None:
    model = generator.bundle.model
    wide = np.zeros((24, 60, 3), np.uint8)
    wide[:, 18:42] = 200  # the middle square
    Image.fromarray(wide).save(tmp_path / "a.png")
    Image.fromarray(wide[..., 0].T).save(tmp_path / "b.webp", lossless=True)
    (tmp_path / ".hidden").write_text("no picture")
    (tmp_path / "folder").mkdir()
    told = list[tuple[int, int]]()
    found = read_photographs(tmp_path, model, 10, 0, lambda done, total: told.append((done, total)))
    assert told == [(1, 2), (2, 2)]
    assert found.images.shape == (2, PIXELS, PIXELS, 3)
    assert (found.images == 200).all()
    assert (found.labels == -1).all()
    assert np.array_equal(fitted(found.images[0], model), found.images[0])


IMAGES = np.zeros((3, 12, 12, 3), np.uint8)
BAD_FILES: dict[str, tuple[Callable[[Path], Path], str]] = {
    "missing": (lambda folder: folder / "none.npz", r"none\.npz: cannot be read: No such file"),
    "empty folder": (lambda folder: folder, "0 photographs; expected at least 2"),
    "no images": (lambda folder: npz(folder, other=IMAGES), "images: expected uint8 .*, found none"),
    "floats": (lambda folder: npz(folder, images=IMAGES / 2), "images: expected uint8"),
    "one": (lambda folder: npz(folder, images=IMAGES[:1]), "1 photographs; expected at least 2"),
    "empty pictures": (lambda folder: npz(folder, images=IMAGES[:, :0]), "images: expected uint8"),
    "too small": (
        lambda folder: npz(folder, images=IMAGES[:, 1:]),
        "3 of 3 photographs are smaller than the model's pictures, 12 x 12 pixels",
    ),
    "two labels": (lambda folder: npz(folder, images=IMAGES, labels=np.zeros(2, int)), "labels: expected integers"),
    "labels that are no integers": (lambda folder: npz(folder, images=IMAGES, labels=np.zeros(3)), "labels: expected"),
    "labels of another model": (
        lambda folder: npz(folder, images=IMAGES, labels=np.array([0, 9, 1])),
        "labels: expected 0 to 4, the model's classes, or -1 for none; found 0 to 9",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("make", "message"), BAD_FILES.values(), ids=BAD_FILES.keys())
def test_bad_photographs_are_one_line(
    make: Callable[[Path], Path], message: str, generator: Generator, tmp_path: Path
) -> None:
    with pytest.raises(NextscaleError, match=message) as caught:
        read_photographs(make(tmp_path), generator.bundle.model, 10, 0)
    assert "\n" not in str(caught.value)


def test_a_few_small_photographs_are_enlarged(
    generator: Generator, bundles: list[RecipeBundle], tmp_path: Path
) -> None:
    for i, side in enumerate((PIXELS, PIXELS + 1, PIXELS - 1, PIXELS - 2)):
        Image.new("RGB", (PIXELS, side)).save(tmp_path / f"{i}.png")
    found = read_photographs(tmp_path, generator.bundle.model, 10, 0)
    assert found.enlarged == 2
    (work := tmp_path / "work").mkdir()
    assert "- 2 of them were smaller, and enlarged\n" in markdown(
        measure(bundles, found, work, measures=Measures(DISTANCES))
    )
    (tmp_path / "1.png").unlink()
    with pytest.raises(NextscaleError, match="2 of 3 photographs are smaller"):
        read_photographs(tmp_path, generator.bundle.model, 10, 0)


def test_a_file_that_is_no_picture_is_named(generator: Generator, tmp_path: Path) -> None:
    for name in ("a.png", "b.txt"):
        (tmp_path / name).write_text("no picture")
    with pytest.raises(NextscaleError, match=r"(a\.png|b\.txt): no picture"):
        read_photographs(tmp_path, generator.bundle.model, 10, 0)
