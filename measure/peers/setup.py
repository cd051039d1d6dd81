"""Set the peers up: store and export the model, quantize, and make environments for OpenVINO and its provider.

    python -m nextscale.measure.peers.setup --work FOLDER [--preset var-d16 | --var FILE --vae FILE] [--only NAME]…

Without a model it is the demo model. What is there already is not made again.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import venv
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import click

from nextscale.measure.contender import Worker
from nextscale.measure.peers import NAMES
from nextscale.measure.peers.contenders import ENVIRONMENTS, PeerFolder, checked_names, contender, module_code
from nextscale.measure.peers.peer_model import PeerModel, peer_model
from nextscale.models.sources import Source
from nextscale.models.var.sources import checkpoint_source, demo_source, random_source
from nextscale.runtime._errors import NextscaleError
from nextscale.runtime._machine import CPUINFO
from nextscale.runtime._outputs import atomic_folder

NNCF = "nncf==3.4.0"
OPENVINO_PACKAGES = ("openvino==2026.4.1", NNCF)
# OpenVINO's provider: the plug-in takes Intel's processors alone (`onnxruntime_openvino_engine`).
PLUG_IN_PACKAGES = ("onnxruntime==1.32.0", "onnxruntime-ep-openvino==1.8.1", NNCF, "onnx==1.23.2")
BUILD_PACKAGES = ("onnxruntime-openvino==1.24.1", NNCF, "onnx==1.23.2")
TORCHAO = "torchao==0.18.0"
# By family. An Infinity's stages are fed all keys and values before them, 1 GB an image of 2B at 256 pixels.
CALIBRATION_IMAGES = {"var": 4, "infinity": 1}

Log = Callable[[str], object]
_PIP_INSTALL = ("-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--only-binary", ":all:")


def set_up(
    source: Source, work: Path, threads: int, names: Sequence[str] | None = None, log: Log = lambda line: None
) -> dict[str, str]:
    """Make what the peers need and is not there yet.

    Args:
        source: the model.
        work: a folder to work in, made when missing.
        threads: for exports and quantization; 0 lets each library choose.
        names: of the peers; None is all.
        log: called with a line of progress.
    Returns:
        by name, why a peer could not be set up; the others are.
    Raises:
        NextscaleError: a name is unknown, or the model has no peers.
    """
    model = peer_model(source)
    place = PeerFolder.of(model, work)
    failures: dict[str, str] = {}
    for name in checked_names(names, model.names):
        try:
            store(name, model, place, log)
            finish(name, place, threads, log)
        except Exception as error:  # of pip, exporters and quantizers: the other peers are still wanted
            failures[name] = " ".join(str(error).split())[:500] or type(error).__name__
            log(f"{name}: failed: {failures[name]}")
        else:
            log(f"{name}: ready")
    return failures


def store(name: str, model: PeerModel, place: PeerFolder, log: Log) -> None:
    """Write what a peer is made of, if it is not there: the exported graphs, and the model where it runs in torch."""
    place.model.mkdir(parents=True, exist_ok=True)
    if not place.exported.exists():
        with atomic_folder(place.exported) as folder:
            model.export(folder, log)
    if place.models in place.needs(name) and not place.models.exists():
        log("storing the model")
        with atomic_folder(place.models) as folder:
            model.save(folder)


def finish(name: str, place: PeerFolder, threads: int, log: Log) -> None:
    """Make what else the peer needs, of what was stored: the model itself need not be in memory."""
    library = name.rpartition("-")[0]
    images = CALIBRATION_IMAGES[place.family]
    if name == "torch-compile-int8":
        _install_torchao(place, log)
        if not place.torch_int8.exists():
            log(f"torchao: quantizing, calibrated on {images} pictures")
            with atomic_folder(place.torch_int8) as folder:
                arguments = _quantization(place, folder, threads) | {"models": str(place.models)}
                _run((sys.executable, "-c", module_code("torch_quantize", arguments, True, (place.torchao,))))
    compiled = place.compiled / f"{name}.txt"
    if library == "torch-compile" and not compiled.exists():
        log(f"{name}: compiling, some minutes")
        with Worker(contender(name, place, threads)) as worker:
            place.compiled.mkdir(exist_ok=True)
            compiled.write_text(f"{worker.versions}\n", encoding="utf-8")
    if name == "onnxruntime-int8" and not place.onnxruntime_int8.exists():
        from nextscale.measure.peers.onnxruntime_quantize import quantize_graphs

        with atomic_folder(place.onnxruntime_int8) as folder:
            quantize_graphs(place.family, place.exported, folder, threads, log)
    if library in ENVIRONMENTS:
        _install(library, environment_packages(library), place, log)
    quantized = {"openvino-int8": place.openvino_int8, "onnxruntime-openvino-int8": place.onnxruntime_openvino_int8}
    if name in quantized and not quantized[name].exists():
        log(f"{library}: quantizing with NNCF, calibrated on {images} pictures")
        with atomic_folder(quantized[name]) as folder:
            _quantize_with_nncf(library, place, folder, threads)


def environment_packages(library: str, cpuinfo: Path = CPUINFO) -> tuple[str, ...]:
    """What pip installs into a library's environment, on this machine."""
    if library == "openvino":
        return OPENVINO_PACKAGES
    is_intel = cpuinfo.is_file() and "GenuineIntel" in cpuinfo.read_text(encoding="utf-8")
    return PLUG_IN_PACKAGES if is_intel else BUILD_PACKAGES


