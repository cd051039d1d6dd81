"""`nextscale edit`: what it makes, where it writes it, and what it refuses."""

from __future__ import annotations

import json
import os
import signal
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fake_bundle import NUM_CLASSES, PIXELS, read_manifest, write_fake_bundle, write_manifest
from numpy.typing import NDArray
from PIL import Image

from nextscale.cli.main import main
from nextscale.runtime import Generator
from nextscale.runtime import _stage_runner as stage_runner
from nextscale.runtime._edit import blend
from nextscale.runtime.image_io import read_picture_parameters

PHOTO = np.random.default_rng(7).integers(0, 256, (30, 50, 3)).astype(np.uint8)
MASK = np.zeros(PHOTO.shape[:2], np.bool_)
MASK[5:20, 21:40] = True
SMALL = np.random.default_rng(8).integers(0, 256, (PIXELS, PIXELS, 3)).astype(np.uint8)
SMALL_MASK = np.zeros((PIXELS, PIXELS), np.bool_)
SMALL_MASK[:, 4:] = True


@pytest.fixture
def bundle(fake_encoder_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The bundle, with a folder of pictures to work in."""
    monkeypatch.chdir(tmp_path)
    save("photo.png", PHOTO)
    save("mask.png", MASK)
    save("small.png", SMALL)
    save("small_mask.png", SMALL_MASK)
    return fake_encoder_bundle


# The fake model is sure of its tokens, but for such sampling.
FREE = ["--variation", 1, "--cfg-scale", 0, "--top-k", 0, "--top-p", 0]


def save(path: str | Path, array: NDArray[Any]) -> None:
    Image.fromarray(array).save(path)


def read(path: str | Path = "edited.png") -> NDArray[np.uint8]:
    with Image.open(path) as image:
        return np.asarray(image)


def parameters_of(path: str | Path = "edited.png") -> dict[str, Any]:
    found = read_picture_parameters(path)
    assert found is not None
    return found


def run(*arguments: object) -> int:
    return main(["edit", *map(str, arguments)])


def test_a_picture_of_the_models_size_is_what_the_library_makes(
    bundle: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(bundle, "small.png", "--mask", "small_mask.png", "--class", "goldfish", "--seed", 5, "--top-k", 3) == 0
    captured = capsys.readouterr()
    assert (captured.out, captured.err) == ("edited.png\n", "")
    made = Generator(bundle).edit(SMALL, SMALL_MASK, [0], seed=5, top_k=3)
    np.testing.assert_array_equal(read(), made.images[0])
    parameters = parameters_of()
    assert {name: parameters[name] for name in ("bundle", "recipe", "seed", "top_k", "classes", "class_names")} == {
        "bundle": "fake-0",
        "recipe": "fp32",
        "seed": 5,
        "top_k": 3,
        "classes": [0],
        "class_names": ["goldfish, Carassius auratus"],
    }
    assert parameters["edit"] == {
        "window": [0, 0, PIXELS, PIXELS],
        "keep_stages": 0,
        "feather": 1,
        "share_made_anew": 8 / 12,
    }


def test_more_smooth_is_what_the_library_makes(bundle: Path, tmp_path: Path) -> None:
    smooth = write_fake_bundle(tmp_path / "smooth", encoder=True, smooth=True)
    for on in (False, True):
        assert run(smooth, "small.png", "--mask", "small_mask.png", *(["--more-smooth"] if on else [])) == 0
        np.testing.assert_array_equal(read(), Generator(smooth).edit(SMALL, SMALL_MASK, more_smooth=on).images[0])
        assert parameters_of()["more_smooth"] is on


def test_pixels_outside_the_mask_are_the_photographs(bundle: Path) -> None:
    assert run(bundle, "photo.png", "--mask", "mask.png") == 0
    np.testing.assert_array_equal(read()[~MASK], PHOTO[~MASK])
    assert (read()[MASK] != PHOTO[MASK]).mean() > 0.9
    assert parameters_of()["edit"]["window"] == [0, 15, 30, 30]
    assert parameters_of()["classes"] == [NUM_CLASSES]


def test_a_transparent_part_is_made_anew(bundle: Path) -> None:
    save("clear.png", np.dstack([PHOTO, np.where(MASK, 0, 255).astype(np.uint8)]))
    assert run(bundle, "clear.png", "--out", "a.png") == 0
    assert run(bundle, "photo.png", "--mask", "mask.png", "--out", "b.png") == 0
    np.testing.assert_array_equal(read("a.png"), read("b.png"))
    assert run(bundle, "clear.png", "--box", "0.5,0,1,1", "--out", "c.png") == 0
    np.testing.assert_array_equal(read("c.png")[:15], PHOTO[:15])


def test_a_box_is_made_anew_or_kept(bundle: Path) -> None:
    inside = np.zeros_like(MASK)
    inside[6:24, 20:30] = True
    for options, mask in (([], inside), (["--outpaint"], ~inside)):
        assert run(bundle, "photo.png", "--box", "0.2,0.4,0.8,0.6", *options) == 0
        np.testing.assert_array_equal(read()[~mask], PHOTO[~mask])
        assert (read()[mask] != PHOTO[mask]).mean() > 0.9


def test_an_extension_makes_a_larger_picture(bundle: Path) -> None:
    assert run(bundle, "photo.png", "--extend", "left=0.5", "--extend", "bottom=0.1") == 0
    assert read().shape == (33, 75, 3)
    np.testing.assert_array_equal(read()[:30, 25:], PHOTO)
    assert len(np.unique(read()[:, 0], axis=0)) > 1


def test_an_extension_and_a_mask(bundle: Path) -> None:
    assert run(bundle, "photo.png", "--extend", "left=0.5", "--mask", "mask.png") == 0
    np.testing.assert_array_equal(read()[:, 25:][~MASK], PHOTO[~MASK])
    assert (read()[:, 25:][MASK] != PHOTO[MASK]).mean() > 0.9


@pytest.mark.parametrize(("variation", "kept"), [(0.01, 2), (0.34, 2), (0.67, 1), (1, 0)])
def test_a_variation_keeps_the_first_stages(bundle: Path, variation: float, kept: int) -> None:
    assert run(bundle, "small.png", "--variation", variation, "--class", 1, "--seed", 2) == 0
    assert parameters_of()["edit"]["keep_stages"] == kept
    assert parameters_of()["edit"]["share_made_anew"] == 1
    np.testing.assert_array_equal(read(), Generator(bundle).edit(SMALL, None, [1], keep_stages=kept, seed=2).images[0])


def test_a_variation_within_a_mask(bundle: Path) -> None:
    assert run(bundle, "photo.png", "--variation", 0.4, "--mask", "mask.png") == 0
    np.testing.assert_array_equal(read()[~MASK], PHOTO[~MASK])


def test_without_blending_it_is_the_decoders_picture(bundle: Path) -> None:
    assert run(bundle, "small.png", "--mask", "small_mask.png", "--no-blend") == 0
    raw = Generator(bundle).edit(SMALL, SMALL_MASK, feather=-1).images[0]
    np.testing.assert_array_equal(read(), raw)
    assert parameters_of()["edit"]["feather"] == -1
    for feather in (0, 3, 1000):
        assert run(bundle, "small.png", "--mask", "small_mask.png", "--feather", feather) == 0
        assert parameters_of()["edit"]["feather"] == feather
        np.testing.assert_array_equal(read(), blend(SMALL, raw, SMALL_MASK, feather))


@pytest.mark.parametrize("suffix", ["jpg", "JPEG", "webp"])
def test_lossy_pictures_hold_the_parameters(bundle: Path, suffix: str) -> None:
    out = f"a.{suffix}"
    assert run(bundle, "photo.png", "--mask", "mask.png", "--seed", 3, "--out", out) == 0
    assert read(out).shape == PHOTO.shape
    assert (parameters_of(out)["seed"], parameters_of(out)["edit"]["feather"]) == (3, 2)


def test_each_result_has_a_file(bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = set(os.listdir())
    classes = ["--class", 4, "--class", "goldfish"]
    assert run(bundle, "photo.png", *FREE, *classes, "--count", 2, "--out", "e.png") == 0
    names = [f"e-000{number}.png" for number in range(4)]
    assert capsys.readouterr().out.split() == names
    assert set(os.listdir()) - before == set(names)
    assert [parameters_of(name)["classes"] for name in names] == [[4], [4], [0], [0]]
    assert [parameters_of(name)["first_image"] for name in names] == [0, 1, 2, 3]
    assert len({read(name).tobytes() for name in names}) == 4


def test_results_depend_on_the_seed_and_not_on_the_batch(bundle: Path) -> None:
    found = {}
    for name, options in {
        "a": ["--batch", 1],
        "b": ["--batch", 3],
        "c": ["--batch", 100, "--threads", 1],
        "d": ["--seed", 1],
    }.items():
        arguments = [*FREE, "--class", 4, "--count", 4, "--out", f"{name}.png", *options]
        assert run(bundle, "photo.png", *arguments) == 0
        found[name] = [read(f"{name}-000{number}.png").tobytes() for number in range(4)]
    assert found["a"] == found["b"] == found["c"]
    assert found["a"] != found["d"]


def test_previews_are_blended_and_of_the_photographs_size(bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--mask", "mask.png", "--count", 2, "--top-p", 0, "--cfg-scale", 0]
    assert run(bundle, "photo.png", *options, "--batch", 1, "--previews", "--out", "e.png") == 0
    names = [f"e-000{number}{stages}.png" for stages in ("", "-stage-01", "-stage-02") for number in range(2)]
    assert capsys.readouterr().out.split() == names
    for name in names:
        np.testing.assert_array_equal(read(name)[~MASK], PHOTO[~MASK])
        assert (read(name)[MASK] != PHOTO[MASK]).mean() > 0.9
    assert len({read(name).tobytes() for name in names[::2]}) == 3
    assert [parameters_of(name).get("stages") for name in names] == [None, None, 1, 1, 2, 2]
    assert [parameters_of(name)["first_image"] for name in names] == [0, 1] * 3
    assert run(bundle, "photo.png", *options, "--out", "alone.png") == 0
    np.testing.assert_array_equal(read("alone-0001.png"), read("e-0001.png"))


def test_a_preview_is_what_the_library_has_after_that_stage(bundle: Path) -> None:
    assert run(bundle, "small.png", "--mask", "small_mask.png", "--previews", "--no-blend") == 0
    assert run(bundle, "small.png", "--mask", "small_mask.png", "--previews", "--out", "seam.png") == 0
    seen: list[NDArray[np.uint8]] = []
    Generator(bundle).edit(SMALL, SMALL_MASK, feather=-1, on_stage=lambda stage: seen.extend(stage.preview()))
    for name, preview in zip(("-stage-01", "-stage-02", ""), seen, strict=True):
        np.testing.assert_array_equal(read(f"edited{name}.png"), preview)
        np.testing.assert_array_equal(read(f"seam{name}.png"), blend(SMALL, preview, SMALL_MASK, 1))


def test_a_random_seed_is_told_and_kept(bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(bundle, "photo.png", "--mask", "mask.png", "--seed", "random") == 0
    seed = parameters_of()["seed"]
    assert capsys.readouterr().err == f"seed {seed}\n"
    first = read()
    assert run(bundle, "photo.png", "--mask", "mask.png", "--seed", seed) == 0
    np.testing.assert_array_equal(read(), first)


def test_no_class_is_the_null_class_also_where_one_is_named_so(tmp_path: Path) -> None:
    named = write_fake_bundle(tmp_path / "b", class_names=["null", "a", "b", "c", "d"], encoder=True)
    save(tmp_path / "p.png", SMALL)
    out = tmp_path / "e.png"
    assert run(named, tmp_path / "p.png", "--variation", 1, "--out", out) == 0
    assert parameters_of(out)["classes"] == [NUM_CLASSES]
    assert run(named, tmp_path / "p.png", "--variation", 1, "--class", "null", "--out", out) == 0
    assert parameters_of(out)["classes"] == [0]


@pytest.mark.parametrize("size", [(1, 1), (1, 300), (300, 1), (2, 3), (13, 12), (11, 1000)])
def test_odd_sizes_come_back(bundle: Path, size: tuple[int, int]) -> None:
    pixels = np.random.default_rng(1).integers(0, 256, (*size, 3)).astype(np.uint8)
    save("odd.png", pixels)
    for options in (["--box", "0,0,1,1"], ["--variation", 0.5], ["--extend", "left=4", "--extend", "top=1"]):
        assert run(bundle, "odd.png", *options) == 0
        height, width = size
        added = (height, 4 * width) if "--extend" in options else (0, 0)
        assert read().shape == (height + added[0], width + added[1], 3)
    np.testing.assert_array_equal(read()[-height:, -width:], pixels)


def test_many_large_results_are_in_memory_one_at_a_time(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A result is put together after the one before it was written."""
    from nextscale.cli import edit as command

    seen: list[str] = []
    writer, whole = command.picture_writer, command.Canvas.with_window
    monkeypatch.setattr(command.Canvas, "with_window", lambda *given: (seen.append("made"), whole(*given))[1])
    monkeypatch.setattr(command, "picture_writer", lambda *given: (seen.append("written"), writer(*given))[1])
    assert run(bundle, "photo.png", "--mask", "mask.png", "--count", 3) == 0
    assert seen == ["made", "written"] * 3


def test_a_name_with_control_characters(
    bundle: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    name = "a\x1b[31m\n.png"
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    save(name, PHOTO)
    assert run(bundle, name, "--mask", "mask.png", "--out", "\x1b[32mb.png") == 0
    assert capsys.readouterr().out == "\\x1b[32mb.png\n"
    Path(name).write_bytes(b"none")
    assert run(bundle, name, "--mask", "mask.png", "--out", "\x1b[32mb.png") == 2
    error = capsys.readouterr().err
    assert "\x1b" not in error
    assert error.count("\n") == 1


BOX = ["--box", "0,0,0.5,1"]
BAD_INPUT = {
    "nothing said": ([], "nothing says what to make anew: give --mask, --box, --extend or --variation"),
    "outpaint alone": (["--outpaint"], "--outpaint keeps a box: give --box"),
    "mask and box": ([*BOX, "--mask", "mask.png"], "--mask and --box exclude each other"),
    "no seam": ([*BOX, "--no-blend", "--feather", "1"], "--no-blend and --feather exclude each other"),
    "other mask": (["--mask", "small_mask.png"], "a mask of 12 x 12 pixels; expected the picture's, 50 x 30"),
    "black mask": (["--mask", "black.png"], "error: black.png: all of the mask is black; white marks"),
    "white mask": (["--mask", "white.png"], "error: white.png: all of the mask is white"),
    "no mask": (["--mask", "none.png"], "error: none.png: no such file"),
    "broken mask": (["--mask", "text.png"], "error: text.png: no picture, or damaged"),
    "no photo": (BOX, "error: none.png: no such file", "none.png"),
    "text": (BOX, "error: text.png: no picture, or damaged", "text.png"),
    "cut": (BOX, "error: cut.png: the picture cannot be read: image file is truncated", "cut.png"),
    "folder": (BOX, "error: folder: the picture cannot be read: Is a directory", "folder"),
    "pipe": (BOX, "error: pipe: not a regular file", "pipe"),
    "device": (BOX, "error: /dev/zero: not a regular file", "/dev/zero"),
    "box outside": (["--box", "0,0,1,1.1"], "box 0,0,1,1.1: expected y0,x0,y1,x1 with 0 <= y0 < y1 <= 1"),
    "box reversed": (["--box", "0.5,0,0.4,1"], "box 0.5,0,0.4,1: expected"),
    "box of NaN": (["--box", "nan,0,1,1"], "box nan,0,1,1: expected"),
    "box of infinity": (["--box", "0,0,inf,1"], "box 0,0,inf,1: expected"),
    "box of three": (["--box", "0,0,1"], "'0,0,1' is not four numbers such as 0.25,0.25,0.75,0.75"),
    "box of words": (["--box", "a,b,c,\x1bd"], "is not four numbers"),
    "small box": (["--box", "0,0,0.001,1"], "box 0,0,0.001,1: less than a token"),
    "all kept": (["--box", "0,0,1,1", "--outpaint"], "outpaint: the box is all of the picture"),
    "extend by NaN": (["--extend", "left=nan"], "'left=nan' is not a side and a share such as left=0.25"),
    "extend by infinity": (["--extend", "left=inf"], "extend left=inf: expected more than 0 and at most 4"),
    "extend less": (["--extend", "left=-0.5"], "extend left=-0.5: expected more than 0"),
    "extend by nothing": (["--extend", "left=0"], "extend left=0: expected more than 0"),
    "extend by half a pixel": (["--extend", "left=0.01", "--extend", "top=1"], "extend left=0.01: less than a pixel"),
    "extend elsewhere": (["--extend", "above=1"], "'above=1' is not a side and a share such as left=0.25; sides are"),
    "extend by no share": (["--extend", "left"], "'left' is not a side and a share"),
    "extend twice": (["--extend", "left=1", "--extend", "left=2"], "--extend: give each side once"),
    "variation of NaN": (["--variation", "nan"], "Invalid value for '--variation': 'nan' is not a finite number"),
    "variation of infinity": (["--variation", "inf"], "Invalid value for '--variation'"),
    "no variation": (["--variation", "0"], "Invalid value for '--variation'"),
    "much variation": (["--variation", "1.01"], "Invalid value for '--variation'"),
    "class": ([*BOX, "--class", "walrus"], 'no class is named "walrus"'),
    "class number": ([*BOX, "--class", "6"], "class 6 is out of range"),
    "top_p": ([*BOX, "--top-p", "nan"], "top_p nan is out of range"),
    "no more_smooth": ([*BOX, "--more-smooth"], "more_smooth: this bundle was built without it; build the"),
    "cfg": ([*BOX, "--cfg-scale", "inf"], "cfg_scale inf is out of range"),
    "seed": ([*BOX, "--seed", "-1"], "seed -1 is out of range"),
    "feather": ([*BOX, "--feather", "-1"], "Invalid value for '--feather'"),
    "format": ([*BOX, "--out", "a.gif"], "cannot write a.gif: pictures are written as .png, .jpg, .jpeg, .webp"),
    "wide WebP": (
        ["--variation", "1", "--out", "a.webp"],
        "16384 x 1 pixels are more than the 16383 that WEBP has",
        "wide.png",
    ),
    "over the photo": ([*BOX, "--out", "photo.png"], "cannot write photo.png: it is photo.png, which is read"),
    "over the mask": (["--mask", "mask.png", "--out", "link.png"], "cannot write link.png: it is mask.png, which is"),
    "to a folder": ([*BOX, "--out", "folder.png"], "cannot write folder.png: it is a folder"),
    "preview over the mask": (
        ["--mask", "m-stage-01.png", "--previews", "--out", "m.png"],
        "cannot write m-stage-01.png: it is m-stage-01.png, which is read",
    ),
    "to no folder": ([*BOX, "--out", "none/a.png"], "cannot write none/a.png: there is no folder"),
}


@pytest.mark.parametrize("case", BAD_INPUT.values(), ids=BAD_INPUT)
def test_bad_input_is_one_line_and_writes_nothing(
    bundle: Path, capsys: pytest.CaptureFixture[str], make_fifo: Callable[[Path], Path], case: tuple[Any, ...]
) -> None:
    arguments, message, photo = (*case, "photo.png")[:3]
    save("black.png", np.zeros(PHOTO.shape[:2], np.uint8))
    save("white.png", np.full(PHOTO.shape, 255, np.uint8))
    save("wide.png", np.zeros((1, 16384, 3), np.uint8))
    Path("text.png").write_text("a picture, no doubt")
    Path("cut.png").write_bytes(Path("photo.png").read_bytes()[:2000])
    Path("folder").mkdir()
    Path("folder.png").mkdir()
    Path("link.png").symlink_to("mask.png")
    save("m-stage-01.png", MASK)
    if photo == "pipe":
        make_fifo(Path("pipe"))
    before = {path: path.read_bytes() for path in Path().iterdir() if path.is_file()}
    assert run(bundle, photo, *arguments) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("error: ")
    assert captured.err.count("\n") == 1
    assert message in captured.err
    assert "\x1b" not in captured.err
    assert {path: path.read_bytes() for path in Path().iterdir() if path.is_file()} == before


def test_a_bundle_without_an_encoder_says_so(
    bundle: Path, fake_bundle: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(fake_bundle, "photo.png", *BOX) == 2
    assert capsys.readouterr().err == (
        f"error: {fake_bundle}: the bundle has no encoder; build it again, without --no-encoder\n"
    )
    assert not Path("edited.png").exists()


def test_no_file_of_the_bundle_is_replaced(
    fake_encoder_bundle: Path, bundle: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("link.png").symlink_to(fake_encoder_bundle / "weights.data")
    content = (fake_encoder_bundle / "weights.data").read_bytes()
    assert run(bundle, "photo.png", *BOX, "--out", "link.png") == 2
    assert "which is read; give another name" in capsys.readouterr().err
    assert (fake_encoder_bundle / "weights.data").read_bytes() == content


def test_a_link_to_stdout_gets_the_picture_alone(bundle: Path, capfd: pytest.CaptureFixture[str]) -> None:
    Path("out.png").symlink_to("/dev/stdout")
    assert run(bundle, "photo.png", *BOX, "--out", "out.png") == 0
    assert "out.png" not in capfd.readouterr().out


def test_ctrl_c_leaves_nothing(
    bundle: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    stages: list[str] = []
    run_session = stage_runner.run_session

    def interrupt_at_second_stage(*arguments: Any) -> dict:
        stages.append(str(arguments[-1]))
        if len(stages) == 2:
            signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)
        return run_session(*arguments)

    monkeypatch.setattr(stage_runner, "run_session", interrupt_at_second_stage)
    before = sorted(os.listdir())
    assert run(bundle, "photo.png", *BOX, "--count", 3) == 130
    assert len(stages) == 2
    assert capsys.readouterr().err.strip() == "error: interrupted; nothing half-written was left"
    assert sorted(os.listdir()) == before


def test_a_damaged_encoder_is_one_line(
    bundle: Path, fake_encoder_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = write_fake_bundle(tmp_path / "other", encoder=True)
    encoder = other / "encoder.onnx"
    encoder.write_bytes(b"\xff" * encoder.stat().st_size)
    assert run(other, "photo.png", *BOX) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: {encoder}: ")
    assert error.count("\n") == 1
    assert not Path("edited.png").exists()


def test_a_model_whose_pictures_are_no_multiple_of_its_latent_is_one_line(
    bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = write_fake_bundle(tmp_path / "other", encoder=True)
    manifest = read_manifest(other)
    manifest["model"]["image_size"] = [PIXELS + 1, PIXELS]
    write_manifest(other, json.loads(json.dumps(manifest)))
    assert run(other, "photo.png", *BOX) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert error.count("\n") == 1
