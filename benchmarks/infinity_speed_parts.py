"""Make one thing that `infinity_speed.py` measures, in a process whose memory is given back.

    python benchmarks/infinity_speed_parts.py PRESET BLOCKS AREA RATIO THREADS WORK NAME

NAME is a recipe, whose bundle is built, or a peer, of which the model and its exported graphs are stored. Weights are
random, and calibration is short: speed depends on neither.
"""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

from progress import log

from nextscale.compiler.build import build_bundle
from nextscale.compiler.options import BuildOptions
from nextscale.graph_passes.recipe import load_recipe
from nextscale.measure.peers import INFINITY_NAMES
from nextscale.measure.peers.contenders import PeerFolder
from nextscale.measure.peers.peer_model import peer_model
from nextscale.measure.peers.setup import store
from nextscale.models.infinity.presets import Preset, get_preset
from nextscale.models.infinity.sources import random_source
from nextscale.paper.throughput_bundles import briefly_calibrated
from nextscale.runtime._session import SessionOptions

CALIBRATION_IMAGES = 2
# Of what a build calibrates, compares and stores, where the measured one is too large for that.
CHECKED_AREA = "0.06M"


def bundle_folder(work: Path, recipe: str) -> Path:
    return work / recipe


def peer_folder(work: Path) -> PeerFolder:
    """Libraries' environments serve all sizes, and lie beside them."""
    work = work.absolute()
    return PeerFolder(work.parent / "environments", work / "peers", "infinity")


def sized(name: str, blocks: int) -> Preset:
    """A preset with its first so many blocks alone; all of them keep its name."""
    preset = get_preset(name)
    if blocks == preset.config.depth:
        return preset
    return replace(preset, name=f"{name}-of-{blocks}-blocks", config=replace(preset.config, depth=blocks))


def main(preset_name: str, blocks: str, area: str, ratio: str, threads: str, work: Path, name: str) -> None:
    preset = sized(preset_name, int(blocks))
    if name in INFINITY_NAMES:
        store(name, peer_model(random_source(preset.name, preset, [area], [ratio], seed=0)), peer_folder(work), log)
        return
    source = random_source(preset.name, preset, [area, CHECKED_AREA], [ratio], seed=0)
    recipe = load_recipe(name)
    if recipe.precision != "fp32":
        recipe = briefly_calibrated(recipe, CALIBRATION_IMAGES)
    session = SessionOptions(threads=int(threads))
    options = BuildOptions(recipe, session=session, batch_size=1, encoder=False, text_encoder=False)
    build_bundle(source, bundle_folder(work, name), options, log)


if __name__ == "__main__":
    main(*sys.argv[1:6], Path(sys.argv[6]), sys.argv[7])
