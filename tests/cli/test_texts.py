"""The commands on a bundle of several sizes and of prompts."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fake_bundle import read_manifest, write_manifest
from fake_sizes_bundle import LENGTHS, SIZES, write_fake_sizes_bundle
from numpy.typing import NDArray
from PIL import Image

from nextscale.cli.main import main
from nextscale.runtime import Generator
from nextscale.runtime._session_pool import SessionPool
from nextscale.runtime.image_io import read_picture_parameters


@pytest.fixture
def bundle(fake_sizes_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return fake_sizes_bundle


def run(command: str, bundle: Path, *arguments: object) -> int:
    return main([command, str(bundle), *map(str, arguments)])


def pixels(path: str) -> NDArray[np.uint8]:
    with Image.open(path) as file:
        return np.asarray(file)


def parameters_of(path: str) -> dict[str, Any]:
    found = read_picture_parameters(path)
    assert found is not None
    return found


def test_prompts_make_a_sheet(bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--negative", "dull", "--cfg", 2, "--tau", 0.3, "--ratio", "2:3", "--seed", 7, "--grid", 4]
    assert run("generate", bundle, "--prompt", "a red fox", "--prompt", "two", "--count", 2, *options) == 0
    assert capsys.readouterr().out == "sheet.png\n"
    prompts = ["a red fox", "a red fox", "two", "two"]
    expected = Generator(bundle).generate(prompts=prompts, negative="dull", cfg_scale=2, tau=0.3, ratio="2:3", seed=7)
    np.testing.assert_array_equal(pixels("sheet.png"), np.concatenate(list(expected.images), axis=1))
    found = parameters_of("sheet.png")
    assert {key: found[key] for key in ("prompts", "negative", "seed", "area", "ratio", "cfg_scale", "tau")} == {
        "prompts": prompts, "negative": "dull", "seed": 7, "area": "0.01M", "ratio": "2:3", "cfg_scale": 2.0,
        "tau": 0.3,
    }  # fmt: skip
    assert not found.keys() & {"classes", "top_k", "top_p", "more_smooth"}


def test_words_that_the_model_never_saw_are_drawn_and_told(
    bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = b"a\nfox\nred\n"
    told = shutil.copytree(bundle, tmp_path / "told")
    (told / "words.txt").write_bytes(words)
    manifest = read_manifest(told)
    manifest["files"]["words.txt"] = {"size": len(words), "sha256": hashlib.sha256(words).hexdigest()}
    write_manifest(told, manifest)
    prompts = ("--prompt", "A red Zorp, a fox", "--prompt", "zorp fnord")
    quiet = ("--quiet", "--verbose")  # no progress, but this
    assert run("generate", told, *prompts, *quiet, "--negative", "dull fox") == 0
    captured = capsys.readouterr()
    assert captured.out == "sheet.png\n"
    assert captured.err == "words that the model never saw, drawn all the same: zorp, fnord, dull\n"
    expected = Generator(told).generate(prompts=["A red Zorp, a fox", "zorp fnord"], negative="dull fox")
    np.testing.assert_array_equal(pixels("sheet.png"), np.concatenate(list(expected.images), axis=1))
    assert run("generate", told, "--prompt", "a red fox", *quiet) == 0
    assert capsys.readouterr().err == "the model saw all words of the prompts\n"
    assert run("generate", told, *prompts, "--quiet") == 0
    assert capsys.readouterr().err == ""
    assert run("generate", bundle, *prompts, *quiet) == 0
    assert capsys.readouterr().err == "this bundle does not tell which words its model saw\n"


def test_the_commands_close_the_text_encoder(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kept = []
    monkeypatch.setattr(SessionPool, "close", lambda pool, graph: kept.append(graph))
    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save("photo.png")
    assert run("generate", bundle, "--prompt", "a") == 0
    assert run("edit", bundle, "photo.png", "--box", "0,0,0.5,1", "--prompt", "a") == 0
    assert kept == ["text_encoder"] * 2


def test_a_file_of_prompts_makes_a_picture_of_each(bundle: Path) -> None:
    """Prompts of different lengths in one batch; what is not said is the bundle's default."""
    Path("prompts.txt").write_bytes("\ufeffa fox\r\n\n  ünë\nand one that is longer\n".encode())
    assert run("generate", bundle, "--prompts", "prompts.txt", "--no-grid", "--area", "0.020M", "--npz", "a.npz",
               "--out", "a.png") == 0  # fmt: skip
    prompts = ["a fox", "ünë", "and one that is longer"]
    expected = Generator(bundle).generate(prompts=prompts, area="0.02M")
    for number, prompt in enumerate(prompts):
        np.testing.assert_array_equal(pixels(f"a-{number:04d}.png"), expected.images[number])
        found = parameters_of(f"a-{number:04d}.png")
        assert (found["prompts"], found["first_image"], found["negative"]) == ([prompt], number, None)
        assert (found["area"], found["ratio"], found["cfg_scale"], found["tau"]) == ("0.02M", "1:1", 3.0, 0.5)
    with np.load("a.npz") as arrays:
        assert arrays["token_maps"].shape == (3, LENGTHS[2], 2)
        assert arrays["class_labels"].shape == (0,)
        assert json.loads(str(arrays["parameters"]))["prompts"] == prompts


