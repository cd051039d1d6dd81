"""Peak memory and time of Infinity's VAE by the size of the picture: float, int8 of stock and of fused operators.

The VAE has random weights in the shape of infinity_vae_d32reg.pth; ranges were observed at 256 px. Each row is a
process of its own that loads one graph and runs it once; the peak is of its resident memory, weights included.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import click
import numpy as np
import onnx_ir as ir
from progress import log
from provenance import provenance, publish

from nextscale.compiler.observe_autoencoder import observe_autoencoder
from nextscale.export.infinity.decoder_graph import build_decoder_graph
from nextscale.export.infinity.encoder_graph import build_features_graph
from nextscale.graph_passes.quantize_autoencoder import stock_and_fused_autoencoder
from nextscale.measure._peak_memory import peak_memory
from nextscale.models.infinity.bsq_vae import BSQVAEConfig
from nextscale.models.infinity.random_vae import random_bsq_vae
from nextscale.runtime._operators import installed_library
from nextscale.runtime._session import SessionOptions, new_session, session_settings

OPERATORS = ("float", "int8, stock", "int8, fused")
OBSERVED = 256
CONFIG = BSQVAEConfig()


@click.command(help=__doc__)
@click.option("--threads", type=int, default=2, show_default=True)
@click.option("--pixels", type=int, multiple=True, default=(256, 512, 1024), show_default=True, help="Sides.")
@click.option("--library", type=click.Path(path_type=Path), help="Of fused operators; default: the installed one.")
@click.option("--name", default="infinity_vae_memory", show_default=True, help="Of the result file.")
@click.option("--one", type=click.Path(path_type=Path), hidden=True, help="Run this graph once, and tell.")
def main(threads: int, pixels: tuple[int, ...], library: Path | None, name: str, one: Path | None) -> None:
    if library is None and (installed := installed_library()) is not None:
        library = installed.path
    if one is not None:
        print(json.dumps(run_once(one, pixels[0], threads, library)))
        return
    lines = [
        "# Memory of Infinity's VAE",
        "",
        *provenance(threads),
        "- one picture; random weights; a process for each row",
        "",
        "| half | operators | pixels | peak memory, GB | seconds |",
        "|---|---|---|---|---|",
    ]
    with tempfile.TemporaryDirectory() as folder:
        for half in ("decoder", "encoder"):
            for operators, graph in zip(OPERATORS, make_graphs(half, threads, Path(folder)), strict=True):
                for side in pixels:
                    command = [sys.executable, __file__, "--one", str(graph), "--pixels", str(side)]
                    command += ["--threads", str(threads), *(["--library", str(library)] if library else [])]
                    found = json.loads(subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout)
                    row = f"| {half} | {operators} | {side} | {found['bytes'] / 1e9:.2f} | {found['seconds']:.1f} |"
                    log(row)
                    lines.append(row)
    publish(name, lines)


def make_graphs(half: str, threads: int, folder: Path) -> list[Path]:
    """The three graphs of a decoder or encoder, in the order of OPERATORS."""
    log(f"making the {half}'s graphs")
    vae = random_bsq_vae(CONFIG)
    model = build_decoder_graph(vae) if half == "decoder" else build_features_graph(vae)
    observed = observe_autoencoder(model, [some_input(half, OBSERVED)], folder, SessionOptions(threads=threads), log)
    paths = []
    for i, graph in enumerate((model, *stock_and_fused_autoencoder(model, observed))):
        paths.append(folder / f"{half}.{i}.onnx")
        ir.save(graph, paths[-1])
    return paths


def some_input(half: str, side: int) -> np.ndarray:
    """A latent of the size of codes, or a picture, of noise."""
    rng = np.random.default_rng(0)
    if half == "encoder":
        return rng.integers(0, 256, (side, side, 3)).astype(np.uint8)
    shape = (CONFIG.latent_channels, side // CONFIG.downsample, side // CONFIG.downsample)
    return (CONFIG.latent_channels**-0.5 * rng.standard_normal(shape)).astype(np.float32)


def run_once(graph: Path, side: int, threads: int, library: Path | None) -> dict[str, float]:
    """Seconds of the run, and the peak of this process's memory in bytes."""
    settings = session_settings(SessionOptions(threads=threads))
    if library is not None:
        settings.register_custom_ops_library(str(library))
    session = new_session(graph, settings)
    feed = {session.get_inputs()[0].name: some_input(graph.name.split(".")[0], side)[None]}
    began = time.perf_counter()
    session.run(None, feed)
    return {"seconds": time.perf_counter() - began, "bytes": peak_memory()}


if __name__ == "__main__":
    main()
