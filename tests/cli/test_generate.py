import io
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
from fake_bundle import L, write_fake_bundle
from PIL import Image

from nextscale.cli.main import main
from nextscale.runtime import Generator
from nextscale.runtime import _stage_runner as stage_runner
from nextscale.runtime.image_io import read_picture_parameters


def run(*arguments: object) -> int:
    return main(["generate", *map(str, arguments)])


def test_a_sheet_holds_the_classes_row_after_row(
    fake_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "sheet.png"
    classes = ["--class", "4", "--class", "goldfish"]
    assert run(fake_bundle, *classes, "--count", 3, "--seed", 7, "--top-k", 5, "--grid", 3, "--out", out) == 0
    captured = capsys.readouterr()
    assert captured.out == f"{out}\n"
    assert captured.err == ""
    expected = Generator(fake_bundle).generate([4, 4, 4, 0, 0, 0], seed=7, top_k=5).images
    with Image.open(out) as file:
        sheet = np.asarray(file)
    assert sheet.shape == (24, 36, 3)
    assert np.array_equal(sheet[12:, 24:], expected[5])
    parameters = read_picture_parameters(out)
    assert parameters is not None
    assert (parameters["bundle"], parameters["recipe"], parameters["seed"]) == ("fake-0", "fp32", 7)
    assert (parameters["cfg_scale"], parameters["top_k"], parameters["top_p"]) == (4.0, 5, 0.96)
    assert parameters["classes"] == [4, 4, 4, 0, 0, 0]
    assert parameters["class_names"][3] == "goldfish, Carassius auratus"


def test_more_smooth_is_another_picture_and_told_in_it(tmp_path: Path) -> None:
    bundle = write_fake_bundle(tmp_path / "smooth", smooth=True)
    for name, options in (("plain", []), ("smooth", ["--more-smooth"])):
        assert run(bundle, "--class", 1, *options, "--out", tmp_path / f"{name}.png") == 0
        parameters = read_picture_parameters(tmp_path / f"{name}.png")
        assert parameters is not None
        assert parameters["more_smooth"] is (name == "smooth")
        with Image.open(tmp_path / f"{name}.png") as file:
            expected = Generator(bundle).generate([1], more_smooth=name == "smooth").images[0]
            assert np.array_equal(np.asarray(file), expected)
    assert (tmp_path / "plain.png").read_bytes() != (tmp_path / "smooth.png").read_bytes()


def test_no_grid_writes_one_file_an_image(
    fake_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert (
        run(fake_bundle, "--class", 1, "--count", 2, "--no-grid", "--first-image", 5, "--out", tmp_path / "a.png") == 0
    )
    paths = [tmp_path / "a-0000.png", tmp_path / "a-0001.png"]
    assert capsys.readouterr().out.split() == [str(path) for path in paths]
    assert sorted(tmp_path.iterdir()) == paths
    parameters = read_picture_parameters(paths[1])
    assert parameters is not None
    with Image.open(paths[1]) as file:
        alone = Generator(fake_bundle).generate(parameters["classes"], first_image=parameters["first_image"])
        assert np.array_equal(np.asarray(file), alone.images[0])


def test_previews_of_a_sheet_are_sheets(fake_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "a.png"
    assert run(fake_bundle, "--class", 1, "--count", 3, "--batch", 2, "--grid", 3, "--previews", "--out", out) == 0
    paths = [tmp_path / f"a-stage-0{stages}.png" for stages in (1, 2)]
    assert capsys.readouterr().out.split() == [str(path) for path in (out, *paths)]
    for path, stage in zip([*paths, out], Generator(fake_bundle).stream([1, 1, 1]), strict=True):
        with Image.open(path) as file:
            assert np.array_equal(np.asarray(file), np.concatenate(stage.preview(), axis=1))
    parameters = read_picture_parameters(paths[1])
    assert parameters is not None
    assert (parameters["stages"], parameters["classes"]) == (2, [1, 1, 1])


def test_each_picture_has_previews_of_its_own(fake_bundle: Path, tmp_path: Path) -> None:
    out = tmp_path / "a.png"
    assert run(fake_bundle, "--class", 1, "--class", 3, "--no-grid", "--previews", "--out", out) == 0
    names = {f"a-000{number}{stages}.png" for number in range(2) for stages in ("", "-stage-01", "-stage-02")}
    assert {path.name for path in tmp_path.iterdir()} == names
    parameters = read_picture_parameters(tmp_path / "a-0001-stage-01.png")
    assert parameters is not None
    assert (parameters["stages"], parameters["classes"], parameters["first_image"]) == (1, [3], 1)


def test_arrays_through_a_pipe_have_no_text_behind_them(fake_bundle: Path, tmp_path: Path) -> None:
    code = f"import sys; sys.path[:] = {sys.path!r}; from nextscale.cli.main import main; sys.exit(main(sys.argv[1:]))"
    command = ["generate", fake_bundle, "--class", "1", "--npz", "/dev/stdout", "--out", tmp_path / "a.png"]
    done = subprocess.run([sys.executable, "-c", code, *map(str, command)], capture_output=True, check=False)
    assert done.returncode == 0, done.stderr
    content, _, text = done.stdout.rpartition(str(tmp_path).encode())
    assert text == b"/a.png\n"
    with np.load(io.BytesIO(content)) as arrays, Image.open(tmp_path / "a.png") as image:
        assert np.array_equal(arrays["images"][0], np.asarray(image))


def test_one_file_for_picture_and_arrays_is_refused(
    fake_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "link").symlink_to("a.png")
    assert run(fake_bundle, "--class", 1, "--out", tmp_path / "a.png", "--npz", tmp_path / "link") == 2
    message = f"error: {tmp_path / 'a.png'} and {tmp_path / 'link'} are one file; give each output a name of its own\n"
    assert capsys.readouterr().err == message
    assert os.listdir(tmp_path) == ["link"]


def test_npz_alone_writes_no_sheet(fake_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert run(fake_bundle, "--class", 1, "--count", 2, "--npz", "a.npz") == 0
    assert os.listdir(tmp_path) == ["a.npz"]
    with np.load("a.npz") as arrays:
        assert arrays["images"].shape == (2, 12, 12, 3)
        assert arrays["token_maps"].shape == (2, L)
        again = Generator(fake_bundle).generate(arrays["class_labels"], forced_tokens=arrays["token_maps"])
        assert np.array_equal(again.images, arrays["images"])


def test_arrays_alone_have_no_previews(fake_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(fake_bundle, "--class", 1, "--npz", tmp_path / "a.npz", "--previews") == 2
    assert "--previews are named after the pictures: give --out, too" in capsys.readouterr().err
    assert not any(tmp_path.iterdir())


def test_the_default_is_a_sheet_here(fake_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert run(fake_bundle, "--class", 1) == 0
    assert os.listdir(tmp_path) == ["sheet.png"]


def test_a_random_seed_is_told_and_kept(fake_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    seeds = []
    for out in (tmp_path / "a.png", tmp_path / "b.png"):
        assert run(fake_bundle, "--class", 1, "--seed", "random", "--quiet", "--out", out) == 0
        captured = capsys.readouterr()
        parameters = read_picture_parameters(out)
        assert parameters is not None
        assert captured.err == f"seed {parameters['seed']}\n"
        assert captured.out == f"{out}\n"
        seeds.append(parameters["seed"])
        with Image.open(out) as file:
            expected = Generator(fake_bundle).generate([1], seed=parameters["seed"]).images[0]
            assert np.array_equal(np.asarray(file), expected)
    assert seeds[0] != seeds[1]
    assert all(0 <= seed < 2**53 for seed in seeds)


def test_random_may_be_in_any_case(fake_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(fake_bundle, "--class", 1, "--seed", "Random", "--quiet", "--out", tmp_path / "a.png") == 0
    assert capsys.readouterr().err.startswith("seed ")


NAME = "a\x1b[31m\n\udcff.png"  # a colour, a line's end and a byte that is no UTF-8


def test_a_pipe_gets_a_path_as_it_is(fake_bundle: Path, tmp_path: Path) -> None:
    code = f"import sys; sys.path[:] = {sys.path!r}; from nextscale.cli.main import main; sys.exit(main(sys.argv[1:]))"
    command = [sys.executable, "-c", code, "generate", fake_bundle, "--class", "1", "--out", tmp_path / NAME]
    environment = {**os.environ, "PYTHONUTF8": "1"}
    done = subprocess.run(command, capture_output=True, check=True, env=environment)
    assert done.stdout == os.fsencode(tmp_path / NAME) + b"\n"
    assert (tmp_path / NAME).exists()


def test_a_terminal_gets_a_path_without_control_characters(
    fake_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    assert run(fake_bundle, "--class", 1, "--quiet", "--out", tmp_path / NAME) == 0
    assert capsys.readouterr().out == f"{tmp_path}/a\\x1b[31m\\n\\udcff.png\n"


def test_the_null_class_has_a_name(fake_bundle: Path, tmp_path: Path) -> None:
    assert run(fake_bundle, "--class", "null", "--out", tmp_path / "a.png") == 0
    parameters = read_picture_parameters(tmp_path / "a.png")
    assert parameters is not None
    assert parameters["classes"] == [5]


@pytest.mark.parametrize("name", ["a.jpg", "a.JPEG", "a.webp"])
def test_lossy_pictures_hold_the_parameters(fake_bundle: Path, tmp_path: Path, name: str) -> None:
    assert (
        run(fake_bundle, "--class", 1, "--class", "goldfish", "--seed", 7, "--no-grid", "--out", tmp_path / name) == 0
    )
    paths = sorted(tmp_path.iterdir())
    assert [path.name for path in paths] == [name.replace("a.", f"a-000{number}.") for number in (0, 1)]
    parameters = read_picture_parameters(paths[1])
    assert parameters is not None
    assert (parameters["seed"], parameters["first_image"], parameters["classes"]) == (7, 1, [0])
    with Image.open(paths[1]) as file:
        assert file.format == ("WEBP" if "webp" in name else "JPEG")
        assert file.size == (12, 12)


def test_a_sheet_may_be_a_jpeg(fake_bundle: Path, tmp_path: Path) -> None:
    assert run(fake_bundle, "--class", 1, "--count", 3, "--grid", 3, "--out", tmp_path / "sheet.jpg") == 0
    with Image.open(tmp_path / "sheet.jpg") as file:
        assert (file.format, file.size) == ("JPEG", (36, 12))


BAD_INPUT = {
    "label": (["--class", "6"], "class 6 is out of range: expected 0 to 4"),
    "name": (["--class", "goldfsh"], 'no class is named "goldfsh"; nearest: goldfish (0)'),
    "ambiguous": (["--class", "crane"], 'class "crane" is the name of 2 classes'),
    "top_k": (["--class", "0", "--top-k", "17"], "top_k 17 is out of range"),
    "top_k negative": (["--class", "0", "--top-k", "-1"], "top_k -1 is out of range"),
    "top_p": (["--class", "0", "--top-p", "-0.5"], "top_p -0.5 is out of range"),
    "no more_smooth": (["--class", "0", "--more-smooth"], "more_smooth: this bundle was built without it; build the"),
    "top_p NaN": (["--class", "0", "--top-p", "nan"], "top_p nan is out of range"),
    "cfg": (["--class", "0", "--cfg-scale", "-1"], "cfg_scale -1 is out of range"),
    "cfg NaN": (["--class", "0", "--cfg-scale", "nan"], "cfg_scale nan is out of range"),
    "seed": (["--class", "0", "--seed", "-1"], "seed -1 is out of range"),
    "seed large": (["--class", "0", "--seed", str(2**64)], "seed 18446744073709551616 is out of range"),
    "count": (["--class", "0", "--count", "0"], "Invalid value for '--count'"),
    "grid": (["--class", "0", "--grid", "4y2"], "'4y2' is neither a number of columns"),
    "grid of none": (["--class", "0", "--grid", "0x2"], "'0x2' is neither"),
    "grid of many digits": (["--class", "0", "--grid", "9" * 5000], "each at most 999999999"),
    "rows of many digits": (["--class", "0", "--grid", f"4x{'9' * 5000}"], "each at most 999999999"),
    "large grid": (
        ["--class", "0", "--grid", "40000x40000"],
        "a grid of 40000x40000 leaves 1599999999 cells empty; expected at most 10000: give fewer columns or rows",
    ),
    "small grid": (["--class", "0", "--count", "5", "--grid", "2x2"], "too few for 5 images"),
    "another format": (
        ["--class", "0", "--out", "a.gif"],
        "cannot write a.gif: pictures are written as .png, .jpg, .jpeg, .webp; give such a name",
    ),
    "no format": (["--class", "0", "--out", "a"], "cannot write a: pictures are written as .png, .jpg, .jpeg, .webp"),
    "seed text": (["--class", "0", "--seed", "any"], "'any' is neither an integer nor random"),
    "too wide a JPEG": (
        ["--class", "0", "--count", "5500", "--grid", "5500x1", "--out", "a.jpg"],
        "cannot write a.jpg: 66000 x 12 pixels are more than the 65500 that JPEG has: write a PNG or fewer images",
    ),
    "random, but no class": (["--class", "none", "--seed", "random"], 'no class is named "none"'),
    "both grids": (["--class", "0", "--grid", "2", "--no-grid"], "--grid and --no-grid exclude each other"),
}


@pytest.mark.parametrize(("arguments", "message"), BAD_INPUT.values(), ids=BAD_INPUT.keys())
def test_bad_input_is_one_line_and_writes_nothing(
    fake_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    assert run(fake_bundle, "--out", tmp_path / "a.png", *arguments) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("error: ")
    assert captured.err.count("\n") == 1
    assert message in captured.err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("damage", ["missing", "truncated", "garbage"])
def test_a_damaged_bundle_is_one_line(damaged: Path, capsys: pytest.CaptureFixture[str], damage: str) -> None:
    file = damaged / "stage.onnx"
    if damage == "missing":
        file.unlink()
    else:
        file.write_bytes(b"\xff" * (file.stat().st_size if damage == "garbage" else 10))
    assert run(damaged, "--class", 0, "--out", damaged / "a.png") == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: {file}: ")
    assert error.count("\n") == 1
    assert not (damaged / "a.png").exists()


def test_an_old_onnxruntime_is_one_line(
    fake_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(onnxruntime, "__version__", "1.20.1")
    assert run(fake_bundle, "--class", 0, "--out", tmp_path / "a.png") == 2
    assert "error: onnxruntime 1.20.1 is too old: bundles need 1.23" in capsys.readouterr().err


@pytest.mark.parametrize("out", ["/proc/a.png", "none/a.png", "folder.png"])
def test_an_unwritable_output_is_refused_before_generating(
    fake_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], out: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder.png").mkdir()
    monkeypatch.setattr(Generator, "generate", lambda *args, **kwargs: pytest.fail("generated"))
    assert run(fake_bundle, "--class", 0, "--out", out) == 2
    assert capsys.readouterr().err.startswith(f"error: cannot write {out}: ")


def test_a_full_folder_leaves_nothing(fake_bundle: Path, tmp_path: Path) -> None:
    # A limit on file sizes fails a write where a full disk would.
    limit = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (100, 100)); "
    code = f"import sys; sys.path[:] = {sys.path!r}; from nextscale.cli.main import main; sys.exit(main(sys.argv[1:]))"
    arguments = ["generate", fake_bundle, "--class", "0", "--out", tmp_path / "a.png"]
    done = subprocess.run([sys.executable, "-c", limit + code, *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr == f"error: cannot write {tmp_path / 'a.png'}: File too large\n"
    assert not list(tmp_path.iterdir())


def test_ctrl_c_leaves_nothing(
    fake_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    stages: list[str] = []
    run_session = stage_runner.run_session

    def interrupt_at_second_stage(*arguments: Any) -> dict:
        stages.append(str(arguments[-1]))
        if len(stages) == 2:
            signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)
        return run_session(*arguments)

    monkeypatch.setattr(stage_runner, "run_session", interrupt_at_second_stage)
    assert run(fake_bundle, "--class", 0, "--out", tmp_path / "a.png", "--npz", tmp_path / "a.npz") == 130
    assert len(stages) == 2
    assert capsys.readouterr().err.strip() == "error: interrupted; nothing half-written was left"
    assert not list(tmp_path.iterdir())
