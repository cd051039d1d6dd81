"""Are fused graphs as good as stock ones?  Both, and a control, against full precision, token for token.

    python benchmarks/fused_agreement.py RECIPE... [--images 256] [--processes 2] [--ops-library FILE] [--name NAME]

Operators that are fused round differently, by units in the last place; where codes are near a tie, a few of them flip.
The control is what such roundings do to the stock graph itself: the same graph with every LayerNormalization's result
scaled by 1 + 2^-23. All three see the same token maps, so that they are compared image by image.

Bundles of the demo model are built into WORK, unless they are there: after a short calibration, with weights rounded to
nearest, and with the range of codes reduced where this CPU's stock products would saturate. Each process takes a share
of the images, for which full precision answers once for all recipes. Results are there as soon as a recipe is done.
"""

from __future__ import annotations

import itertools
import json
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from contextlib import ExitStack
from dataclasses import replace
from functools import cache
from multiprocessing import get_context
from pathlib import Path
from typing import Any, cast

import click
import numpy as np
import onnx_ir as ir
from progress import log
from provenance import RESULTS, circumstances, provenance, publish
from recipe_bundles import FULL_PRECISION, changed_words

from nextscale.compiler.build import build_bundle
from nextscale.compiler.options import BuildOptions
from nextscale.evaluate.teacher_forced import ByImage, teacher_forced_pairs
from nextscale.graph_passes._graph_edit import is_operator
from nextscale.graph_passes.recipe import load_recipe
from nextscale.measure.statistics import Interval, mean_interval
from nextscale.models.var.sources import demo_source
from nextscale.paper.throughput_bundles import without_learning
from nextscale.runtime._bundle import MANIFEST_NAME, Bundle
from nextscale.runtime._file_hash import file_sha256
from nextscale.runtime._machine import describe_machine
from nextscale.runtime._next_scale_loop import Generator, StageResult
from nextscale.runtime._session import SessionOptions

ONE_UNIT_UP = np.float32(1 + 2.0**-23)
BATCH = 4
STOCK, FUSED, CONTROL = "stock", "fused", "control"


