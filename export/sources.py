"""Where a model to build comes from: a checkpoint, a preset with random weights, or the embedded demo model."""

from __future__ import annotations

import json
from collections.abc import Sequence
from importlib.resources import as_file, files
from pathlib import Path

from nextscale.export.build import Source
from nextscale.export.checkpoint import load_models, load_var, load_vqvae
from nextscale.export.presets import get_preset
from nextscale.export.random_weights import random_models
from nextscale.runtime.errors import NextscaleError

CLASS_NAMES_LIMIT = 4 * 2**20  # bytes


def checkpoint_source(
    name: str,
    var_path: Path,
    vae_path: Path,
    preset: str | None = None,
    patch_nums: Sequence[int] | None = None,
    num_heads: int | None = None,
    class_names: Path | None = None,
) -> Source:
    """A user's checkpoints; `preset` says what they must be, otherwise their shapes tell."""
    if preset is not None:
        expected = get_preset(preset)
        var, vqvae = load_var(var_path, config=expected.var), load_vqvae(vae_path, config=expected.vqvae)
    else:
        var, vqvae = load_models(var_path, vae_path, patch_nums=patch_nums, num_heads=num_heads)
    return Source(
        var,
        vqvae,
        name,
        f"Built from `{var_path.name}` and `{vae_path.name}`.",
        class_names=read_class_names(class_names, var.config.num_classes),
    )


def random_source(name: str, preset: str, seed: int, class_names: Path | None = None) -> Source:
    """A preset with random weights: as fast as the real one, and its pictures are noise."""
    var, vqvae = random_models(preset, seed)
    return Source(
        var,
        vqvae,
        name,
        f"`{preset}` with random weights (seed {seed}): for measuring speed; its pictures are noise.",
        licence="none: random numbers",
        class_names=read_class_names(class_names, var.config.num_classes),
    )


def demo_source(name: str) -> Source:
    """The demo model in `nextscale.demo`."""
    folder = files("nextscale.demo")
    with as_file(folder / "var.safetensors") as var_path, as_file(folder / "vae.safetensors") as vae_path:
        var, vqvae = load_models(var_path, vae_path)
    class_names = json.loads((folder / "class_names.json").read_text(encoding="utf-8"))
    return Source(
        var,
        vqvae,
        name,
        "nextscale's demo model, trained on Tiny-ImageNet photographs of 150 classes (`demo/model_card.md` tells how).",
        licence="weights learned from ImageNet photographs: research use",
        class_names=class_names,
    )


def read_class_names(path: Path | None, num_classes: int) -> list[str] | None:
    """Names in the order of the class ids: a JSON list, or one name a line.

    Raises:
        NextscaleError: the file cannot be read, or does not hold num_classes names.
    """
    if path is None:
        return None
    try:
        if path.stat().st_size > CLASS_NAMES_LIMIT:
            raise NextscaleError(f"{path}: over {CLASS_NAMES_LIMIT} bytes; expected one class name a line")
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise NextscaleError(f"{path}: cannot be read ({error.strerror})") from None
    except UnicodeDecodeError:
        raise NextscaleError(f"{path}: not UTF-8 text; expected one class name a line, or a JSON list") from None
    names = _parse_names(text, path)
    if len(names) != num_classes:
        raise NextscaleError(f"{path}: {len(names)} names, but the model has {num_classes} classes")
    return names


def _parse_names(text: str, path: Path) -> list[str]:
    if not text.lstrip().startswith("["):
        return [line.strip() for line in text.splitlines() if line.strip()]
    try:
        names = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise NextscaleError(f"{path}: not a JSON list ({error})") from None
    if not all(isinstance(name, str) for name in names):
        raise NextscaleError(f"{path}: expected a JSON list of strings")
    return list(names)
