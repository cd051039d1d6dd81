"""PP-OCRv4's recognition of text lines, on lines drawn in fonts that a package ships."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
from foreign_tools.feeds import Arrays
from foreign_tools.relative_error import relative_error
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from foreign_subjects.packages import PackagedFile
from foreign_subjects.subject import Subject

MODEL = PackagedFile(
    "rapidocr-onnxruntime==1.4.4",
    "rapidocr_onnxruntime/models/ch_PP-OCRv4_rec_infer.onnx",
    "48fc40f24f6d2a207a2b1091d3437eb3cc3eb6b676dc3ef9c37384005483683b",
)
FONTS = tuple(
    PackagedFile("matplotlib==3.11.2", f"matplotlib/mpl-data/fonts/ttf/{name}.ttf", sha256)
    for name, sha256 in {
        "DejaVuSans": "3fdf69cabf06049ea70a00b5919340e2ce1e6d02b0cc3c4b44fb6801bd1e0d22",
        "DejaVuSerif": "107244956e9962b9e96faccdc551825e0ae0898ae13737133e1b921a2fd35ffa",
        "DejaVuSansMono": "602ec86b8948cfcd956482fe64f94c36c867770149ef2f791d4613f443bcecb3",
        "DejaVuSans-Bold": "b184b89e3c1075f22f6b71575b6fc20d4972b3cfd3b23322ca6fd596dcaef167",
        "DejaVuSerif-Italic": "3e7994fbc54fa10ce3352a42d548fadd7d9cadb69cb1109bc9d960f6dac57f04",
    }.items()
)
HEIGHT, WIDTH = 48, 720
FONT_SIZE, MARGIN, NOISE = 34, 6, 4
FEW = 8


def subject(work: Path) -> Subject:
    """The model as the package ships it, in opset 12."""
    path = MODEL.get(work)
    [name] = [value.name for value in onnx.load(path, load_external_data=False).graph.input]
    characters = read_characters(path)
    fonts = [font.get(work) for font in FONTS]
    texts = _lines("test")

    def measure(exact: Sequence[Arrays], found: Sequence[Arrays]) -> list[str]:
        expected, read = ([_read(outputs, characters) for outputs in of_one] for of_one in (exact, found))
        same = [one == other for one, other in zip(expected, read, strict=True)]
        right = sum(one == other for one, other in zip(texts, read, strict=True))
        return [f"{sum(same[:FEW])}", f"{sum(same)}", f"{right}", f"{relative_error(exact, found):.4f}"]

    return Subject(
        title="PP-OCRv4, recognition of text lines",
        origin=(
            f"model: {MODEL.path} of {MODEL.package}, sha256 {MODEL.sha256[:12]}",
            f"lines: {len(texts)} to test and {len(_lines('calibration'))} others to calibrate on "
            f"(benchmarks/foreign_subjects/lines_*.txt), drawn in five fonts of {FONTS[0].package} on noise, "
            f"{HEIGHT} x {WIDTH}; texts by greedy CTC",
        ),
        model=path,
        calibration=[{name: draw(text, i, fonts)} for i, text in enumerate(_lines("calibration"), len(texts))],
        test=[{name: draw(text, i, fonts)} for i, text in enumerate(texts)],
        headings=(f"texts as in float, of the first {FEW}", f"of {len(texts)}", "texts as drawn", "relative error"),
        measure=measure,
    )


def draw(text: str, number: int, fonts: Sequence[Path]) -> NDArray[np.float32]:
    """A line of dark text on light noise, padded with zeros on its right; [1, 3, HEIGHT, WIDTH] in [-1, 1].

    Args:
        text: of the line.
        number: of the line, which chooses its font, its greys and its noise.
        fonts: files.
    """
    rng = np.random.default_rng(number)
    font = ImageFont.truetype(fonts[number % len(fonts)], FONT_SIZE)
    width = min(int(font.getlength(text)) + 2 * MARGIN, WIDTH)
    paper, ink = (int(grey) for grey in (rng.integers(180, 256), rng.integers(0, 80)))
    picture = Image.new("L", (width, HEIGHT), paper)
    ImageDraw.Draw(picture).text((MARGIN, HEIGHT // 2), text, fill=ink, font=font, anchor="lm")
    noisy = np.asarray(picture) + rng.normal(0, NOISE, (HEIGHT, width))
    line = np.zeros((1, 3, HEIGHT, WIDTH), np.float32)
    line[..., :width] = noisy.round().clip(0, 255) / 127.5 - 1
    return line


def decode(best: NDArray[np.int64], characters: Sequence[str]) -> str:
    """Greedy CTC: the best class [T] of each place, repetitions once, without blanks, which are class 0."""
    changes = np.concatenate([[True], best[1:] != best[:-1]])
    return "".join(characters[index] for index in best[changes & (best != 0)])


def read_characters(model: Path) -> list[str]:
    """What the classes stand for: a blank, those that the model's metadata lists, and a space."""
    metadata = {item.key: item.value for item in onnx.load(model, load_external_data=False).metadata_props}
    return ["", *metadata["character"].splitlines(), " "]


def _read(outputs: Arrays, characters: Sequence[str]) -> str:
    [probabilities] = outputs.values()
    return decode(probabilities[0].argmax(axis=-1), characters)


def _lines(kind: str) -> list[str]:
    return (Path(__file__).parent / f"lines_{kind}.txt").read_text(encoding="utf-8").splitlines()