def test_previews_are_of_the_size(bundle: Path) -> None:
    assert run("generate", bundle, "--prompt", "a", "--ratio", "2:3", "--previews", "--out", "a.png") == 0
    previews = sorted(path.name for path in Path().glob("a-stage-*.png"))
    assert previews == ["a-stage-01.png", "a-stage-02.png"]
    assert {pixels(path).shape for path in previews} == {(12, 8, 3)}


def test_an_edit_has_the_ratio_of_its_photograph(bundle: Path) -> None:
    photo = np.random.default_rng(1).integers(0, 256, (36, 25, 3)).astype(np.uint8)
    Image.fromarray(photo).save("photo.png")
    options = ["--box", "0,0,0.5,1", "--prompt", "a fox", "--negative", "dull", "--count", 2]
    assert run("edit", bundle, "photo.png", *options) == 0
    for number in (0, 1):
        found = parameters_of(f"edited-{number:04d}.png")
        assert (found["ratio"], found["area"], found["prompts"], found["negative"]) == (
            *("2:3", "0.01M", ["a fox"], "dull"),
        )
        edited = pixels(f"edited-{number:04d}.png")
        np.testing.assert_array_equal(edited[18:], photo[18:])
        assert (edited[:18] != photo[:18]).any()
    assert run("edit", bundle, "photo.png", *options[:-2], "--ratio", "1:1", "--area", "0.02M", "--out", "b.png") == 0
    assert (parameters_of("b.png")["ratio"], parameters_of("b.png")["area"]) == ("1:1", "0.02M")


def test_an_extended_photograph_has_another_ratio(bundle: Path) -> None:
    Image.fromarray(np.zeros((20, 20, 3), np.uint8)).save("photo.png")
    assert run("edit", bundle, "photo.png", "--extend", "bottom=0.5", "--prompt", "a") == 0
    assert parameters_of("edited.png")["ratio"] == "2:3"


