"""Make the emoji model's data: `python -m nextscale.demo.emoji.make_data --cache DIR --out sprites.npz`.

Fetches three npm packages into the cache unless they are there, and draws about 10,000 sprites: some five minutes on
one core. `--credits` also writes whose drawings they are, `--judge-out` draws two styles more for the judge.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import click
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from nextscale.demo.emoji.credits import credits
from nextscale.demo.emoji.icons import (
    COLLECTIONS_FILE,
    Emoji,
    drawn,
    icons_of,
    pictures,
    read_collections,
    read_emoji,
    svg,
)
from nextscale.demo.emoji.packages import FLUENT_3D, ICONS, NAMES, Package, fetch, files, json_files
from nextscale.demo.emoji.sprites import Sprites, alike, packed, unmistakable
from nextscale.demo.emoji.styles import JUDGE_STYLES, STYLES, Style


@click.command()
@click.option("--cache", type=click.Path(file_okay=False, path_type=Path), required=True, help="Folder of packages.")
@click.option("--out", type=click.Path(dir_okay=False, path_type=Path), required=True)
@click.option("--credits", "credits_file", type=click.Path(dir_okay=False, path_type=Path))
@click.option("--judge-out", type=click.Path(dir_okay=False, path_type=Path), help="Of the judge's further styles.")
def main(cache: Path, out: Path, credits_file: Path | None, judge_out: Path | None) -> None:
    """Draw every emoji in every style."""
    archives = {package: fetch(package, cache) for package in (ICONS, FLUENT_3D, NAMES)}
    emoji = read_emoji(archives[NAMES])
    of_all = _draw(emoji, STYLES, archives)
    looks = alike(of_all.digests, of_all.style, of_all.concept, len(emoji))
    Sprites(of_all.webp, of_all.style, of_all.concept, tuple(emoji), looks).save(out)
    click.echo(
        f"{out}: {len(of_all.webp)} sprites of {len(emoji)} emoji, {out.stat().st_size / 2**20:.1f} MiB", err=True
    )
    if judge_out:
        more = _draw(emoji, JUDGE_STYLES, archives)
        kept = np.flatnonzero(unmistakable(more.digests, more.style, looks[more.concept]))
        webp = tuple(more.webp[i] for i in kept)
        Sprites(webp, more.style[kept], more.concept[kept], tuple(emoji), looks).save(judge_out)
        click.echo(f"{judge_out}: {len(kept)} sprites, {judge_out.stat().st_size / 2**20:.1f} MiB", err=True)
    if credits_file:
        about = json_files(archives[ICONS], {COLLECTIONS_FILE})[COLLECTIONS_FILE]
        ((_, licence),) = files(archives[NAMES], lambda name: name == "LICENSE")
        counts = np.bincount(of_all.style, minlength=len(STYLES)).tolist()
        package = json_files(archives[FLUENT_3D], {"package.json"})["package.json"]
        credits_file.write_text(credits(about, package, licence.decode(), counts), encoding="utf-8")


@dataclass(frozen=True)
class _Drawn:
    """What `Sprites` has of N sprites, and digests of their pixels."""

    webp: tuple[bytes, ...]
    digests: tuple[bytes, ...]
    style: NDArray[np.int64]
    concept: NDArray[np.int64]


def _draw(emoji: list[Emoji], styles: Iterable[Style], archives: dict[Package, Path]) -> _Drawn:
    """All emoji in some styles, whose numbers are their places among these."""
    vectors = [style for style in styles if style.package is ICONS]
    names = {style.collection for style in vectors} | {style.chars_of for style in vectors if style.chars_of}
    collections = read_collections(archives[ICONS], names)
    webp, digests, numbers, concepts = [], [], [], []
    for number, style in enumerate(styles):
        drawings = _drawings(emoji, style, collections, archives[style.package])
        for concept, e in enumerate(emoji):
            if e.code in drawings:
                webp.append(packed(drawings[e.code]))
                digests.append(hashlib.sha256(drawings[e.code].tobytes()).digest())
                numbers.append(number)
                concepts.append(concept)
        click.echo(f"{style.word}: {len(drawings)} emoji", err=True)
    return _Drawn(tuple(webp), tuple(digests), np.array(numbers), np.array(concepts))


def _drawings(
    emoji: list[Emoji], style: Style, collections: dict[str, dict[str, object]], archive: Path
) -> dict[str, Image.Image]:
    """Each emoji's picture, by its code; emoji that the style does not draw, or draws as nothing, are left out."""
    if style.package is FLUENT_3D:
        codes = {e.code for e in emoji}
        found = {code: picture for code, picture in pictures(archive) if code in codes}
    else:
        icons = icons_of(emoji, style, collections)
        found = {code: drawn(svg(collections[style.collection], name)) for code, name in icons.items()}
    return {code: picture for code, picture in found.items() if picture.getchannel("A").getbbox()}


if __name__ == "__main__":
    main()
