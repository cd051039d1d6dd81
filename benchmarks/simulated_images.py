"""Pictures of recipes on the demo model: FID-E, IS-E, FID-E to full precision, and agreement beside them.

Made for a GPU, where 5,000 pictures of a recipe take about a minute. The transformer is the torch simulation of the
recipe's graph (docs/quantization.md; tests compare the two), the decoder is in full precision. Full precision itself is
the recipe `fp32`, which comes first for each seed; of a seed other than 0 it is compared with its own pictures of seed
0, which is the noise floor.

Each result lies in WORK/{recipe}.seed{seed}.json, so an interrupted run goes on, several may share WORK, and at the end
each prints the tables of all that is there (images_report.py).
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import click
import numpy as np
import torch
from images_report import report
from learned_roundings import ROUNDINGS, require_rounding
from numpy.typing import NDArray
from provenance import RESULTS, publish

from nextscale.evaluate.feature_network import FeatureNetwork
from nextscale.evaluate.image_metrics import image_metrics
from nextscale.evaluate.image_statistics import ImageStatistics, image_statistics, read_statistics
from nextscale.evaluate.reference_statistics import read_demo_reference
from nextscale.evaluate.teacher_forced import evaluation_labels
from nextscale.graph_passes.expand_attentive_tokens import ShiftAndSum
from nextscale.graph_passes.recipe import Recipe, load_recipe
from nextscale.models.equalization import Equalization
from nextscale.models.var.sources import demo_source
from nextscale.runtime._request import DEFAULT_CFG_SCALE, DEFAULT_TOP_P, resolve_top_k
from nextscale.runtime._uniforms import uniforms
from nextscale.runtime.image_io import write_files
from nextscale.simulation.rounding import Rounding
from nextscale.simulation.simulated_agreement import simulated_agreement
from nextscale.simulation.simulated_generation import generate
from nextscale.simulation.simulated_ranges import calibrated
from nextscale.simulation.simulated_var import SimulatedVAR
from nextscale.simulation.teacher_forced_images import FULL_PRECISION
from nextscale.simulation.var_images import VARImages

# As `evaluate.teacher_forced`: token maps that calibration, which has seed 0, did not see.
AGREEMENT_SEED = 1


class Pictures:
    """The demo model on one device, its feature network, and the token maps that agreement is measured on."""

    def __init__(self, device: str, batch: int) -> None:
        source = demo_source("demo")
        self.var, self.vqvae = source.var.to(device), source.vqvae.to(device)
        self.model, self.device, self.batch = source.model_info(), device, batch
        self.network = FeatureNetwork("cuda" if device.startswith("cuda") else device, batch_size=batch)
        self.reference = read_demo_reference().gaussian

    def generate(self, simulated: SimulatedVAR, images: int, seed: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """Token maps int64 [B, L] and pictures uint8 [B, H, W, 3] of the first images of a seed."""
        labels = evaluation_labels(self.model.num_classes, images, seed)
        for first in range(0, images, self.batch):
            part = range(first, min(first + self.batch, images))
            found = generate(
                simulated,
                self.vqvae,
                torch.from_numpy(labels[part.start : part.stop]).to(self.device),
                torch.from_numpy(uniforms(seed, part, self.model.num_tokens)).to(self.device),
                cfg_scale=DEFAULT_CFG_SCALE,
                top_k=resolve_top_k(None, self.model),
                top_p=DEFAULT_TOP_P,
            )
            yield found.token_maps, found.images

    def statistics(self, simulated: SimulatedVAR, images: int, seed: int) -> ImageStatistics:
        """Features of the first images of a seed."""
        return image_statistics(
            (pictures.cpu().numpy() for _, pictures in self.generate(simulated, images, seed)), self.network
        )

    def token_maps(self, images: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Labels [N] and token maps [N, L] that full precision samples."""
        full = SimulatedVAR(self.var, FULL_PRECISION)
        maps = torch.cat([maps for maps, _ in self.generate(full, images, AGREEMENT_SEED)])
        return evaluation_labels(self.model.num_classes, images, AGREEMENT_SEED), maps.cpu().numpy()

    def simulate(
        self,
        recipe: Recipe,
        rounding: Rounding | None,
        shift_and_sum: ShiftAndSum | None,
        calibration: tuple[NDArray[np.int64], NDArray[np.int64]],
    ) -> SimulatedVAR:
        """The recipe's model, calibrated as its graph would be."""
        seen = (calibration[0][: recipe.calibration.images], calibration[1][: recipe.calibration.images])
        equalization = None
        if rounding is not None:  # learned with its own
            equalization = Equalization(
                {name: torch.from_numpy(found).to(self.device) for name, found in rounding.factors.items()}
            )
        images = VARImages(self.var, self.vqvae.quantize, *seen)
        simulated = calibrated(
            images, recipe, equalization=equalization, shift_and_sum=shift_and_sum, batch_size=min(self.batch, 16)
        )
        assert isinstance(simulated, SimulatedVAR)
        if rounding is not None:
            for name in rounding.layers:
                linear = simulated.linears[name]
                linear.set_codes(rounding.codes(name, linear.exact.cpu().numpy()))
        return simulated


