"""The fake bundle with fused graphs. What is fused in them does something, so that tests can tell who runs them: it
raises f_hat before the decoder, and the tokens that the encoder finds. The stage is the stock one's.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from fake_bundle import (
    HEADER,
    fake_weights,
    file_entry,
    graph_texts,
    read_manifest,
    write_fake_bundle,
    write_graph,
    write_manifest,
)

_DECODES = {"generate": "images = fake.Decode(f3, to_rgb)", "decoder": "images = fake.Decode(f_hat, to_rgb)"}
_ENCODE = "token_maps = Mod(whole, entries)"
_FUSED_ENCODE = """one = Constant<value = int64 {1}>()
    raised = Add(whole, one)
    token_maps = Mod(raised, entries)"""
_FUSED = """pixels_shape = Constant<value_ints = [0, 2, 9]>()
    pixels = Reshape({f_hat}, pixels_shape)
    all = Shape(pixels)
    ones = ConstantOfShape<value = uint8[1] {{1}}>(all)
    quarters = Constant<value_floats = [0.25, 0.25, 0.25, 0.25, 0.25, 0.25, 0.25, 0.25, 0.25]>()
    sums = nextscale.AddCodes(pixels, ones, quarters)
    latent_shape = Shape({f_hat})
    raised = Reshape(sums, latent_shape)
    images = fake.Decode(raised, to_rgb)"""


def write_fake_fused_bundle(
    folder: Path, operators: Mapping[str, int] | None = None, *, encoder: bool = False, smooth: bool = False
) -> Path:
    """Its fused graphs need these operators, by the domain's name; None: those that they have."""
    write_fake_bundle(folder, encoder=encoder, smooth=smooth)
    manifest = read_manifest(folder)
    for role, text in graph_texts(encoder=encoder, smooth=smooth).items():
        path = folder / f"{role}.fused.onnx"
        _write(path, role, text)
        fused = {"file": path.name, "operators": dict(operators or {"nextscale": 1})}
        manifest["graphs"][role]["variants"]["fused"] = fused
        manifest["files"][path.name] = file_entry(path)
    write_manifest(folder, manifest)
    return folder


def _write(path: Path, role: str, text: str) -> None:
    text = text.replace(HEADER, HEADER.replace('"fake" : 1', '"fake" : 1, "nextscale" : 1'))
    if role in _DECODES:
        latent = "f3" if role == "generate" else "f_hat"
        assert _DECODES[role] in text
        text = text.replace(_DECODES[role], _FUSED.format(f_hat=latent))
    if role == "encoder":
        assert _ENCODE in text
        text = text.replace(_ENCODE, _FUSED_ENCODE)
    write_graph(path, text, fake_weights(0, encoder=role == "encoder"))
