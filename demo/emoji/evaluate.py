"""Judge what the trained model draws: `python -m nextscale.demo.emoji.evaluate --data sprites.npz --run RUN`.

Prints, for each kind of prompt in `prompts.json`, how many pictures show what was asked. Each prompt is drawn once, and
no picture is chosen among several. `--bundle` judges a bundle's pictures of the same prompts and random numbers,
`--real` the sprites themselves, and `--coded` these after the VAE: what the model can reach at best.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

import click
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from nextscale.demo.emoji.captions import COLOURS
from nextscale.demo.emoji.compose import Compositor
from nextscale.demo.emoji.configuration import EMOJI, TINY, EmojiConfig
from nextscale.demo.emoji.judge import WINDOWS, Judge, cut, load_judge
from nextscale.demo.emoji.prompts import Prompt, Settings, load_prompts, real_scene
from nextscale.demo.emoji.scenes import batch_of, token_ids
from nextscale.demo.emoji.sheet import captioned
from nextscale.demo.emoji.sprites import Sprites
from nextscale.demo.emoji.styles import WORDS
from nextscale.demo.emoji.weights import INFINITY, JUDGE, TEXT, VAE
from nextscale.models.infinity.checkpoint import load_infinity
from nextscale.models.infinity.multi_scale_bits import accumulate
from nextscale.models.infinity.reference import generate
from nextscale.models.infinity.vae_checkpoint import load_bsq_vae
from nextscale.models.t5.checkpoint import load_t5
from nextscale.models.var.reference import to_pixels
from nextscale.runtime import Generator
from nextscale.runtime._uniforms import uniforms

BATCH = 50
BORDER = 4  # pixels of a picture's edge, by which the colour behind is told


def draw(
    run: Path, config: EmojiConfig, prompts: Sequence[Prompt], settings: Settings, device: torch.device
) -> NDArray[np.uint8]:
    """The pictures of prompts by the weights in a folder, uint8 [n, H, W, 3]: those of a bundle of full precision."""
    infinity = load_infinity(run / INFINITY).to(device)
    vae = load_bsq_vae(run / VAE, config=config.models.vae).to(device)
    text = load_t5(run / TEXT).float().to(device)
    shape, found = (config.size.num_tokens, infinity.config.token_bits), []
    for first in range(0, len(prompts), BATCH):
        numbers = range(first, min(first + BATCH, len(prompts)))
        ids = token_ids([prompts[i].prompt for i in numbers]).to(device)
        random = torch.from_numpy(uniforms(settings.seed, numbers, math.prod(shape))).unflatten(1, shape).to(device)
        with torch.no_grad(), device:
            features = text(ids, ids > 0)
            made = generate(
                infinity,
                config.size,
                features,
                random,
                text_mask=(ids > 0).long(),
                cfg_scale=settings.cfg_scale,
                tau=settings.tau,
                top_p=settings.top_p,
            )
            found.append(to_pixels(vae.decode(made.f_hat)).cpu().numpy())
    return np.concatenate(found)


def draw_with(bundle: Path, prompts: Sequence[Prompt], settings: Settings) -> NDArray[np.uint8]:
    """The same by a bundle."""
    made = Generator(bundle).generate(prompts=[p.prompt for p in prompts], batch_size=4, **asdict(settings))
    return made.images


def real(
    sprites: Sprites, prompts: Sequence[Prompt], device: torch.device, run: Path | None, config: EmojiConfig
) -> NDArray[np.uint8]:
    """The same of the sprites themselves; with a folder, after its VAE."""
    compositor, found = Compositor(sprites, device), []
    vae = None if run is None else load_bsq_vae(run / VAE, config=config.models.vae).to(device)
    for first in range(0, len(prompts), BATCH):
        scenes = [real_scene(prompt, sprites) for prompt in prompts[first : first + BATCH]]
        images = compositor(batch_of(scenes, sprites).to(device))
        if vae is not None:
            with torch.no_grad(), device:
                bits = vae.encode(images, config.size.stage_sizes)
                images = vae.decode(accumulate(bits.split(config.size.stage_tokens, dim=1), config.size)[0])
        found.append(to_pixels(images).cpu().numpy())
    return np.concatenate(found)


def behind(pixels: NDArray[np.uint8]) -> list[str]:
    """The colour that is nearest to the median of each picture's edge; pixels uint8 [n, H, W, 3]."""
    edge = np.ones(pixels.shape[1:3], bool)
    edge[BORDER:-BORDER, BORDER:-BORDER] = False
    median = np.median(pixels[:, edge], axis=1)
    distance = np.square(median[:, None] - np.array(list(COLOURS.values()))).sum(2)
    return [list(COLOURS)[i] for i in distance.argmin(1)]


