"""Commands and lines of Python that pages show are ones that work."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import click
import numpy as np
import pytest
from fake_bundle import write_fake_bundle
from fake_sizes_bundle import write_fake_sizes_bundle
from PIL import Image

from nextscale.cli.main import cli
from nextscale.runtime import Generator

ROOT = Path(__file__).parents[2]
PAGES = (ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md")))
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```", re.MULTILINE | re.DOTALL)
COMMANDS = [
    (page.name, line)
    for page in PAGES
    for language, block in BLOCK.findall(page.read_text(encoding="utf-8"))
    if not language
    for line in block.splitlines()
    if line.startswith("nextscale ")
]


def readme_python() -> list[str]:
    return [block for language, block in BLOCK.findall((ROOT / "README.md").read_text("utf-8")) if language == "python"]


def test_there_are_commands() -> None:
    assert {line.split()[1] for _, line in COMMANDS} >= {"build", "generate", "evaluate", "metrics", "paper"}


@pytest.mark.parametrize(("page", "line"), COMMANDS)
def test_a_command_line_is_understood(page: str, line: str) -> None:
    _, name, *arguments = shlex.split(line, comments=True)
    command: click.Command | None = cli.get_command(click.Context(cli), name)
    while isinstance(command, click.Group) and arguments:
        name, *arguments = arguments
        command = command.get_command(click.Context(command), name)
    assert command is not None, f"{page}: no command {name}"
    try:
        command.make_context(name, arguments)
    except click.BadParameter as error:
        if "does not exist" not in error.message:  # files that a reader has
            raise


def test_three_lines_make_a_picture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bundle = write_fake_sizes_bundle(tmp_path / "emoji-int8")
    monkeypatch.chdir(tmp_path)
    lines = readme_python()[0]
    assert sum(map(bool, lines.splitlines())) == 3
    exec(lines, {})
    picture = np.asarray(Image.open("rocket.png"))
    assert np.array_equal(picture, Generator(bundle).generate(prompts=["flat rocket on navy"]).images[0])


def test_stage_by_stage_as_shown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write_fake_bundle(tmp_path / "d16-int8")
    monkeypatch.chdir(tmp_path)
    lines = readme_python()[1].replace("207, 88", "2, 3").replace("[207]", "[2]").replace("top_k=900", "top_k=9")
    variables: dict[str, object] = {}
    exec(lines, variables)
    assert capsys.readouterr().out.splitlines() == ["1 of 3", "2 of 3", "3 of 3"]
    preview = variables["preview"]
    assert isinstance(preview, np.ndarray)
    assert (preview.dtype, preview.shape) == (np.uint8, (1, 12, 12, 3))
