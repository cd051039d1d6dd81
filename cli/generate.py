"""`nextscale generate`: classes or prompts in, a sheet of pictures out."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import click
import numpy as np
from rich.console import Console

from nextscale.cli import options
from nextscale.cli.pictures import Previews, StageProgress, after_stages, numbered, parameters_of, told_seed
from nextscale.cli.results import print_path
from nextscale.cli.sampling import Sampling, sampling_options
from nextscale.cli.subjects import SubjectOptions, Subjects, subject_options
from nextscale.runtime._bundle import Bundle
from nextscale.runtime._next_scale_loop import Generation, Generator
from nextscale.runtime._operators import Ops
from nextscale.runtime._outputs import is_stdout
from nextscale.runtime._session import SessionOptions
from nextscale.runtime._text import printable
from nextscale.runtime._words import known_words, unknown_words
from nextscale.runtime.image_io import (
    Writer,
    make_grid,
    npz_writer,
    picture_writer,
    require_picture_format,
    require_writable,
    write_files,
)


@click.command()
@click.argument("bundle_dir", metavar="DIR", type=options.BUNDLE)
@subject_options
@options.size
@click.option(
    "--count", type=click.IntRange(1, 100_000), default=1, metavar="N", help="Images of each class or prompt."
)
@click.option(
    "--seed",
    type=options.Seed(),
    default=0,
    metavar="S",
    help='0 to 2^64 - 1; the same seed gives the same pictures. "random" draws one and tells it.',
)
@click.option("--first-image", type=int, default=0, metavar="I", help="Start at image I of the seed.")
@sampling_options
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="The PNG, JPEG or WebP to write.  [default: sheet.png, unless --npz is given]",
)
@click.option(
    "--grid", type=options.Grid(), metavar="COLS[xROWS]", help="The sheet's layout.  [default: nearly square]"
)
@click.option("--no-grid", is_flag=True, help="One file per image: FILE-0000.png and so on.")
@options.previews
@click.option("--npz", type=click.Path(path_type=Path), metavar="FILE", help="Images, token maps and labels as arrays.")
@click.option("--batch", type=click.IntRange(1), default=4, show_default=True, metavar="N", help="Images at a time.")
@options.threads
@options.spinning
@options.operators
@click.option("--quiet", is_flag=True, help="No progress on stderr.")
@click.option("--verbose", is_flag=True, help="Also tell on stderr which words of the prompts the model never saw.")
def generate(
    bundle_dir: Path,
    subjects: SubjectOptions,
    area: str | None,
    ratio: str | None,
    count: int,
    seed: int | None,
    first_image: int,
    sampling: Sampling,
    out: Path | None,
    grid: tuple[int, int | None] | None,
    no_grid: bool,
    with_previews: bool,
    npz: Path | None,
    batch: int,
    threads: int,
    spinning: bool,
    ops: Ops,
    ops_library: str,
    quiet: bool,
    verbose: bool,
) -> None:
    """Make pictures of classes or of prompts with the bundle in DIR.

    Prints the path of each file it writes, and on stderr the seed that --seed random draws. A picture holds the
    parameters that made it: a PNG in its text chunk "nextscale", a JPEG or WebP in EXIF's image description.

    \b
    nextscale generate emoji-int8 --prompt "flat rocket on a navy background"
    nextscale generate demo-int8 --class "king penguin" --seed 3
    nextscale generate infinity-2b --prompt "a red fox in the snow" --ratio 3:4 --area 0.25M --count 4
    """
    if grid and no_grid:
        raise click.UsageError("--grid and --no-grid exclude each other")
    if with_previews and npz and not out:
        raise click.UsageError("--previews are named after the pictures: give --out, too")
    if out:
        require_picture_format(out)
    bundle = Bundle.open(bundle_dir)
    of = subjects.of(bundle, count)
    size = options.chosen_size(bundle.manifest, area, ratio)
    model = size.model
    sheet = out or (None if npz else Path("sheet.png"))
    pictures = _picture_paths(sheet, len(of), no_grid)
    previews = Previews(model.num_stages if with_previews else 0)
    columns, rows = grid or (None, None)
    cells = make_grid(np.empty((len(of), 1, 1, 3), np.uint8), columns, rows)  # refuses too small a grid
    height, width = model.image_size
    for path in pictures:
        require_picture_format(path, *(height, width) if no_grid else (len(cells) * height, len(cells[0]) * width))
    require_writable(
        [*pictures, *previews.paths(pictures), *([npz] if npz else [])], [*bundle.paths(), *subjects.inputs]
    )

    settings = {
        "seed": told_seed(seed),
        "first_image": first_image,
        **size.settings,
        **sampling.settings(bundle.manifest),
    }
    session = SessionOptions(
        threads=threads, spinning=spinning, ops=ops, ops_library=ops_library, keep_text_encoder=False
    )
    generator = Generator(bundle, session)
    if verbose and of.prompts is not None:
        click.echo(
            printable(_of_words(bundle, [*of.prompts, *([] if of.negative is None else [of.negative])])), err=True
        )
    console = Console(stderr=True, quiet=quiet)
    with StageProgress(console, len(of), batch, model.num_stages, previews) as progress:
        result = generator.generate(batch_size=batch, on_stage=progress.advance, **of.settings, **settings)

    parameters = parameters_of(generator, settings)
    writers = _picture_writers(pictures, result, of, parameters, (columns, rows), no_grid)
    for stages, images in previews:
        writers |= _picture_writers(
            after_stages(pictures, stages),
            replace(result, images=images),
            of,
            {**parameters, "stages": stages},
            (columns, rows),
            no_grid,
        )
    if npz:
        writers[npz] = npz_writer(
            {
                "images": result.images,
                "token_maps": result.token_maps,
                "class_labels": result.class_labels,
                "parameters": np.array(json.dumps({**parameters, **of.texts})),
            }
        )
    write_files(writers)
    for path in writers:
        if not is_stdout(path):
            print_path(path)


def _of_words(bundle: Bundle, texts: list[str]) -> str:
    """A line on the words that the bundle's model never saw."""
    known = known_words(bundle)
    if known is None:
        return "this bundle does not tell which words its model saw"
    unknown = unknown_words(texts, known)
    if not unknown:
        return "the model saw all words of the prompts"
    return f"words that the model never saw, drawn all the same: {', '.join(unknown)}"


def _picture_paths(sheet: Path | None, count: int, no_grid: bool) -> list[Path]:
    if sheet is None:
        return []
    return numbered(sheet, count) if no_grid else [sheet]


def _picture_writers(
    paths: list[Path],
    result: Generation,
    of: Subjects,
    parameters: dict[str, Any],
    layout: tuple[int | None, int | None],
    no_grid: bool,
) -> dict[Path, Writer]:
    if not no_grid:
        parameters = {**parameters, **of.parameters(range(len(of)))}
        return {path: picture_writer(path, make_grid(result.images, *layout), parameters) for path in paths}
    first = parameters["first_image"]
    return {
        path: picture_writer(path, image, {**parameters, "first_image": first + number, **of.parameters([number])})
        for number, (path, image) in enumerate(zip(paths, result.images, strict=True))
    }
