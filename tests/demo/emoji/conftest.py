"""Sprites for tests: plain shapes instead of drawings, of a few concepts that held_out.json names."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw

from nextscale.demo.emoji.held_out import HeldOut
from nextscale.demo.emoji.icons import SIDE, Emoji
from nextscale.demo.emoji.scenes import Scenes
from nextscale.demo.emoji.sprites import Sprites, packed
from nextscale.demo.emoji.styles import WORDS

torch.set_num_threads(1)

STYLES = (0, 3)
CONCEPTS = 4
SHAPES = ("rectangle", "ellipse", "rounded_rectangle", "arc")


def shape(concept: int, style: int) -> Image.Image:
    """A coloured shape with soft edges, in the middle."""
    image = Image.new("RGBA", (SIDE, SIDE))
    pen = ImageDraw.Draw(image)
    box, colour = (20, 30, 108, 98), (60 * concept + 20, 40 * style + 30, 120, 255)
    if SHAPES[concept] == "arc":
        pen.arc(box, 0, 270, colour, 20)
    else:
        getattr(pen, SHAPES[concept])(box, fill=colour)
    return image.resize((SIDE // 2, SIDE // 2)).resize((SIDE, SIDE))


def make_sprites(names: list[str]) -> Sprites:
    """Each of four concepts in two styles."""
    both = [(c, s) for s in STYLES for c in range(CONCEPTS)]
    concept, style = (np.array(column) for column in zip(*both, strict=True))
    emoji = tuple(Emoji(f"1f60{c}", name, ("thing", f"own {c}"), 3) for c, name in enumerate(names))
    return Sprites(tuple(packed(shape(c, s)) for c, s in both), style, concept, emoji, np.arange(CONCEPTS))


@pytest.fixture(scope="session")
def sprites() -> Sprites:
    """Of which one (concept, style) pair is held out."""
    in_style = sorted(name for name, style in HeldOut.load().pairs if style == WORDS[STYLES[0]])
    return make_sprites([in_style[0], "plain square", "plain disc", "plain ring"])


@pytest.fixture(scope="session")
def scenes(sprites: Sprites) -> Scenes:
    return Scenes(sprites, HeldOut.load())


@pytest.fixture(scope="session")
def data(sprites: Sprites, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The file of the sprites."""
    path = tmp_path_factory.mktemp("emoji") / "sprites.npz"
    sprites.save(path)
    return path


@pytest.fixture
def archive(tmp_path: Path) -> Callable[[dict[str, object]], Path]:
    """Makes a package's archive of files by name: bytes as they are, anything else as JSON."""

    def make(content: dict[str, object]) -> Path:
        path = tmp_path / "package.tgz"
        with tarfile.open(path, "w:gz") as file:
            for name, value in content.items():
                raw = value if isinstance(value, bytes) else json.dumps(value).encode()
                member = tarfile.TarInfo(f"package/{name}")
                member.size = len(raw)
                file.addfile(member, io.BytesIO(raw))
        return path

    return make
