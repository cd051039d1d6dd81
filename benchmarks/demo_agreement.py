"""The demo model: int8 against float32, teacher-forced, at the guidance of benchmarks (1.5) and of pictures (4).

Builds both bundles, then compares them on 256 token maps that the float32 bundle samples.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

import click
from progress import log
from provenance import RESULTS, provenance, publish
from recipe_bundles import FULL_PRECISION, RecipeBundles

from nextscale.evaluate.teacher_forced import Agreement, as_json, teacher_forced
from nextscale.graph_passes.recipe import load_recipe
from nextscale.runtime._session import SessionOptions

CFG_SCALES = (1.5, 4.0)


@click.command()
@click.option("--images", type=int, default=256, show_default=True)
@click.option("--threads", type=int, default=2, show_default=True)
def main(images: int, threads: int) -> None:
    """Build, compare, print and keep the results."""
    session = SessionOptions(threads=threads)
    with tempfile.TemporaryDirectory() as name:
        bundles = RecipeBundles(Path(name), session)
        recipe = load_recipe("default")
        reference, quantized = (bundles.open(bundles.build(one)) for one in (load_recipe(FULL_PRECISION), recipe))
        found: dict[float, Agreement] = {}
        for cfg_scale in CFG_SCALES:
            log(f"cfg_scale {cfg_scale:g}")
            found[cfg_scale] = teacher_forced(reference, {"int8": quantized}, images=images, cfg_scale=cfg_scale)[
                "int8"
            ]
    lines = [
        "# Demo model: int8 against float32, teacher-forced",
        "",
        *provenance(threads),
        f"- {images} images with labels over all classes, token maps sampled by float32 (top_k 900, top_p 0.96); "
        f"calibrated on {recipe.calibration.images} other images at cfg_scale 4",
        "- KL of the guided distributions before top_k and top_p, mean over tokens ± standard error over images",
        "",
        "| cfg_scale | KL, nats per token | top-1 agreement | KL by stage |",
        "|---|---|---|---|",
    ]
    for cfg_scale, a in found.items():
        stages = " ".join(f"{kl:.4f}" for kl in a.stage_kl)
        lines.append(f"| {cfg_scale:g} | {a.kl:.4f} ± {a.kl_stderr:.4f} | {a.top1:.1%} | {stages} |")
    publish("demo_agreement", lines)
    document = json.dumps(as_json({f"cfg_scale {cfg_scale:g}": a for cfg_scale, a in found.items()}), indent=1)
    (RESULTS / "demo_agreement.json").write_text(document + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