def test_inspect_lists_the_sizes(bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("inspect", bundle) == 0
    lines = [line.replace("│", " ").split() for line in capsys.readouterr().out.splitlines()]
    assert ["tokenizer", "bytes,", "at", "most", "40", "tokens"] in lines
    assert ["pictures", "8", "x", "8", "pixels", "of", "prompts"] in lines
    # Keys and values: 2 x 2 rows x 1 block x L tokens x 8 x 4 bytes.
    for size, length in zip(SIZES, LENGTHS, strict=True):
        (height, width), (tall, wide) = size["ratio"], size["image_size"]
        row = [size["area"], f"{width}:{height}", f"{tall}", "x", f"{wide}", str(len(size["stage_sizes"])), f"{length}"]
        assert [*row, f"{128 * length / 1e6:.3g}"] in lines
    assert run("inspect", bundle, "--json") == 0
    summary = json.loads(capsys.readouterr().out)
    assert [size["cache_bytes"] for size in summary["sizes"]] == [128 * length for length in LENGTHS]
    assert summary["tokenizer"] == {"kind": "bytes", "max_tokens": 40, "file": None}


def test_verify_generates_the_stored_prompts(bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert read_manifest(bundle)["verify"]["prompts"] == ["a fox", "two"]
    assert run("verify", bundle) == 0
    assert "all 36 tokens are the stored ones" in capsys.readouterr().out


def test_verify_generates_from_features(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("verify", write_fake_sizes_bundle(tmp_path / "features", text_encoder=False)) == 0
    assert "all 36 tokens are the stored ones" in capsys.readouterr().out


BAD = {
    "nothing": ([], "which pictures? Give --prompt, or --prompts with a file"),
    "a class": (["--class", "1"], "--class: this bundle makes pictures of prompts: give --prompt"),
    "no file": (["--prompts", "none.txt"], "none.txt: no such file; expected prompts, one a line"),
    "a folder": (["--prompts", "."], ".: cannot be read: Is a directory"),
    "no prompts": (["--prompts", "empty.txt"], "empty.txt: no prompts; expected one a line"),
    "other bytes": (["--prompts", "latin.txt"], "latin.txt, line 2: no UTF-8; save the prompts as UTF-8"),
    "an empty prompt": (["--prompt", ""], 'prompts[0]: prompt "" is empty'),
    "a long prompt": (["--prompt", "x" * 60], "has 61 tokens, its end among them; expected at most 40: shorten it"),
    "bytes that are no text": (["--prompt", "a\udcff"], "prompts[0]: prompt"),
    "a ratio that is not built": (
        ["--prompt", "a", "--ratio", "16:9"],
        "area 0.01M with ratio 16:9 is not built; this bundle has 0.01M 1:1 2:3; 0.02M 1:1",
    ),
    "an area that is not built": (["--prompt", "a", "--area", "4M"], "area 4M with ratio 1:1 is not built"),
    "a ratio that is none": (
        ["--prompt", "a", "--ratio", "square"],
        "ratio 'square': expected width to height such as",
    ),
    "top_k": (["--prompt", "a", "--top-k", "3"], "top_k: this bundle has no such input; it takes text_features"),
    "tau": (["--prompt", "a", "--tau", "0"], "tau 0 is out of range: expected 0.0001 to 100"),
    "more_smooth": (["--prompt", "a", "--more-smooth"], "more_smooth: this bundle was built without it"),
}


@pytest.mark.parametrize(("arguments", "message"), BAD.values(), ids=BAD.keys())
def test_bad_input_is_one_line_and_writes_nothing(
    bundle: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    Path("empty.txt").write_text("\n \n")
    Path("latin.txt").write_bytes(b"good\nb\xe4d\n")
    assert run("generate", bundle, "--out", "a.png", *arguments) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith("error: ")
    assert captured.err.count("\n") == 1
    assert message in captured.err
    assert not Path("a.png").exists()


def test_prompts_come_from_a_pipe_that_a_shell_opens_and_no_other(
    bundle: Path, make_fifo: Callable[[Path], Path], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("generate", bundle, "--prompts", make_fifo(Path("pipe")), "--out", "a.png") == 2
    assert "pipe: not a regular file; give the path of one" in capsys.readouterr().err
    reader, writer = os.pipe()
    os.write(writer, b"a fox\n")
    os.close(writer)
    assert run("generate", bundle, "--prompts", f"/dev/fd/{reader}", "--out", "a.png") == 0
    os.close(reader)
    assert parameters_of("a.png")["prompts"] == ["a fox"]


@pytest.mark.parametrize("option", [["--prompt", "a"], ["--prompts", "a.txt"], ["--negative", "a"]], ids=lambda x: x[0])
@pytest.mark.parametrize("command", ["generate", "edit"])
def test_prompts_where_there_are_classes(
    fake_encoder_bundle: Path, capsys: pytest.CaptureFixture[str], command: str, option: list[str]
) -> None:
    photo = ["photo.png", "--variation", 1] if command == "edit" else []
    assert run(command, fake_encoder_bundle, *photo, *option) == 2
    assert f"{option[0]}: this bundle makes pictures of classes: give --class" in capsys.readouterr().err


def test_options_of_a_bundle_of_several_sizes(fake_bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("generate", fake_bundle, "--class", 1, "--ratio", "1:1") == 2
    assert "error: ratio: this bundle has one size, 12 x 12; leave it out" in capsys.readouterr().err
    assert run("generate", fake_bundle, "--class", 1, "--tau", 1) == 2
    assert "tau: this bundle has no such input; it takes class_labels" in capsys.readouterr().err
    assert run("generate", fake_bundle) == 2
    assert "Missing option '--class'" in capsys.readouterr().err


def test_an_area_of_an_edit_that_is_not_built(bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Image.fromarray(np.zeros((20, 20, 3), np.uint8)).save("photo.png")
    assert run("edit", bundle, "photo.png", "--variation", 1, "--prompt", "a", "--area", "9M") == 2
    assert "area 9M is not built; this bundle has 0.01M 1:1 2:3; 0.02M 1:1" in capsys.readouterr().err
