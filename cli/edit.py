"""`nextscale edit`: a photograph and a mask in, the photograph with parts of it made anew out."""

import math
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

import click
import numpy as np
from numpy.typing import NDArray
from rich.console import Console

from nextscale.cli import options
from nextscale.cli.pictures import Previews, StageProgress, after_stages, numbered, parameters_of, told_seed
from nextscale.cli.results import print_path
from nextscale.cli.sampling import Sampling, sampling_options
from nextscale.cli.subjects import SubjectOptions, subject_options
from nextscale.runtime._bundle import Bundle
from nextscale.runtime._next_scale_loop import Generator
from nextscale.runtime._operators import Ops
from nextscale.runtime._outputs import is_stdout
from nextscale.runtime._photo import MOST_EXTENSION, SIDES, Canvas, Side, feather_of
from nextscale.runtime._read_picture import read_mask, read_picture
from nextscale.runtime._session import SessionOptions
from nextscale.runtime._sizes import Size
from nextscale.runtime._wording import shown_value
from nextscale.runtime.image_io import Writer, picture_writer, require_picture_format, require_writable, write_files


class Box(click.ParamType):
    """y0,x0,y1,x1."""

    name = "box"

    def convert(
        self, value: str | tuple[float, ...], param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[float, ...]:
        if isinstance(value, tuple):
            return value
        try:
            ends = tuple(float(part) for part in value.split(","))
        except ValueError:
            ends = ()
        if len(ends) != 4:
            self.fail(f"{shown_value(value)} is not four numbers such as 0.25,0.25,0.75,0.75", param, ctx)
        return ends


class Extension(click.ParamType):
    """SIDE=SHARE."""

    name = "extension"

    def convert(
        self, value: str | tuple[Side, float], param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[Side, float]:
        if isinstance(value, tuple):
            return value
        name, _, share = value.partition("=")
        side = next((side for side in SIDES if side == name), None)
        try:
            amount = float(share)
        except ValueError:
            amount = math.nan
        if side is None or math.isnan(amount):
            sides = ", ".join(SIDES)
            self.fail(
                f"{shown_value(value)} is not a side and a share such as left=0.25; sides are {sides}", param, ctx
            )
        return side, amount


@click.command()
@click.argument("bundle_dir", metavar="DIR", type=options.BUNDLE)
@click.argument("photo", type=click.Path(path_type=Path))
@click.option(
    "--mask",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="A picture of the photo's size: what is white is made anew.  [default: where the photo is transparent]",
)
@click.option("--box", type=Box(), metavar="Y0,X0,Y1,X1", help="Make a box anew; shares of height and width.")
@click.option("--outpaint", is_flag=True, help="Keep the box, and make all else anew.")
@click.option(
    "--extend",
    type=Extension(),
    multiple=True,
    metavar="SIDE=SHARE",
    help="Make the photo a part of a larger picture: left=0.25 adds a quarter of its width.",
)
@click.option(
    "--variation",
    type=options.FiniteRange(0, 1, min_open=True),
    metavar="SHARE",
    help="Make this share of the stages anew, the last ones: the photo's layout and colours stay.",
)
@subject_options
@options.size
@click.option(
    "--count", type=click.IntRange(1, 10_000), default=1, metavar="N", help="Results of each class or prompt."
)
@click.option("--seed", type=options.Seed(), default=0, metavar="S", help='0 to 2^64 - 1, or "random".')
@sampling_options
@click.option("--feather", type=click.IntRange(0, 1000), metavar="PX", help="The seam's width within the mask.")
@click.option("--no-blend", is_flag=True, help="The decoder's picture as it is, also outside the mask.")
@click.option("--out", type=click.Path(path_type=Path), default=Path("edited.png"), show_default=True, metavar="FILE")
@options.previews
@click.option("--batch", type=click.IntRange(1), default=4, show_default=True, metavar="N", help="Pictures at a time.")
@options.threads
@options.spinning
@options.operators
@click.option("--quiet", is_flag=True, help="No progress on stderr.")
def edit(
    bundle_dir: Path,
    photo: Path,
    mask: Path | None,
    box: tuple[float, ...] | None,
    outpaint: bool,
    extend: tuple[tuple[Side, float], ...],
    variation: float | None,
    subjects: SubjectOptions,
    area: str | None,
    ratio: str | None,
    count: int,
    seed: int | None,
    sampling: Sampling,
    feather: int | None,
    no_blend: bool,
    out: Path,
    with_previews: bool,
    batch: int,
    threads: int,
    spinning: bool,
    ops: Ops,
    ops_library: str,
    quiet: bool,
) -> None:
    """Make parts of PHOTO anew with the bundle in DIR: of a class, of no class, or of a prompt.

    The result has the photo's size; a PNG has its pixels outside the mask exactly. With several results each has a file
    of its own, FILE-0000.png and so on. A picture holds the parameters that made it, as those of `nextscale generate`.

    \b
    nextscale edit demo-int8 photo.jpg --mask mask.png --class "tabby cat" --count 4
    nextscale edit demo-int8 photo.jpg --box 0.25,0.25,0.75,0.75 --outpaint
    nextscale edit demo-int8 photo.jpg --extend left=0.25 --extend right=0.25
    nextscale edit demo-int8 photo.jpg --variation 0.2
    """
    if outpaint and box is None:
        raise click.UsageError("--outpaint keeps a box: give --box")
    if mask is not None and box is not None:
        raise click.UsageError("--mask and --box exclude each other")
    if no_blend and feather is not None:
        raise click.UsageError("--no-blend and --feather exclude each other")
    sides = dict(extend)
    if len(sides) < len(extend):
        raise click.UsageError("--extend: give each side once")
    require_picture_format(out)
    bundle = Bundle.open(bundle_dir)
    bundle.require_encoder()
    of = subjects.of(bundle, count, default=bundle.model.num_classes)
    paths = [out] if len(of) == 1 else numbered(out, len(of))

    read = read_picture(photo)
    size = options.chosen_size(bundle.manifest, area, ratio, _extended(read.pixels.shape, sides))
    model = size.model
    previews = Previews(model.num_stages if with_previews else 0)
    canvas = Canvas(read.pixels, read.transparent if read.transparent is not None and read.transparent.any() else None)
    if mask is not None:
        canvas = Canvas(read.pixels, read_mask(mask, canvas.size))
    inputs = [*bundle.paths(), photo, *([mask] if mask else []), *subjects.inputs]
    require_writable([*paths, *previews.paths(paths)], inputs)
    if box is not None:
        canvas = canvas.with_box(box, model, outpaint=outpaint)
    if extend:
        canvas = canvas.extended(sides)
    if canvas.mask is None and variation is None:
        raise click.UsageError("nothing says what to make anew: give --mask, --box, --extend or --variation")
    keep_stages = 0 if variation is None else model.num_stages - max(1, round(variation * model.num_stages))
    height, width = canvas.size
    require_picture_format(out, height, width)
    window = canvas.window(model)
    image, seen_mask = canvas.seen(window, model)

    settings = {"seed": told_seed(seed), **sampling.settings(bundle.manifest)}
    session = SessionOptions(
        threads=threads, spinning=spinning, ops=ops, ops_library=ops_library, keep_text_encoder=False
    )
    generator = Generator(bundle, session)
    console = Console(stderr=True, quiet=quiet)
    with StageProgress(console, len(of), batch, model.num_stages, previews) as progress:
        made = generator.edit(
            image,
            seen_mask,
            keep_stages=keep_stages,
            feather=-1,
            batch_size=batch,
            on_stage=progress.advance,
            **of.settings,
            **settings,
        )
    seam = -1 if no_blend else feather_of(window, model) if feather is None else feather
    parameters = parameters_of(generator, {**settings, **size.settings})
    parameters["edit"] = {
        "window": [window.y, window.x, window.height, window.width],
        "keep_stages": keep_stages,
        "feather": seam,
        "share_made_anew": 1.0 if seen_mask is None else float(np.mean(seen_mask)),
    }

    def write(path: Path, number: int, image: NDArray[np.uint8], further: dict[str, Any], file: BinaryIO) -> None:
        """A result is put together when it is written, so that one large photograph at a time is in memory."""
        own = {"first_image": number, **of.parameters([number])}
        whole = canvas.with_window(image, window, seam)
        picture_writer(path, whole, {**parameters, **own, **further})(file)

    def writers(paths: list[Path], images: NDArray[np.uint8], further: dict[str, Any]) -> dict[Path, Writer]:
        return {
            path: partial(write, path, number, image, further)
            for number, (path, image) in enumerate(zip(paths, images, strict=True))
        }

    files = writers(paths, made.images, {})
    for stages, images in previews:
        files |= writers(after_stages(paths, stages), images, {"stages": stages})
    write_files(files)
    for path in files:
        if not is_stdout(path):
            print_path(path)


def _extended(shape: tuple[int, ...], sides: Mapping[Side, float]) -> Size:
    """About the size of a picture with the shares that are to be added at its sides, which may yet be refused."""
    shares = {side: min(max(share, 0.0), MOST_EXTENSION) for side, share in sides.items()}
    tall, wide = (sum(shares.get(side, 0) for side in pair) for pair in (SIDES[::2], SIDES[1::2]))
    return round(shape[0] * (1 + tall)), round(shape[1] * (1 + wide))
