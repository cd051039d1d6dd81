"""Where a VAR to build comes from: a checkpoint, a preset with random weights, or the demo model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import as_file
from pathlib import Path

from nextscale.models._class_names import read_class_names
from nextscale.models._demo_files import demo_files
from nextscale.models.var.checkpoint import load_models, load_var, load_vqvae
from nextscale.models.var.presets import get_preset
from nextscale.models.var.random_weights import random_models
from nextscale.models.var.transformer import VAR
from nextscale.models.var.vqvae import VQVAE
from nextscale.runtime._errors import NextscaleError
from nextscale.runtime._file_hash import file_sha256
from nextscale.runtime._manifest import ModelInfo
from nextscale.runtime._wording import shown_text


@dataclass(frozen=True)
class VARSource:
    """A VAR with its VQVAE (`models.sources.Source`)."""

    var: VAR
    vqvae: VQVAE
    name: str
    description: str
    licence: str = "that of the checkpoint"
    class_names: Sequence[str] | None = None

    def model_info(self) -> ModelInfo:
        config = self.var.config
        return ModelInfo(
            num_classes=config.num_classes,
            stage_sizes=tuple((pn, pn) for pn in config.patch_nums),
            image_size=(self.vqvae.config.image_size, self.vqvae.config.image_size),
            vocab_size=config.vocab_size,
            depth=config.depth,
            embed_dim=config.embed_dim,
            num_heads=config.num_heads,
            latent_channels=config.z_channels,
            latent_size=(config.patch_nums[-1], config.patch_nums[-1]),
        )


def checkpoint_source(
    name: str,
    var_path: Path,
    vae_path: Path,
    preset: str | None = None,
    patch_nums: Sequence[int] | None = None,
    num_heads: int | None = None,
    quant_resi: float = 0.5,
    class_names: Path | None = None,
    weights: str | None = None,
    vae_weights: str | None = None,
) -> VARSource:
    """A user's checkpoints; `preset` says what they must be, otherwise their shapes and the options do.

    Options and class names are checked before a checkpoint is read; weights and vae_weights choose where a file holds
    several sets of them (`models.var.checkpoint.read_state_dict`).
    """
    names = read_class_names(class_names)
    if preset is not None:
        expected = get_preset(preset)
        var = load_var(var_path, config=expected.var, weights=weights)
        vqvae = load_vqvae(vae_path, config=expected.vqvae, weights=vae_weights)
    else:
        var, vqvae = load_models(
            var_path,
            vae_path,
            patch_nums=patch_nums,
            num_heads=num_heads,
            quant_resi=quant_resi,
            weights=weights,
            vae_weights=vae_weights,
        )
    return VARSource(
        var,
        vqvae,
        name,
        f"Built from `{var_path.name}` and `{vae_path.name}`.",
        class_names=_of_all_classes(names, var.config.num_classes),
    )


def random_source(name: str, preset: str, seed: int, class_names: Path | None = None) -> VARSource:
    """A preset with random weights: as fast as the real one, and its pictures are noise."""
    names = _of_all_classes(read_class_names(class_names), get_preset(preset).var.num_classes)
    var, vqvae = random_models(preset, seed)
    return VARSource(
        var,
        vqvae,
        name,
        f"`{preset}` with random weights (seed {seed}): for measuring speed; its pictures are noise.",
        licence="none: random numbers",
        class_names=names,
    )


def demo_source(name: str) -> VARSource:
    """The demo model of the distribution `nextscale-demo`.

    Raises:
        NextscaleError: it is not installed.
    """
    demo = demo_files()
    with as_file(demo.VAR) as var_path, as_file(demo.VAE) as vae_path:
        var, vqvae = load_models(var_path, vae_path)
    return VARSource(
        var,
        vqvae,
        name,
        "nextscale's photograph model, trained on Tiny-ImageNet photographs of 150 classes (nextscale-demo's "
        "photograph_model_card.md tells how).",
        licence="weights learned from ImageNet photographs: research use",
        class_names=demo.class_names(),
    )


def demo_digests() -> dict[str, str]:
    """The sha256 of the demo model's checkpoints, which tell one version of it from another.

    Raises:
        NextscaleError: `nextscale-demo` is not installed.
    """
    demo = demo_files()
    with as_file(demo.VAR) as var_path, as_file(demo.VAE) as vae_path:
        return {"var": file_sha256(var_path), "vae": file_sha256(vae_path)}


def _of_all_classes(names: list[str] | None, num_classes: int) -> list[str] | None:
    if names is not None and len(names) != num_classes:
        first = f': the first is "{shown_text(names[0])}"' if len(names) == num_classes + 1 else ""
        raise NextscaleError(f"--class-names has {len(names)} names, but the model has {num_classes} classes{first}")
    return names