@torch.no_grad()
def recognised(judge: Judge, pixels: NDArray[np.uint8], windows: Sequence[str]) -> tuple[Tensor, Tensor]:
    """What the judge sees in a window of each picture: looks and styles, int64 [n] each."""
    looks, styles = [], []
    device = next(judge.parameters()).device
    places = torch.tensor([WINDOWS[window] for window in windows], device=device)
    for first in range(0, len(pixels), BATCH):
        part = torch.from_numpy(pixels[first : first + BATCH]).to(device).permute(0, 3, 1, 2)
        both = judge(cut(part.float() / 127.5 - 1, places[first : first + BATCH]))
        looks.append(both[0].argmax(1).cpu())
        styles.append(both[1].argmax(1).cpu())
    return torch.cat(looks), torch.cat(styles)


def score(
    judge: Judge, sprites: Sprites, prompts: Sequence[Prompt], pixels: NDArray[np.uint8]
) -> dict[str, dict[str, float]]:
    """Shares of pictures, by kind of prompt.

    Returns:
        for each kind: "count"; "objects", the share of pictures of which everything asked is recognised in its place,
        and "error", half of its 95% interval; "kin", the same up to `Sprites.kin`; "style", of the first thing;
        "colour", as asked behind it.
    """
    kin = torch.from_numpy(sprites.kin_of_looks)
    looks_of = {e.name: int(look) for e, look in zip(sprites.emoji, sprites.looks, strict=True)}
    colours, kinds = behind(pixels), {}
    for kind in dict.fromkeys(p.kind for p in prompts):
        rows = [i for i, p in enumerate(prompts) if p.kind == kind]
        right, akin, style = (torch.ones(len(rows), dtype=torch.bool) for _ in range(3))
        for i in range(len(prompts[rows[0]].objects)):
            names, windows = zip(*(prompts[row].objects[i] for row in rows), strict=True)
            looks, styles = recognised(judge, pixels[rows], windows)
            wanted = torch.tensor([looks_of[name] for name in names])
            right &= looks == wanted
            akin &= kin[looks] == kin[wanted]
            if i == 0:
                style = styles == torch.tensor([WORDS.index(prompts[row].style) for row in rows])
        share = right.float().mean().item()
        kinds[kind] = {
            "count": len(rows),
            "objects": share,
            "error": 1.96 * math.sqrt(share * (1 - share) / len(rows)),
            "kin": akin.float().mean().item(),
            "style": style.float().mean().item(),
            "colour": sum(colours[row] == prompts[row].colour for row in rows) / len(rows),
        }
    return kinds


@click.command(context_settings={"show_default": True})
@click.option("--data", type=click.Path(exists=True, dir_okay=False, path_type=Path), required=True)
@click.option("--run", type=click.Path(exists=True, file_okay=False, path_type=Path), required=True, help="Weights.")
@click.option("--bundle", type=click.Path(exists=True, file_okay=False, path_type=Path), help="Judge its pictures.")
@click.option("--real", "of_sprites", is_flag=True, help="Judge the sprites themselves.")
@click.option("--coded", is_flag=True, help="Judge the sprites after the VAE.")
@click.option("--cfg-scale", type=float, help="Instead of the file's.")
@click.option("--tau", type=float, help="Instead of the file's.")
@click.option("--every", default=1, help="Of the prompts, take each so many-th.")
@click.option("--sheet", "sheet_file", type=click.Path(dir_okay=False, path_type=Path), help="Draw some as a PNG.")
@click.option("--tiny", is_flag=True, help="The weights are those of a very small model (to try the program).")
def main(
    data: Path,
    run: Path,
    bundle: Path | None,
    of_sprites: bool,
    coded: bool,
    cfg_scale: float | None,
    tau: float | None,
    every: int,
    sheet_file: Path | None,
    tiny: bool,
) -> None:
    """Print the shares of pictures that show what was asked, by kind of prompt."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    config, sprites = TINY if tiny else EMOJI, Sprites.load(data)
    settings, prompts = load_prompts()
    if cfg_scale is not None:
        settings = replace(settings, cfg_scale=cfg_scale)
    if tau is not None:
        settings = replace(settings, tau=tau)
    prompts = prompts[::every]
    if bundle:
        pixels = draw_with(bundle, prompts, settings)
    elif of_sprites or coded:
        pixels = real(sprites, prompts, device, run if coded else None, config)
    else:
        pixels = draw(run, config, prompts, settings, device)
    looks = int(sprites.looks.max()) + 1
    judge = load_judge(run / JUDGE, looks).to(device)
    click.echo(json.dumps({"settings": asdict(settings), **score(judge, sprites, prompts, pixels)}, indent=1))
    if sheet_file:
        some = slice(None, None, max(1, len(prompts) // 100))
        captioned([pixels[some]], [p.prompt for p in prompts[some]], 10).save(sheet_file, optimize=True)


if __name__ == "__main__":
    main()
