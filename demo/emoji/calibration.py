"""What quantization's calibration draws with the emoji model: captions as training has them, in `calibration.json`.

`python -m nextscale.demo.emoji.calibration --data sprites.npz` makes it.
"""

from __future__ import annotations

import json
from pathlib import Path

import click

from nextscale.demo.emoji.held_out import HeldOut
from nextscale.demo.emoji.scenes import Scenes
from nextscale.demo.emoji.sprites import Sprites

FILE = Path(__file__).with_name("calibration.json")
COUNT = 64
SEED = 1  # training has 0


def load_captions(path: Path = FILE) -> tuple[str, ...]:
    """The committed captions."""
    return tuple(json.loads(path.read_text(encoding="utf-8")))


@click.command()
@click.option("--data", type=click.Path(exists=True, dir_okay=False, path_type=Path), required=True)
@click.option("--out", type=click.Path(dir_okay=False, path_type=Path), default=FILE, show_default=True)
def main(data: Path, out: Path) -> None:
    """Choose the captions, and write them."""
    scenes = Scenes(Sprites.load(data), HeldOut.load())
    captions = [scene.caption for scene in scenes.scenes(SEED, 0, COUNT)]
    out.write_text(json.dumps(captions, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