def _install(library: str, wanted: Sequence[str], place: PeerFolder, log: Log) -> None:
    """Make a library's environment, or make it again if it is of other packages or half made."""
    packages, installed = "\n".join(wanted) + "\n", place.installed(library)
    if installed.exists() and installed.read_text(encoding="utf-8") == packages:
        return
    log(f"{library}: installing {', '.join(wanted)}")
    venv.create(place.environment(library), clear=True, with_pip=True, symlinks=True)
    _run((str(place.python(library)), *_PIP_INSTALL, *wanted))
    installed.write_text(packages, encoding="utf-8")


def _install_torchao(place: PeerFolder, log: Log) -> None:
    """Put torchao alone into a folder; all that it needs is torch, which is here."""
    installed = place.installed("torchao")
    if installed.exists() and installed.read_text(encoding="utf-8") == f"{TORCHAO}\n":
        return
    log(f"torchao: installing {TORCHAO}")
    shutil.rmtree(place.torchao, ignore_errors=True)
    _run((sys.executable, *_PIP_INSTALL, "--no-deps", "--target", str(place.torchao), TORCHAO))
    installed.write_text(f"{TORCHAO}\n", encoding="utf-8")


def _quantize_with_nncf(library: str, place: PeerFolder, folder: Path, threads: int) -> None:
    files = {name: str(place.exported / f"{name}.onnx") for name in ("condition", "step", "decoder")}
    module = library.replace("-", "_") + "_quantize"
    code = module_code(module, files | _quantization(place, folder, threads))
    _run((str(place.python(library)), "-c", code))


def _quantization(place: PeerFolder, folder: Path, threads: int) -> dict[str, Any]:
    """The arguments of every quantizer's main."""
    return {
        "family": place.family,
        "host_weights": str(place.exported / "host.npz"),
        "threads": threads,
        "images": CALIBRATION_IMAGES[place.family],
        "out": str(folder),
    }


def _run(command: Sequence[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        said = [line for line in done.stderr.splitlines() if line.strip()] or [f"exit code {done.returncode}"]
        errors = [line for line in said if line.startswith("ERROR")]
        raise NextscaleError(f"{Path(command[0]).name}: {(errors or said)[-1]}")


def check(source: Source, work: Path, threads: int, names: Sequence[str], log: Log) -> Mapping[str, str]:
    """Start each peer and let it make two pictures; returns why some failed."""
    failures: dict[str, str] = {}
    place = PeerFolder.of(peer_model(source), work)
    for name in names:
        try:
            with Worker(contender(name, place, threads)) as worker:
                worker.request(1, 0)
                reply = worker.request(1, 1)
        except NextscaleError as error:
            failures[name] = str(error)
            log(failures[name])
        else:
            memory = reply.peak_memory_bytes / 1e6
            log(f"{name}: {reply.seconds:.2f} s per picture, {memory:.0f} MB, loaded in {worker.load_seconds:.1f} s")
    return failures


@click.command(help=__doc__)
@click.option("--work", type=click.Path(path_type=Path, file_okay=False), required=True, help="Where to put it all.")
@click.option("--only", "names", multiple=True, type=click.Choice(NAMES), help="This peer alone; may be repeated.")
@click.option("--preset", help="A released size with random weights.")
@click.option("--var", "var_path", type=click.Path(path_type=Path), help="The transformer's checkpoint.")
@click.option("--vae", "vae_path", type=click.Path(path_type=Path), help="The VQVAE's checkpoint.")
@click.option("--threads", type=click.IntRange(0, 1024), default=0, help="0: as many as each library likes.")
@click.option("--check/--no-check", "checked", default=True, help="Make pictures with each peer.")
def main(
    work: Path,
    names: tuple[str, ...],
    preset: str | None,
    var_path: Path | None,
    vae_path: Path | None,
    threads: int,
    checked: bool,
) -> None:
    def log(line: str) -> None:
        click.echo(line, err=True)

    try:
        source = _source(preset, var_path, vae_path)
        failures = set_up(source, work, threads, names or None, log)
        if checked:
            ready = [name for name in checked_names(names or None, NAMES) if name not in failures]
            failures |= check(source, work, threads, ready, log)
    except NextscaleError as error:
        raise click.ClickException(str(error)) from None
    sys.exit(1 if failures else 0)


def _source(preset: str | None, var_path: Path | None, vae_path: Path | None) -> Source:
    if var_path is not None and vae_path is not None:
        return checkpoint_source(var_path.stem, var_path, vae_path)
    if var_path is not None or vae_path is not None:
        raise NextscaleError("--var and --vae go together: give both checkpoints, or neither")
    return demo_source("demo") if preset is None else random_source(preset, preset, 0)


if __name__ == "__main__":
    main()