@click.command()
@click.option("--recipes", default="", help="Names or files, separated by commas; none: only print the table.")
@click.option("--work", type=click.Path(path_type=Path), default=Path("out/images"), show_default=True)
@click.option("--roundings", type=click.Path(path_type=Path), default=ROUNDINGS)
@click.option("--rounding", "one_rounding", type=click.Path(path_type=Path), help="One file, for all of the recipes.")
@click.option("--token-maps", type=click.Path(path_type=Path), help="An .npz of `nextscale calibrate`.")
@click.option(
    "--shift-and-sum",
    type=click.Path(path_type=Path),
    default=Path(__file__).parent / "ablations" / "shift_and_sum.json",
    help="Theta and places by budget.",
)
@click.option("--images", type=int, default=5000, show_default=True)
@click.option("--agreement-images", type=int, default=256, show_default=True)
@click.option("--seed", type=int, default=0, show_default=True)
@click.option("--batch", type=int, default=125, show_default=True)
@click.option("--device", default="cuda:0", show_default=True)
@click.option("--name", default="images", show_default=True, help="Of the result files.")
def main(
    recipes: str,
    work: Path,
    roundings: Path,
    one_rounding: Path | None,
    token_maps: Path | None,
    shift_and_sum: Path,
    images: int,
    agreement_images: int,
    seed: int,
    batch: int,
    device: str,
    name: str,
) -> None:
    """Generate, measure, keep and print."""
    work.mkdir(parents=True, exist_ok=True)
    asked = map(load_recipe, filter(None, recipes.split(",")))
    todo = [recipe for recipe in asked if not result_path(work, recipe.name, seed).exists()]
    if todo:
        if device.startswith("cuda"):
            torch.cuda.set_device(device)
        pictures = Pictures(device, batch)
        held_out = pictures.token_maps(agreement_images)
    for recipe in todo:
        began = time.monotonic()
        rounding = None
        if recipe.learned:
            rounding = Rounding.load(one_rounding or require_rounding(roundings / f"{recipe.name}.safetensors"))
        calibration = held_out[0][:0], held_out[1][:0]
        if token_maps is not None:
            with np.load(token_maps) as file:
                calibration = file["class_labels"].astype(np.int64), file["token_maps"].astype(np.int64)
        extra = None
        if recipe.attention.shift_and_sum != "off":
            found = json.loads(shift_and_sum.read_text(encoding="utf-8"))[f"{recipe.attention.budget:g}"]
            extra = ShiftAndSum(recipe.attention.shift_and_sum, found["theta"], tuple(found["places"]))
        simulated = pictures.simulate(recipe, rounding, extra, calibration)
        statistics = pictures.statistics(simulated, images, seed)
        full = work / f"fp32.seed{0 if recipe.name == 'fp32' else seed}.npz"
        if recipe.name == "fp32":
            write_files({work / f"fp32.seed{seed}.npz": statistics.writer({"seed": seed, "images": images})})
        if not full.exists():
            raise click.UsageError(f"{full} is missing: measure fp32 first")
        metrics = image_metrics(statistics, pictures.reference, read_statistics(full)[0])
        images_held_out = VARImages(pictures.var, pictures.vqvae.quantize, *held_out)
        agreement = simulated_agreement(images_held_out, simulated, batch_size=min(batch, 16))
        result = {
            "recipe": recipe.name,
            "seed": seed,
            "images": images,
            "fid_e": metrics.fid,
            "is_e": metrics.inception_score.value,
            "is_e_stderr": metrics.inception_score.stderr,
            "fid_e_to_full_precision": metrics.fid_to_full_precision,
            "agreement_images": agreement_images,
            "kl": agreement.kl,
            "kl_stderr": agreement.kl_stderr,
            "top1": agreement.top1,
            "stage_kl": agreement.stage_kl.tolist(),
            "shift_and_sum": extra and asdict(extra),
            "seconds": round(time.monotonic() - began, 1),
            "machine": torch.cuda.get_device_name() if device.startswith("cuda") else "CPU",
            "torch": torch.__version__,
        }
        text = json.dumps(result, indent=1) + "\n"
        write_files({result_path(work, recipe.name, seed): lambda file, text=text: file.write(text.encode())})  # type: ignore[misc]
        print(json.dumps(result), file=sys.stderr, flush=True)
    results = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(work.glob("*.seed*.json"))]
    bundles = RESULTS / "recipes.json"
    publish(name, report(results, json.loads(bundles.read_text(encoding="utf-8")) if bundles.exists() else {}))
    text = json.dumps(results, indent=1) + "\n"
    write_files({RESULTS / f"{name}.json": lambda file: file.write(text.encode())})


def result_path(work: Path, recipe: str, seed: int) -> Path:
    return work / f"{recipe}.seed{seed}.json"


if __name__ == "__main__":
    main()
