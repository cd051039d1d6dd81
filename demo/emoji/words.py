"""The words of the captions that training shows, for `nextscale generate --verbose`: a list beside the text encoder.

`python -m nextscale.demo.emoji.words --data sprites.npz --run RUN` writes RUN/text/words.txt, without misspelt ones.
"""

from __future__ import annotations

from pathlib import Path

import click

from nextscale.demo.emoji.captions import COLOURS, PLACES
from nextscale.demo.emoji.held_out import HeldOut
from nextscale.demo.emoji.scenes import RELATIONS, Scenes
from nextscale.demo.emoji.sprites import Sprites
from nextscale.demo.emoji.styles import WORDS
from nextscale.demo.emoji.weights import TEXT
from nextscale.runtime._bundle import WORDS_NAME
from nextscale.runtime._words import words_of

BETWEEN = "a small style on background"  # what captions have besides names, tags and the words of lists


def caption_words(scenes: Scenes) -> list[str]:
    """Those of all captions of the scenes, sorted."""
    shown = {int(scenes.sprites.concept[sprite]) for sprite in scenes.train}
    things = [text for concept in shown for e in [scenes.sprites.emoji[concept]] for text in (e.name, *e.tags)]
    return sorted(
        {word for text in (*things, *WORDS, *COLOURS, *PLACES, *RELATIONS, BETWEEN) for word in words_of(text)}
    )


@click.command()
@click.option("--data", type=click.Path(exists=True, dir_okay=False, path_type=Path), required=True)
@click.option("--run", type=click.Path(exists=True, file_okay=False, path_type=Path), required=True, help="Weights.")
def main(data: Path, run: Path) -> None:
    """Write the list beside a run's text encoder."""
    words = caption_words(Scenes(Sprites.load(data), HeldOut.load()))
    (run / TEXT / WORDS_NAME).write_text("".join(f"{word}\n" for word in words), encoding="utf-8")


if __name__ == "__main__":
    main()
