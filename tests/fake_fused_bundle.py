"""The fake bundle with fused graphs. What is fused in them does something, so that tests can tell who runs them: it
raises f_hat before the decoder. `raised` is a bundle whose stock graphs do the same.
"""

from __future__ import annotations

from pathlib import Path

from fake_bundle import (
    DECODE,
    FUNCTIONS,
    GRAPHS,
    HEADER,
    SHAPES,
    file_entry,
    read_manifest,
    weights_of_seed,
    write_fake_bundle,
    write_graph,
    write_manifest,
)

_DECODES = {"generate": "images = fake.Decode(f3, to_rgb)", "decoder": "images = fake.Decode(f_hat, to_rgb)"}
_STOCK = """quarter = Constant<value = float {{0.25}}>()
    raised = Add({f_hat}, quarter)
    images = fake.Decode(raised, to_rgb)"""
_FUSED = """pixels_shape = Constant<value_ints = [0, 2, 9]>()
    pixels = Reshape({f_hat}, pixels_shape)
    all = Shape(pixels)
    ones = ConstantOfShape<value = uint8[1] {{1}}>(all)
    quarters = Constant<value_floats = [0.25, 0.25, 0.25, 0.25, 0.25, 0.25, 0.25, 0.25, 0.25]>()
    sums = nextscale.AddCodes(pixels, ones, quarters)
    latent_shape = Shape({f_hat})
    raised = Reshape(sums, latent_shape)
    images = fake.Decode(raised, to_rgb)"""


def write_fake_fused_bundle(folder: Path, version: int = 1) -> Path:
    """Its fused graphs need operators of that version."""
    write_fake_bundle(folder)
    manifest = read_manifest(folder)
    header = HEADER.replace('"fake" : 1', f'"fake" : 1, "nextscale" : {version}')
    for role in GRAPHS:
        path = folder / f"{role}.fused.onnx"
        _write(path, role, _FUSED, header)
        manifest["graphs"][role]["variants"]["fused"] = {"file": path.name, "operators": {"nextscale": version}}
        manifest["files"][path.name] = file_entry(path)
    write_manifest(folder, manifest)
    return folder


def write_raised_bundle(folder: Path) -> Path:
    """Its stock graphs give what the fused graphs of `write_fake_fused_bundle` give."""
    write_fake_bundle(folder)
    manifest = read_manifest(folder)
    for role in _DECODES:
        _write(folder / f"{role}.onnx", role, _STOCK, HEADER)
        manifest["files"][f"{role}.onnx"] = file_entry(folder / f"{role}.onnx")
    write_manifest(folder, manifest)
    return folder


def _write(path: Path, role: str, raising: str, header: str) -> None:
    text = GRAPHS[role].replace(HEADER, header)
    if role in _DECODES:
        latent = "f3" if role == "generate" else "f_hat"
        assert _DECODES[role] in text
        text = text.replace(_DECODES[role], raising.format(f_hat=latent))
    write_graph(path, text + FUNCTIONS + DECODE, weights_of_seed(SHAPES, 0))
