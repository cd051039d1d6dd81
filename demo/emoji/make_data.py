"""Make the emoji model's data: `python -m nextscale.demo.emoji.make_data --cache DIR --out sprites.npz`.

Fetches three npm packages into the cache unless they are there, and draws about 10,000 sprites: some five minutes on
one core. `--credits` also writes whose drawings they are.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

import click
import numpy as np
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
from nextscale.demo.emoji.packages import FLUENT_3D, ICONS, NAMES, fetch, files, json_files
from nextscale.demo.emoji.sprites import Sprites, alike, packed
from nextscale.demo.emoji.styles import STYLES, Style


@click.command()
@click.option("--cache", type=click.Path(file_okay=False, path_type=Path), required=True, help="Folder of packages.")
@click.option("--out", type=click.Path(dir_okay=False, path_type=Path), required=True)
@click.option("--credits", "credits_file", type=click.Path(dir_okay=False, path_type=Path))
def main(cache: Path, out: Path, credits_file: Path | None) -> None:
    """Draw every emoji in every style."""
    archives = {package: fetch(package, cache) for package in (ICONS, FLUENT_3D, NAMES)}
    emoji = read_emoji(archives[NAMES])
    vectors = [style for style in STYLES if style.package is ICONS]
    names = {style.collection for style in vectors} | {style.chars_of for style in vectors if style.chars_of}
    collections = read_collections(archives[ICONS], names)
    webp, digests, styles, concepts = [], [], [], []
    for si, style in enumerate(STYLES):
        drawings = _drawings(emoji, style, collections, archives[style.package])
        for concept, e in enumerate(emoji):
            if e.code in drawings:
                webp.append(packed(drawings[e.code]))
                digests.append(hashlib.sha256(drawings[e.code].tobytes()).digest())
                styles.append(si)
                concepts.append(concept)
        click.echo(f"{style.word}: {len(drawings)} emoji", err=True)
    style_of, concept_of = np.array(styles), np.array(concepts)
    looks = alike(digests, style_of, concept_of, len(emoji))
    Sprites(tuple(webp), style_of, concept_of, tuple(emoji), looks).save(out)
    click.echo(f"{out}: {len(webp)} sprites of {len(emoji)} emoji, {out.stat().st_size / 2**20:.1f} MiB", err=True)
    if credits_file:
        about = json_files(archives[ICONS], {COLLECTIONS_FILE})[COLLECTIONS_FILE]
        ((_, licence),) = files(archives[NAMES], lambda name: name == "LICENSE")
        counts = np.bincount(style_of, minlength=len(STYLES)).tolist()
        package = json_files(archives[FLUENT_3D], {"package.json"})["package.json"]
        credits_file.write_text(credits(about, package, licence.decode(), counts), encoding="utf-8")


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
