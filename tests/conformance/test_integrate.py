"""docs/integrate.md: its programs are those that are compiled and run, its messages those of the three libraries."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
from fake_bundle import NUM_CLASSES, L, write_fake_bundle

from nextscale.runtime import Generator, SessionOptions

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "integrate.md").read_text(encoding="utf-8")
MINIMAL = ROOT / "examples" / "minimal"
SOURCES = {
    "Python": sorted((ROOT / "runtime").glob("*.py")),
    "C++": [ROOT / "ports" / "cpp" / "nextscale.hpp"],
    "C#": [ROOT / "ports" / "csharp" / "NextScale.cs"],
}
# A process in which nextscale is not installed.
RUN = "import runpy, sys; sys.modules['nextscale'] = None; sys.argv[:] = sys.argv[1:]; runpy.run_path(sys.argv[0])"

# What ONNX Runtime says of a mistake, by the words that the page quotes.
MISTAKES: Mapping[str, Mapping[str, Any]] = {
    "Required inputs (": {"forced_tokens": None},
    "Got invalid dimensions for input: uniforms": {"uniforms": np.zeros((1, L - 1), np.float32)},
    "Unexpected input data type. Actual: (tensor(double)) , expected: (tensor(float))": {"top_p": np.array(0.9)},
    "Invalid rank for input: class_labels": {"class_labels": np.array(0, np.int64)},
    "indices element out of data bounds": {"class_labels": np.array([NUM_CLASSES + 9], np.int64)},
}


def table_after(words: str) -> list[list[str]]:
    """The cells of the table that follows a line which begins so, without its heads."""
    _, _, rest = PAGE.partition(f"\n{words}")
    lines = rest[rest.index("|---") :].split("\n\n")[0].splitlines()[1:]
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines]


def literals(paths: list[Path]) -> str:
    """Sources in which string literals that stand beside each other are one."""
    text = "\n".join(path.read_text(encoding="utf-8") for path in paths).replace('\\"', "\0")
    return re.sub(r'"\s*\+?\s*[f$]?"', "", text).replace("\0", '"')


def test_its_programs_are_the_files() -> None:
    shown = re.findall(
        r"^\[examples/minimal/(\S+)\]\(\.\./examples/minimal/\1\):\n\n```\w+\n(.*?)```$", PAGE, re.M | re.S
    )
    assert sorted(name for name, _ in shown) == sorted(path.name for path in MINIMAL.iterdir() if path.is_file())
    assert len(shown) == PAGE.count("\n```\n")
    for name, text in shown:
        assert text == (MINIMAL / name).read_text(encoding="utf-8"), f"docs/integrate.md shows another {name}"


@pytest.mark.parametrize("bundle", ["fake_bundle", "int8_bundle"])
def test_bare_onnxruntime_draws_the_same(bundle: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    folder, out = request.getfixturevalue(bundle), tmp_path / "picture.ppm"
    command = [sys.executable, "-c", RUN, MINIMAL / "minimal.py", folder, "3", out]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    [image] = Generator(folder, SessionOptions(ops="stock")).generate([3], seed=7).images
    height, width, _ = image.shape
    assert out.read_bytes() == f"P6\n{width} {height}\n255\n".encode() + image.tobytes()


def test_an_edit_keeps_the_left_half(fake_encoder_bundle: Path, tmp_path: Path) -> None:
    out = tmp_path / "picture.ppm"
    command = [sys.executable, MINIMAL / "edit.py", fake_encoder_bundle, "3", out]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    [image] = Generator(fake_encoder_bundle).generate([3], seed=7).images
    width = image.shape[1]
    found = np.frombuffer(out.read_bytes()[-image.size :], np.uint8).reshape(image.shape)
    np.testing.assert_array_equal(found[:, : width // 2], image[:, : width // 2])
    assert np.any(found != image)


@pytest.mark.parametrize("row", table_after("| message | from |"), ids=lambda row: row[0])
def test_its_messages_are_those_of_the_libraries(row: list[str]) -> None:
    message, of, _ = row
    for language in SOURCES if of == "all" else of.split(", "):
        text = literals(SOURCES[language])
        for part in message.strip("`").split("…"):
            assert part.strip() in text, f"{language} never says {part!r}"


def test_onnxruntime_says_what_the_page_quotes(tmp_path: Path) -> None:
    session = onnxruntime.InferenceSession(write_fake_bundle(tmp_path / "bundle") / "generate.onnx")
    good = {
        "class_labels": np.array([0], np.int64),
        "uniforms": np.zeros((1, L), np.float32),
        "forced_tokens": np.full((1, L), -1, np.int64),
        "cfg_scale": np.array(4, np.float32),
        "top_k": np.array(0, np.int64),
        "top_p": np.array(0, np.float32),
    }
    session.run(None, good)
    quoted = [row[0].strip("`").split("…")[0] for row in table_after("From ONNX Runtime itself")]
    assert quoted == list(MISTAKES)
    for words, changes in MISTAKES.items():
        feeds = {name: value for name, value in {**good, **changes}.items() if value is not None}
        with pytest.raises(Exception, match=re.escape(words)):  # its exceptions have no common base below Exception
            session.run(None, feeds)
