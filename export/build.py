"""From a torch model to a bundle: graphs, calibration, quantization, certificate, stored tokens."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
import onnx_ir as ir
import torch
import torch.nn.functional as F

from nextscale.calib_data.calibrate import Calibration, CalibrationSettings, calibrate
from nextscale.evaluate.teacher_forced import teacher_forced
from nextscale.export.bundle_writer import (
    BundleInfo,
    atomic_folder,
    complete_manifest,
    write_graphs,
    write_manifest,
)
from nextscale.export.card import bundle_card
from nextscale.export.decoder_graph import build_decoder_graph
from nextscale.export.equalization import ALPHA, Equalization, choose_equalization, equalizable_layers
from nextscale.export.generate_graph import build_generate_graph
from nextscale.export.stage_graph import build_stage_graph
from nextscale.export.var import VAR
from nextscale.export.vqvae import VQVAE
from nextscale.graph_passes.fusion_certificate import certify
from nextscale.graph_passes.observe_ranges import observe_channels, observe_ranges
from nextscale.graph_passes.pipeline import FLOAT_LAYERS, decoder_layers, quantize_int8, stage_layers
from nextscale.graph_passes.qparams import Range
from nextscale.runtime.bundle import Bundle
from nextscale.runtime.manifest import ModelInfo
from nextscale.runtime.next_scale_loop import Generator
from nextscale.runtime.request import DEFAULT_CFG_SCALE
from nextscale.runtime.session import SessionOptions

Precision = Literal["fp32", "int8"]
# Greedy, so that few tokens say much; the second label differs from the first in every model.
VERIFY_LABELS = (0, -1)
VERIFY_CFG_SCALE = 1.5
AGREEMENT_IMAGES = 8


class Progress(Protocol):
    """How a build tells where it is."""

    def __call__(self, step: str, done: int = 0, total: int = 0) -> None:
        """`step` begins, or has `done` of `total` images."""


@dataclass(frozen=True)
class Source:
    """A model to build from, and what the bundle says about it."""

    var: VAR
    vqvae: VQVAE
    name: str
    description: str
    licence: str = "that of the checkpoint"
    class_names: Sequence[str] | None = None

    def model_info(self) -> ModelInfo:
        config = self.var.config
        return ModelInfo(
            num_classes=config.num_classes,
            patch_nums=config.patch_nums,
            image_size=self.vqvae.config.image_size,
            vocab_size=config.vocab_size,
            depth=config.depth,
            embed_dim=config.embed_dim,
            num_heads=config.num_heads,
            latent_channels=config.z_channels,
            latent_size=config.patch_nums[-1],
        )


@dataclass(frozen=True)
class BuildOptions:
    """How to build."""

    precision: Precision = "int8"
    calibration: CalibrationSettings = field(default_factory=CalibrationSettings)
    session: SessionOptions = field(default_factory=SessionOptions)


def build_bundle(source: Source, out: Path, options: BuildOptions, progress: Progress) -> Bundle:
    """Write the bundle `out`; an interrupted build leaves nothing.

    Raises:
        OutputError: out exists or cannot be written.
        NextscaleError: an integer layer fell back to float in this release of ONNX Runtime.
    """
    with atomic_folder(out) as folder, torch.no_grad():
        progress("building graphs")
        stage_model = build_stage_graph(source.var, source.vqvae.quantize)
        decoder_model = build_decoder_graph(source.vqvae)
        if options.precision == "fp32":
            progress("writing")
            recipe: dict[str, Any] = {"name": "fp32"}
            _write(source, folder, stage_model, decoder_model, recipe)
        else:
            recipe = _build_int8(source, folder, stage_model, decoder_model, options, progress)
        progress("generating the stored tokens")
        token_maps = _greedy_tokens(folder, options.session)
        complete_manifest(folder, token_maps, recipe, _card(source, recipe))
    return Bundle.open(out)


def _build_int8(
    source: Source,
    folder: Path,
    stage_model: ir.Model,
    decoder_model: ir.Model,
    options: BuildOptions,
    progress: Progress,
) -> dict[str, Any]:
    """Calibrate, quantize, write and check; returns the recipe with what the checks found."""
    integer = stage_layers(stage_model)
    convolutions = [str(node.name) for node in decoder_model.graph if node.op_type == "Conv"]
    # Beside the bundle, since the manifest lists what lies in it; full precision is needed again for the comparison.
    with tempfile.TemporaryDirectory(prefix=f"{folder.name}.calibration-", dir=folder.parent) as full_precision:
        calibration = _calibrate(source, Path(full_precision), stage_model, decoder_model, options, progress)
        progress("quantizing")
        equalization = _equalization(source.var, calibration)
        stage_model = build_stage_graph(source.var, source.vqvae.quantize, equalization)
        ranges = _equalized_ranges(source.var, calibration, equalization)
        ranges |= _class_ranges(source.var, integer.by_class)
        stage_model, decoder_model = quantize_int8(stage_model, decoder_model, ranges, calibration.decoder_ranges)
        progress("writing")
        recipe = _int8_recipe(options.calibration)
        _write(source, folder, stage_model, decoder_model, recipe)

        progress("checking kernels")
        stage_names = [*integer.observed, *integer.by_class]
        planned = {"stage": stage_names, "decoder": convolutions, "generate": stage_names + convolutions}
        certificates = {name: certify(folder / f"{name}.onnx", options.session) for name in planned}
        for name, layers in planned.items():
            certificates[name].require_integer(layers)
        progress("comparing with full precision", 0, AGREEMENT_IMAGES)
        found = teacher_forced(
            Generator(full_precision, options.session),
            {"int8": Generator(folder, options.session)},
            images=AGREEMENT_IMAGES,
            batch_size=1,  # two models at once: more would need more memory than calibration
            on_images=lambda done: progress("comparing with full precision", done, AGREEMENT_IMAGES),
        )["int8"]
    return recipe | {
        "agreement": {"images": found.images, "kl": found.kl, "top1": found.top1, "cfg_scale": DEFAULT_CFG_SCALE},
        "kernels": {name: certificates[name].by_layer() for name in ("stage", "decoder")},
    }


def _write(
    source: Source, folder: Path, stage_model: ir.Model, decoder_model: ir.Model, recipe: Mapping[str, Any]
) -> None:
    """Compose the single file, write all graphs and a manifest whose stored tokens are still zeros."""
    models = {
        "generate": build_generate_graph(stage_model, decoder_model, source.var.config.num_stages),
        "stage": stage_model,
        "decoder": decoder_model,
    }
    write_graphs(folder, models)
    model = source.model_info()
    labels = [label % model.num_classes for label in VERIFY_LABELS]
    verify = {
        "class_labels": labels,
        "seed": 0,
        "cfg_scale": VERIFY_CFG_SCALE,
        "token_maps": [[0] * model.num_tokens for _ in labels],
    }
    info = BundleInfo(source.name, model, recipe, source.class_names, source.licence, _card(source, recipe))
    write_manifest(folder, models, info, verify)


def _card(source: Source, recipe: Mapping[str, Any]) -> str:
    return bundle_card(source.name, source.description, source.licence, source.model_info(), recipe)


def _calibrate(
    source: Source,
    folder: Path,
    stage_model: ir.Model,
    decoder_model: ir.Model,
    options: BuildOptions,
    progress: Progress,
) -> Calibration:
    """Sample with a float32 bundle, written to `folder`, whose graphs carry observers."""
    observed_stage, observed_decoder = stage_layers(stage_model).observed, decoder_layers(decoder_model)
    # Layers that share an input see the same channels: the first of them is observed for all.
    observed_channels = [layers[0] for layers in equalizable_layers(source.var).values()]
    progress("writing the full-precision model for calibration")
    _write(
        source,
        folder,
        observe_channels(observe_ranges(stage_model, observed_stage), observed_channels),
        observe_ranges(decoder_model, observed_decoder),
        {"name": "fp32 with observers"},
    )
    images = options.calibration.images
    progress("calibrating", 0, images)
    return calibrate(
        Bundle.open(folder),
        observed_stage,
        observed_channels,
        observed_decoder,
        options.calibration,
        options.session,
        lambda done: progress("calibrating", done, images),
    )


def _equalization(var: VAR, calibration: Calibration) -> Equalization:
    magnitudes = {
        layer: torch.from_numpy(calibration.channel_ranges[linears[0]].magnitude())
        for layer, linears in equalizable_layers(var).items()
    }
    return choose_equalization(var, magnitudes)


def _equalized_ranges(var: VAR, calibration: Calibration, equalization: Equalization) -> dict[str, Range]:
    """The ranges of the equalized model's layers, from what was observed before."""
    ranges = dict(calibration.stage_ranges)
    for layer, linears in equalizable_layers(var).items():
        channels = calibration.channel_ranges[linears[0]]
        ranges |= dict.fromkeys(linears, channels.equalized(equalization.factors[layer].numpy()))
    return ranges


