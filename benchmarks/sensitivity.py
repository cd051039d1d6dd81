"""What each choice of a recipe costs: KL and top-1 of the demo model in the torch simulation, many recipes in a row.

Made for a GPU, where a recipe takes seconds. The simulation is of the same recipes as the graphs (docs/quantization.md)
and agrees with them (tests); `recipes.py` measures the graphs themselves.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from provenance import RESULTS, commit, publish

from nextscale.graph_passes.expand_attentive_tokens import ShiftAndSum
from nextscale.graph_passes.qparams import Range
from nextscale.graph_passes.recipe import (
    ActivationRecipe,
    AttentionRecipe,
    EqualizationRecipe,
    LayerChoice,
    Recipe,
    WeightRecipe,
)
from nextscale.models.equalization import Equalization
from nextscale.models.var.sources import demo_source
from nextscale.simulation.simulated_agreement import simulated_agreement
from nextscale.simulation.simulated_ranges import equalize, observe
from nextscale.simulation.simulated_var import SimulatedVAR
from nextscale.simulation.var_images import VARImages

FLOAT_EMBED: dict[str, LayerChoice] = {"word_embed": "float"}
ALL_LAYERS = ("attn.q", "attn.k", "attn.v", "attn.proj", "ffn.fc1", "ffn.fc2", "head")
# About 1% more operations (`nextscale theta`).
SHIFT_AND_SUM = ShiftAndSum("residual", 0.008, (1, 5, 14, 30, 55, 76, 80, 95, 60, 45))
CALIBRATION_IMAGES = 32
# Where token maps begin that calibration did not see.
FIRST_IMAGE = 128


def recipe(
    granularity: str = "token",
    bits: int = 8,
    weight_bits: int = 8,
    alpha: float = 0.85,
    rule: str = "max",
    weight_rule: str = "max",
    layers: dict[str, LayerChoice] | None = None,
    attention: AttentionRecipe | None = None,
) -> Recipe:
    """A recipe by what varies here."""
    return Recipe(
        "variant",
        weights=WeightRecipe(weight_bits, weight_rule),  # type: ignore[arg-type]
        activations=ActivationRecipe(bits, granularity, rule),  # type: ignore[arg-type]
        attention=attention or AttentionRecipe(),
        equalization=EqualizationRecipe(alpha),
        layers=FLOAT_EMBED if layers is None else layers,
    )


def float_weights(simulated: SimulatedVAR) -> None:
    """Compute with the weights before rounding."""
    for linear in simulated.linears.values():
        linear.weight = linear.exact


class SimulatedDemo:
    """The demo model on one device, with what calibration found kept for all recipes that share it."""

    def __init__(self, device: str, maps: Path, images: int, out: Path) -> None:
        source = demo_source("demo")
        self.var, self.quantizer = source.var.to(device), source.vqvae.quantize.to(device)
        with np.load(maps) as file:
            labels, tokens = (file[name].astype(np.int64) for name in ("class_labels", "token_maps"))
        maps_of_all = VARImages(self.var, self.quantizer, labels, tokens)
        self.calibration = maps_of_all[:CALIBRATION_IMAGES]
        self.held_out = maps_of_all[FIRST_IMAGE : FIRST_IMAGE + images]
        self.batch = 2 if device == "cpu" else 16
        self.equalizations: dict[float, Equalization] = {}
        self.ranges: dict[tuple[float, str, int], dict[str, Range]] = {}
        self.out, self.results = out, list[dict[str, Any]]()

    def __call__(
        self,
        name: str,
        variant: Recipe,
        change: Callable[[SimulatedVAR], None] | None = None,
        cfg_scales: tuple[float, ...] = (4.0,),
        shift_and_sum: ShiftAndSum | None = None,
    ) -> None:
        """Measure one recipe, print it and keep it."""
        alpha, activations = variant.equalization.alpha, variant.activations
        if alpha not in self.equalizations:
            found = equalize(self.calibration, alpha, batch_size=self.batch)
            self.equalizations[alpha] = found
        equalization = self.equalizations[alpha]
        key = alpha, activations.range, activations.bits
        if key not in self.ranges:
            self.ranges[key] = observe(
                self.calibration,
                equalization=equalization,
                rule=activations.range,
                bits=activations.bits,
                batch_size=self.batch,
            )
        simulated = SimulatedVAR(
            self.var, variant, ranges=self.ranges[key], equalization=equalization, shift_and_sum=shift_and_sum
        )
        if change is not None:
            change(simulated)
        for cfg_scale in cfg_scales:
            guided = replace(self.held_out, cfg_scale=cfg_scale)
            a = simulated_agreement(guided, simulated, batch_size=self.batch)
            result = {"name": name, "cfg": cfg_scale, "kl": a.kl, "se": a.kl_stderr, "top1": a.top1}
            self.results.append(result | {"stage": a.stage_kl.tolist()})
            click.echo(f"{name:45s} cfg {cfg_scale:g}: KL {a.kl:.4f} ± {a.kl_stderr:.4f}, top-1 {a.top1:.1%}")
            self.out.write_text(json.dumps(self.results, indent=1) + "\n", encoding="utf-8")


@click.command()
@click.option("--maps", type=click.Path(path_type=Path), required=True, help="token_maps.npz of `nextscale calibrate`.")
@click.option("--device", default="cuda:0", show_default=True)
@click.option("--images", type=int, default=64, show_default=True)
@click.option("--out", type=click.Path(path_type=Path), default=RESULTS / "sensitivity.json", show_default=True)
def main(maps: Path, device: str, images: int, out: Path) -> None:
    """Measure all variants."""
    measure = SimulatedDemo(device, maps, images, out)
    base = recipe()
    measure("fp32 path", replace(base, precision="fp32"))
    measure("token", base, cfg_scales=(4.0, 1.5))
    measure("token, float weights", base, float_weights, cfg_scales=(4.0, 1.5))
    everything = dict.fromkeys((*ALL_LAYERS, "word_embed"), "float")
    measure("all activations float, int8 weights", recipe(layers=everything))  # type: ignore[arg-type]
    for layer in (*ALL_LAYERS, "ada_lin.1"):
        measure(f"token, float {layer}", recipe(layers={**FLOAT_EMBED, layer: "float"}))
    for alpha in (0.0, 0.5, 0.7, 0.95):
        measure(f"token alpha {alpha}", recipe(alpha=alpha))
    for granularity in ("image", "stage", "tensor"):
        measure(granularity, recipe(granularity))
    for rule in ("mse", "percentile"):
        measure(f"stage {rule}", recipe("stage", rule=rule), cfg_scales=(4.0, 1.5))
    for layer in ("ffn.fc2", "ffn.fc1", "attn.proj", "head"):
        measure(f"stage mse, token {layer}", recipe("stage", rule="mse", layers={**FLOAT_EMBED, layer: "token"}))
    for rule in ("max", "mse", "percentile"):
        measure(f"pair {rule}", recipe("pair", rule=rule), cfg_scales=(4.0, 1.5))
    measure("pair mse, float weights", recipe("pair", rule="mse"), float_weights)
    for layer in (*ALL_LAYERS, "ada_lin.1"):
        measure(f"pair mse, float {layer}", recipe("pair", rule="mse", layers={**FLOAT_EMBED, layer: "float"}))
    for alpha in (0.0, 0.5, 0.7, 0.95):
        measure(f"pair mse alpha {alpha}", recipe("pair", rule="mse", alpha=alpha))
    for granularity in ("image", "tensor"):
        for weights in ("log2", "log2-row", "row", "uniform"):
            attention = AttentionRecipe("integer", granularity, weights)  # type: ignore[arg-type]
            measure(f"token, integer attention {weights} {granularity}", recipe(attention=attention))
    for weight_bits, bits in ((6, 6), (4, 8), (4, 6), (4, 4)):
        name = f"W{weight_bits}A{bits}"
        for alpha in (0.0, 0.5, 0.85):
            variant = recipe(bits=bits, weight_bits=weight_bits, alpha=alpha, weight_rule="mse")
            measure(f"{name} token a{alpha} w mse float att", variant)
        for rule in ("max", "percentile"):
            variant = recipe(bits=bits, weight_bits=weight_bits, alpha=0.5, weight_rule=rule)
            measure(f"{name} token a0.5 w {rule} float att", variant)
        for alpha in (0.0, 0.5, 0.7, 0.85):
            for rule in ("max", "mse", "percentile"):
                variant = recipe("pair", bits, weight_bits, alpha, rule, weight_rule="mse")
                measure(f"{name} pair {rule} a{alpha} w mse float att", variant)
    for weight_bits, bits in ((8, 8), (6, 6), (4, 8), (4, 6), (4, 4)):
        for weights in ("log2", "row"):
            for form, expansion in (("off", None), ("residual", SHIFT_AND_SUM)):
                variant = recipe(
                    "image",
                    bits,
                    weight_bits,
                    0.0,
                    weight_rule="percentile",
                    layers={},
                    attention=AttentionRecipe("integer", "image", weights, form),  # type: ignore[arg-type]
                )
                name = f"W{weight_bits}A{bits} image a0 w pct {weights} shift {form}"
                measure(name, variant, shift_and_sum=expansion)
    publish("sensitivity", table(measure.results, images, device))


def table(results: list[dict[str, Any]], images: int, device: str) -> list[str]:
    """The report."""
    machine = torch.cuda.get_device_name() if device.startswith("cuda") else "CPU"
    lines = [
        "# What each choice costs: torch simulation of the demo model",
        "",
        f"- program: `python benchmarks/sensitivity.py --images {images}`, on {machine}, torch {torch.__version__}, "
        f"at commit {commit()}",
        f"- {images} held-out token maps of full precision, teacher-forced; KL in nats per token, mean ± standard "
        "error over images",
        "",
        "| variant | cfg_scale | KL | top-1 | KL at the last stage |",
        "|---|---|---|---|---|",
    ]
    for one in results:
        lines.append(
            f"| {one['name']} | {one['cfg']:g} | {one['kl']:.4f} ± {one['se']:.4f} | {one['top1']:.1%} | "
            f"{one['stage'][-1]:.3f} |"
        )
    return lines


if __name__ == "__main__":
    main()