@click.command(help=__doc__, context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("recipes", nargs=-1, required=True)
@click.option("--work", type=click.Path(path_type=Path, file_okay=False), default=Path("out/fused-agreement"),
              show_default=True, help="Where bundles are kept.")  # fmt: skip
@click.option("--images", type=click.IntRange(2), default=256, show_default=True)
@click.option("--seed", type=click.IntRange(0), default=1, show_default=True, help="Of labels and token maps.")
@click.option("--cfg-scale", type=float, default=4.0, show_default=True)
@click.option("--ops-library", default="", help="The library.  [default: that of the installed package]")
@click.option("--threads", type=click.IntRange(1), default=2, show_default=True)
@click.option(
    "--processes", type=click.IntRange(1), default=1, show_default=True, help="Each has a share of the images."
)
@click.option("--calibration-images", type=click.IntRange(1), default=64, show_default=True)
@click.option("--name", default="fused_agreement", show_default=True, help="Of the result files.")
def main(
    recipes: tuple[str, ...],
    work: Path,
    images: int,
    seed: int,
    cfg_scale: float,
    ops_library: str,
    threads: int,
    processes: int,
    calibration_images: int,
    name: str,
) -> None:
    stock = SessionOptions(threads=threads, ops="stock")
    fused = replace(stock, ops="fused", ops_library=ops_library)
    settings = {"images": images, "seed": seed, "cfg_scale": cfg_scale, "threads": threads}
    settings |= {"calibration_images": calibration_images}
    work.mkdir(parents=True, exist_ok=True)
    reference = built(work, FULL_PRECISION, stock, calibration_images)
    found: dict[str, Any] = {}
    with ExitStack() as stack:
        shares = image_shares(images, processes)
        # One process each, so that what full precision said of a share is found again.
        pools = [ProcessPoolExecutor(1, mp_context=get_context("spawn")) for _ in shares]
        for pool in pools:
            stack.callback(pool.shutdown, cancel_futures=True)  # after an error, nothing more begins
        parts: dict[str, list[Future[Part]]] = {}

        def finish() -> None:
            for recipe, pending in parts.items():
                found[recipe] = recipe_figures([part.result() for part in pending])
                by_name = dict(sorted(found.items()))
                missing = [one for one in recipes if one not in found]
                publish(name, report(by_name, images, cfg_scale, threads, calibration_images, missing))
                document = json.dumps(circumstances(settings) | {"recipes": by_name}, indent=1)
                (RESULTS / f"{name}.json").write_text(document + "\n", encoding="utf-8")

        for first in range(0, len(recipes), len(pools)):
            some = recipes[first : first + len(pools)]
            builds = [
                pool.submit(built, work, recipe, stock, calibration_images)
                for pool, recipe in zip(pools, some, strict=False)
            ]
            finish()
            parts = {
                recipe: [
                    pool.submit(compare, reference, build.result(), share, seed, cfg_scale, stock, fused)
                    for pool, share in zip(pools, shares, strict=True)
                ]
                for recipe, build in zip(some, builds, strict=True)
            }
        finish()


def image_shares(images: int, count: int) -> list[range]:
    """At most `count` ranges of about the same number of whole batches, which are together all images."""
    batches = -(-images // BATCH)
    count = min(count, batches)
    ends = [min(images, BATCH * (batches * place // count)) for place in range(count + 1)]
    return [range(first, last) for first, last in itertools.pairwise(ends)]


def built(work: Path, name: str, session: SessionOptions, calibration_images: int) -> Path:
    """The bundle WORK/{name}, which is made if it is not there."""
    folder, recipe = work / name, load_recipe(name)
    if recipe.precision == "int8":
        recipe = without_learning(recipe, calibration_images)
    if folder.exists():
        changed = changed_words(Bundle.open(folder), recipe)
        if changed:
            raise click.ClickException(f"{folder}: built with another recipe ({', '.join(changed)}); remove it")
        return folder
    log(f"{name}: building")
    reduce_range = recipe.precision == "int8" and is_reduced()
    options = BuildOptions(recipe, session=session, reduce_range=reduce_range, encoder=False)
    build_bundle(replace(demo_source("demo"), name=f"demo-{name}"), folder, options, lambda *_: None)
    return folder


def is_reduced() -> bool:
    """Whether stock products would saturate on this CPU."""
    return describe_machine().saturates


class Reference(Generator):
    """Full precision, which remembers what it said of the images that it sampled."""

    def __init__(self, bundle: Path, options: SessionOptions) -> None:
        super().__init__(bundle, options)
        self._said: dict[str, list[StageResult]] = {}

    def stream(self, *labels: Any, **settings: Any) -> Iterator[StageResult]:
        key = str((labels, sorted(settings.items())))
        if key not in self._said:
            self._said[key] = [_own(stage) for stage in super().stream(*labels, **settings)]
        return iter(self._said[key])


def _own(stage: StageResult) -> StageResult:
    """Tokens and outputs alone, in memory of their own: what ONNX Runtime lends keeps ten times as much from others."""
    outputs = {name: array.copy() for name, array in stage.outputs.items()}
    return replace(stage, tokens=stage.tokens.copy(), outputs=outputs, _preview=cast(Any, None))


reference_of = cache(Reference)
Part = tuple[dict[str, ByImage], str]


def compare(
    reference: Path,
    folder: Path,
    images: range,
    seed: int,
    cfg_scale: float,
    stock: SessionOptions,
    fused: SessionOptions,
) -> Part:
    """A recipe's figures of some images, by pair, and which operators ran.

    Args:
        reference, folder: full precision's bundle, and the recipe's.
    """
    bundle = Bundle.open(folder)
    log(f"{folder.name}: images {images.start} to {images.stop}")
    with tempfile.TemporaryDirectory(dir=folder.parent) as scratch:
        three = {
            STOCK: Generator(bundle, stock),
            FUSED: Generator(bundle, fused),
            CONTROL: Generator(perturbed(bundle, Path(scratch) / CONTROL), stock),
        }
        pairs: dict[str, tuple[str | None, str]] = {variant: (None, variant) for variant in three}
        pairs |= {from_stock(variant): (STOCK, variant) for variant in (FUSED, CONTROL)}
        found = teacher_forced_pairs(
            reference_of(reference, stock),
            three,
            pairs,
            images=images,
            seed=seed,
            cfg_scale=cfg_scale,
            batch_size=BATCH,
        )
    return found, three[FUSED].ops.reason


def recipe_figures(parts: Sequence[Part]) -> dict[str, Any]:
    """Those of all images."""
    by_pair = {
        name: ByImage(
            np.concatenate([found[name].divergence for found, _ in parts]),
            np.concatenate([found[name].agreeing for found, _ in parts]),
            one.sizes,
        )
        for name, one in parts[0][0].items()
    }
    against = {variant: by_pair[variant] for variant in (STOCK, FUSED, CONTROL)}
    apart = {variant: by_pair[from_stock(variant)] for variant in (FUSED, CONTROL)}
    return figures(against, apart) | {"operators": parts[0][1]}


def from_stock(name: str) -> str:
    return f"{name} from {STOCK}"


def perturbed(bundle: Bundle, out: Path) -> Bundle:
    """A copy of the bundle for streaming whose stage graph has every LayerNormalization's result one unit up."""
    out.mkdir()
    manifest = json.loads((bundle.path / MANIFEST_NAME).read_text(encoding="utf-8"))
    manifest["graphs"] = {role: manifest["graphs"][role] for role in ("stage", "decoder")}
    manifest["verify"].pop("encoded", None)
    for role in manifest["graphs"].values():
        role["variants"] = {STOCK: role["variants"][STOCK]}
    graphs = {file for graph in bundle.manifest.graphs.values() for file in graph.files}
    kept = [name for name in bundle.manifest.files if name not in graphs or name == bundle.graph("decoder").file]
    stage = out / bundle.graph("stage").file
    model = ir.load(bundle.graph_path("stage"))
    weights = {node.inputs[1] for node in model.graph if is_operator(node, "LayerNormalization")}
    if not weights:
        raise click.ClickException(f"{bundle.path}: the stage graph has no LayerNormalization")
    for weight in weights:
        assert weight is not None
        assert weight.const_value is not None
        weight.const_value = ir.tensor(weight.const_value.numpy() * ONE_UNIT_UP, name=weight.name)
    ir.save(model, stage)
    for name in kept:  # no second names: onnx_ir reads no weights that have two, as other processes do just now
        shutil.copyfile(bundle.path / name, out / name)
    manifest["files"] = {name: manifest["files"][name] for name in kept}
    manifest["files"][stage.name] = {"size": stage.stat().st_size, "sha256": file_sha256(stage)}
    (out / MANIFEST_NAME).write_text(json.dumps(manifest), encoding="utf-8")
    return Bundle.open(out)


def figures(against: Mapping[str, ByImage], apart: Mapping[str, ByImage]) -> dict[str, Any]:
    """Means, and mean differences from stock in pairs.

    Args:
        against: full precision, of all three.
        apart: from stock, of the others.
    """
    stock = against[STOCK]
    found: dict[str, Any] = {
        name: {"kl": float(one.kl.mean()), "top1": float(one.top1.mean())} for name, one in against.items()
    }
    for name, one in apart.items():
        found[name] |= {
            "kl_less_stock": as_list(mean_interval((against[name].kl - stock.kl).tolist())),
            "top1_less_stock": as_list(mean_interval((against[name].top1 - stock.top1).tolist())),
            "kl_from_stock": as_list(mean_interval(one.kl.tolist())),
            "top1_of_stock": float(one.top1.mean()),
        }
    return found


def as_list(interval: Interval) -> list[float]:
    return [interval.mean, interval.low, interval.high]


def report(
    found: Mapping[str, Any],
    images: int,
    cfg_scale: float,
    threads: int,
    calibration_images: int,
    missing: Sequence[str] = (),
) -> list[str]:
    """The page."""
    lines = [
        "# Fused operators beside stock ones, teacher-forced",
        "",
        *provenance(threads),
        f"- {images} images over all classes, token maps sampled by full precision, cfg_scale {cfg_scale:g}",
        f"- bundles of the demo model: {calibration_images} calibration images, weights rounded to nearest"
        + (", of 7 bits instead of 8, so that this CPU's stock products do not saturate" if is_reduced() else ""),
        "- control: the stock graph with every LayerNormalization's result scaled by 1 + 2^-23",
        "- differences are means over images of pairs, with 95% intervals",
        *([f"- asked for and not measured: {', '.join(missing)}"] if missing else []),
        *(f"- {recipe}: {item['operators']}" for recipe, item in found.items()),
        "",
        "| recipe | | KL to full precision | less stock's | top-1 | less stock's | KL from stock | top-1 of stock's |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for recipe, item in found.items():
        lines.append(f"| {recipe} | stock | {item[STOCK]['kl']:.5f} | | {item[STOCK]['top1']:.2%} | | | |")
        for name in (FUSED, CONTROL):
            one = item[name]
            cells = (
                f"{one['kl']:.5f}",
                shown(one["kl_less_stock"]),
                f"{one['top1']:.2%}",
                shown([100 * end for end in one["top1_less_stock"]], 3, "%"),
                shown(one["kl_from_stock"]),
                f"{one['top1_of_stock']:.2%}",
            )
            lines.append(f"| | {name} | {' | '.join(cells)} |")
    return lines


def shown(interval: list[float], digits: int = 6, unit: str = "") -> str:
    mean, low, high = (f"{end:+.{digits}f}" for end in interval)
    return f"{mean}{unit} [{low}, {high}]"


if __name__ == "__main__":
    main()