def _class_ranges(var: VAR, layers: Sequence[str]) -> dict[str, Range]:
    """The range of what adaLN's linear layers see: SiLU of the class embeddings, of all classes at once."""
    activated = F.silu(var.class_emb.weight)
    both = Range(*(np.array([extreme.item()], np.float32) for extreme in (activated.min(), activated.max())))
    return dict.fromkeys(layers, both)


def _int8_recipe(calibration: CalibrationSettings) -> dict[str, Any]:
    return {
        "name": "int8",
        "weights": "s8, symmetric, a scale for each output channel, round to nearest",
        "equalization": f"channels of q, k, v, proj, fc1 and the head, folded exactly, alpha {ALPHA}",
        "activations": "u8, affine, static min-max ranges, one for each stage and layer",
        "float32": ["attention scores and products", "norms", "guidance", "sampling", *sorted(FLOAT_LAYERS)],
        "calibration": asdict(calibration),
    }


def _greedy_tokens(folder: Path, options: SessionOptions) -> list[list[int]]:
    """The bundle's own greedy tokens, for `nextscale verify` to compare with."""
    bundle = Bundle.open(folder)
    record = bundle.manifest.verify
    greedy = Generator(bundle, options).generate(
        record.class_labels, seed=record.seed, cfg_scale=record.cfg_scale, top_k=1, top_p=0.0
    )
    tokens: list[list[int]] = greedy.token_maps.tolist()
    return tokens
