"""Hashes of the graphs and weights that a commit builds: what a refactoring must not change.

    python benchmarks/bundle_hashes.py OUT.json [--only demo|tiny|var-d16 ...] [--threads 1] [--no-fused]
    python benchmarks/bundle_hashes.py --compare BEFORE.json AFTER.json

Built through the command line, few calibration images each: the demo model with every recipe (and the learned
roundings in benchmarks/roundings, which learned_roundings.py brings there), tiny random models of each option, and
var-d16 with random weights and `default`.
--no-fused leaves out the graphs of fused operators, which earlier commits do not build.
Calibration rounds as the CPU, the threads and the release of ONNX Runtime do: compare two commits on one machine.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from learned_roundings import ROUNDINGS, require_rounding
from provenance import commit
from safetensors.numpy import load_file
from safetensors.torch import save_file

from nextscale.cli.main import main as nextscale
from nextscale.graph_passes.recipe import load_recipe, recipe_names
from nextscale.measure.provenance import versions
from nextscale.models.var.presets import Preset
from nextscale.models.var.random_weights import random_models
from nextscale.models.var.transformer import VARConfig
from nextscale.models.var.vqvae import VQVAEConfig
from nextscale.runtime._machine import describe_machine

GROUPS = ("tiny", "demo", "var-d16")
Build = Callable[..., dict[str, str]]
NO_FUSED = "--no-fused"  # of builds of integer recipes alone

# Tiny models: options of the VAR and of the VQVAE.
TINY: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "base": ({}, {}),
    "no_l2_norm": ({"attn_l2_norm": False, "num_heads": 2}, {}),
    "shared_aln": ({"shared_aln": True}, {}),
    "shared_aln_no_l2_norm": ({"shared_aln": True, "attn_l2_norm": False}, {}),
    "mlp_ratio_depth": ({"mlp_ratio": 2.5, "depth": 3}, {}),
    "phi_partially_shared": ({}, {"share_quant_resi": 3}),
    "phi_not_shared": ({}, {"share_quant_resi": 0}),
    "znorm": ({}, {"using_znorm": True}),
    "patch_nums": ({"patch_nums": (2, 3, 6)}, {"patch_nums": (2, 3, 6), "share_quant_resi": 0}),
    "autoencoder": ({}, {"ch": 64, "ch_mult": (2, 1), "num_res_blocks": 1, "using_sa": False, "using_mid_sa": False}),
}
# What the recipes that come along do not say, or not for a model without learned rounding.
RECIPES = {
    f"{granularity}-{attention}-a{bits}": (
        f'[weights]\nbits = {bits}\nrange = "{rule}"\npacked = {str(bits <= 4).lower()}\n'
        f'[activations]\nbits = {bits}\ngranularity = "{granularity}"\nrange = "{rule}"\n'
        f'[attention]\nproducts = "integer"\ngranularity = "{operands}"\nweights = "{attention}"\n'
        f'shift_and_sum = "{form}"\n[equalization]\nalpha = {alpha}\n'
    )
    for granularity, attention, bits, rule, operands, form, alpha in (
        ("tensor", "uniform", 8, "percentile", "tensor", "off", 0.5),
        ("stage", "log2", 6, "mse", "image", "duplicate", 0.0),
        ("pair", "log2-row", 4, "max", "tensor", "residual", 0.85),
        ("image", "row", 5, "percentile", "image", "residual", 0.0),
        ("token", "row", 3, "mse", "tensor", "duplicate", 0.5),
    )
}


@click.command(help=__doc__, context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("out", type=click.Path(path_type=Path), required=False)
@click.option("--only", multiple=True, type=click.Choice(GROUPS), default=GROUPS)
@click.option("--recipes", metavar="A,B", help="Of the demo model.  [default: all]")
@click.option("--threads", default=1, show_default=True)
@click.option(NO_FUSED, is_flag=True, help="Build stock graphs alone.")
@click.option("--compare", nargs=2, type=click.Path(exists=True, path_type=Path))
def main(
    out: Path | None,
    only: tuple[str, ...],
    recipes: str | None,
    threads: int,
    no_fused: bool,
    compare: tuple[Path, Path] | None,
) -> None:
    if compare is not None:
        sys.exit(report_differences(*compare))
    if out is None:
        raise click.UsageError("give OUT.json, or --compare")
    torch.set_num_threads(threads)
    machine = describe_machine()
    document: dict[str, Any] = {
        "commit": commit(),
        "machine": f"{machine.cpu}, {' '.join(machine.isa)}",
        "threads": threads,
        "versions": versions(),
        "hashes": {},
    }
    further = ("--threads", str(threads), *([NO_FUSED] if no_fused else []))
    with tempfile.TemporaryDirectory() as work:
        for group in only:
            wanted = recipe_names() if recipes is None else recipes.split(",")
            demo = partial(build_demo, recipes=wanted)
            builds = {"tiny": build_tiny, "demo": demo, "var-d16": build_full_size}[group]
            for name, hashes in builds(Path(work), further):
                click.echo(f"{name}", err=True)
                document["hashes"][name] = hashes
                out.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")


def report_differences(before: Path, after: Path) -> int:
    """Print what differs; the exit code says whether something does."""
    old, new = (json.loads(path.read_text(encoding="utf-8")) for path in (before, after))
    for key in ("machine", "threads", "versions"):
        if old[key] != new[key]:
            click.echo(f"{key} differ, so that hashes may: {old[key]} and {new[key]}")
    differing = 0
    both = sorted(old["hashes"].keys() & new["hashes"].keys())
    for name in both:
        a, b = old["hashes"][name], new["hashes"][name]
        if a != b:
            differing += 1
            click.echo(f"{name}: {', '.join(file for file in a if a[file] != b.get(file))}")
    for name in sorted(old["hashes"].keys() ^ new["hashes"].keys()):
        click.echo(f"{name}: only in one")
    click.echo(f"{differing} of {len(both)} differ between {old['commit']} and {new['commit']}")
    return int(differing > 0)


def build_tiny(work: Path, further: tuple[str, ...]) -> Iterator[tuple[str, dict[str, str]]]:
    """Every option in full precision and three recipes, the first option in many; and learned rounding."""
    written = {}
    for name, text in RECIPES.items():
        written[name] = work / f"{name}.toml"
        written[name].write_text(text, encoding="utf-8")
    for option, (var_options, vqvae_options) in TINY.items():
        shared: dict[str, Any] = {"patch_nums": (1, 2, 3, 4), "vocab_size": 128}
        var = {"num_classes": 10, "depth": 2, "embed_dim": 64, "num_heads": 2} | shared | var_options
        vqvae = {"ch": 32, "ch_mult": (1, 2)} | shared | vqvae_options
        files = [work / f"{option}-{part}.safetensors" for part in ("var", "vae")]
        for model, file in zip(
            random_models(Preset(option, VARConfig(**var), VQVAEConfig(**vqvae)), 3), files, strict=True
        ):
            save_file({key: tensor.contiguous() for key, tensor in model.state_dict().items()}, file)
        yield f"tiny/{option}/checkpoints", {file.name: sha256(file.read_bytes()) for file in files}
        model = ["--var", str(files[0]), "--vae", str(files[1]), "--patch-nums", ",".join(map(str, var["patch_nums"]))]
        model += ["--num-heads", str(var["num_heads"])] if var.get("attn_l2_norm") is False else []
        recipes = ["fp32", "default", "nearest-w4a4", str(written["image-row-a5"])]
        if option == "base":
            recipes = ["fp32", *nearest_recipes(), *map(str, written.values())]
        for recipe in recipes:
            yield f"tiny/{option}/{Path(recipe).stem}", build(work, model, recipe, further, images=3)
        if option == "base":
            reduced = build(work, model, "default", ("--reduce-range", *further), images=3)
            yield "tiny/base/default/reduce-range", reduced
            yield from learn(work, model, further)


def learn(work: Path, model: list[str], further: tuple[str, ...]) -> Iterator[tuple[str, dict[str, str]]]:
    """Token maps with matching, and roundings learned on them."""
    plain = [option for option in further if option != NO_FUSED]
    run("build", *model, "--precision", "fp32", "--out", str(work / "learn"), *plain)
    maps = work / "maps"
    run("calibrate", str(work / "learn"), "--images", "12", "--matching", "published", "--out", str(maps), *plain)
    with np.load(maps / "token_maps.npz") as arrays:
        yield "tiny/learn/maps", {name: sha256(arrays[name].tobytes()) for name in arrays.files}
    for recipe, theta in (("default-w4a4", ()), ("ours-w4a6", ("--theta", "0.05"))):
        out = work / f"{recipe}.safetensors"
        options = ["--recipe", recipe, "--calibration", str(maps), "--iterations", "20", *theta]
        run("reconstruct", *model, *options, "--out", str(out))
        yield f"tiny/learn/{recipe}", {name: sha256(found.tobytes()) for name, found in load_file(out).items()}
        yield (
            f"tiny/learn/{recipe}/bundle",
            build(work, model, recipe, ("--rounding", str(out), "--calibration", str(maps), *further), images=None),
        )
    shutil.rmtree(work / "learn")


def build_demo(work: Path, further: tuple[str, ...], recipes: Sequence[str]) -> Iterator[tuple[str, dict[str, str]]]:
    """Recipes that come along."""
    learned = {
        recipe: ("--rounding", str(require_rounding(ROUNDINGS / f"{recipe}.safetensors")))
        for recipe in recipes
        if load_recipe(recipe).learned
    }
    for recipe in recipes:
        images = None if recipe == "fp32" else 2
        yield f"demo/{recipe}", build(work, ["demo"], recipe, (*learned.get(recipe, ()), *further), images)


def build_full_size(work: Path, further: tuple[str, ...]) -> Iterator[tuple[str, dict[str, str]]]:
    """Speed's model."""
    yield "var-d16/default", build(work, ["--preset", "var-d16", "--random-weights"], "default", further, images=1)


def nearest_recipes() -> list[str]:
    """The recipes that come along and need no learned rounding."""
    return [name for name in recipe_names() if name != "fp32" and not load_recipe(name).learned]


def build(work: Path, model: list[str], recipe: str, further: tuple[str, ...], images: int | None) -> dict[str, str]:
    """Hashes of the graphs and weights of a bundle, which is removed again."""
    out = work / "bundle"
    taken = [option for option in further if recipe != "fp32" or option != NO_FUSED]
    options = ["--recipe", recipe, "--name", "bundle", "--out", str(out), *taken]
    options += [] if images is None or recipe == "fp32" else ["--calibration-images", str(images)]
    run("build", *model, *options)
    hashes = {
        path.name: sha256(path.read_bytes()) for path in sorted(out.iterdir()) if path.suffix in (".onnx", ".data")
    }
    shutil.rmtree(out)
    return hashes


def run(*arguments: str) -> None:
    """One nextscale command."""
    if nextscale(arguments) != 0:
        sys.exit(f"failed: nextscale {' '.join(arguments)}")


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


if __name__ == "__main__":
    main()
