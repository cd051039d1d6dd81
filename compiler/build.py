"""From a torch model to a bundle: graphs, calibration, quantization, certificate, stored tokens."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import onnx_ir as ir
import torch

from nextscale.compiler._autoencoder import encoder_graphs
from nextscale.compiler._finite import require_finite_logits, require_finite_picture
from nextscale.compiler._float_model import FloatModel
from nextscale.compiler._plan import make_plan
from nextscale.compiler._rounders import require_reducible, require_rounding
from nextscale.compiler.fusion_certificate import certify
from nextscale.compiler.options import BuildOptions, Progress
from nextscale.evaluate.saturation import as_report, measure_saturation
from nextscale.evaluate.teacher_forced import teacher_forced
from nextscale.export._card import bundle_card
from nextscale.export.bundle_writer import BundleInfo, complete_manifest, write_graphs, write_manifest
from nextscale.export.generate_graph import build_generate_graph
from nextscale.export.var.decoder_graph import build_decoder_graph
from nextscale.export.var.encoder_graph import build_encoder_graph
from nextscale.export.var.stage_graph import build_stage_graph
from nextscale.graph_passes._fused_nodes import has_fused
from nextscale.graph_passes.integer_model import IntegerModel
from nextscale.graph_passes.pipeline import fuse_stage, quantize_stage
from nextscale.graph_passes.quantize_autoencoder import stock_and_fused_autoencoder
from nextscale.models.sources import Source
from nextscale.models.var.layers import facts_of
from nextscale.runtime._bundle import Bundle
from nextscale.runtime._machine import saturation_warning
from nextscale.runtime._manifest import FUSED, STOCK
from nextscale.runtime._next_scale_loop import Generator
from nextscale.runtime._outputs import atomic_folder
from nextscale.runtime._probe_pictures import probe_pictures
from nextscale.runtime._request import DEFAULT_CFG_SCALE
from nextscale.runtime._session import SessionOptions
from nextscale.runtime._var_request import var_request

# Greedy, so that few tokens say much; the second label differs from the first in every model.
VERIFY_LABELS = (0, -1)
VERIFY_CFG_SCALE = 1.5
AGREEMENT_IMAGES = 8


def build_bundle(source: Source, out: Path, options: BuildOptions, progress: Progress) -> Bundle:
    """Write the bundle `out`; an interrupted build leaves nothing.

    Raises:
        OutputError: out exists or cannot be written.
        NextscaleError: the recipe lacks what it needs, the model's logits or pictures overflow float32, or an integer
            layer fell back to float in this release of ONNX Runtime.
    """
    # What a build measures and stores is of the stock graphs, which run everywhere.
    options = replace(options, session=replace(options.session, ops=STOCK))
    with atomic_folder(out) as folder, torch.no_grad():
        progress("building graphs")
        stage_model = build_stage_graph(source.var, source.vqvae.quantize)
        decoder_model = build_decoder_graph(source.vqvae)
        if options.recipe.precision == "fp32":
            progress("writing")
            recipe: dict[str, Any] = {"name": options.recipe.name}
            encoder_model = build_encoder_graph(source.vqvae) if options.encoder else None
            write_bundle(source, folder, stage_model, decoder_model, encoder_model, recipe)
        else:
            recipe = _build_integer(source, folder, stage_model, decoder_model, options, progress)
        progress("generating the stored tokens")
        require_finite_logits(Bundle.open(folder), options.session)
        token_maps, encoded = _stored_tokens(folder, options.session)
        require_finite_picture(source.vqvae, token_maps[0])
        complete_manifest(folder, token_maps, encoded, recipe, _card(source, recipe))
    return Bundle.open(out)


def _build_integer(
    source: Source,
    folder: Path,
    stage_model: ir.Model,
    decoder_model: ir.Model,
    options: BuildOptions,
    progress: Progress,
) -> dict[str, Any]:
    """Calibrate, quantize, write and check; returns the recipe with what the checks found."""
    if options.reduce_range:
        require_reducible(options.recipe)
    integer = IntegerModel.decide(options.recipe, facts_of(source.var), options.reduce_range)
    require_rounding(integer, options)

    def write_float(folder: Path, stage_model: ir.Model, decoder_model: ir.Model) -> None:
        write_bundle(source, folder, stage_model, decoder_model, None, {"name": "fp32"})

    # Beside the bundle, since the manifest lists what lies in it; full precision is needed again for the comparison.
    with tempfile.TemporaryDirectory(prefix="calibration-", dir=folder.parent) as work:
        progress("writing the full-precision model for calibration")
        full_precision = FloatModel.write(source, stage_model, decoder_model, Path(work), write_float)
        require_finite_logits(full_precision.bundle, options.session)
        plan = make_plan(full_precision, integer, options, progress)
        progress("quantizing")
        float_stage = build_stage_graph(source.var, source.vqvae.quantize, plan.equalization)
        stage_model = quantize_stage(float_stage, plan.stage)
        fused = {"stage": fuse_stage(float_stage, plan.stage, stage_model), "decoder": decoder_model}
        planned: dict[str, list[str]] = {"stage": [*integer.layers], "decoder": []}
        if plan.decoder is not None:
            planned["decoder"] = [*plan.decoder.inputs]
            decoder_model, fused["decoder"] = stock_and_fused_autoencoder(
                decoder_model, plan.decoder, options.reduce_range
            )
        planned["generate"] = planned["stage"] + planned["decoder"]
        encoder_model = None
        if options.encoder:
            planned["encoder"] = [] if plan.encoder is None else [*plan.encoder.inputs]
            encoder_model, fused["encoder"] = encoder_graphs(source.vqvae, plan.encoder)
        progress("writing")
        recipe = options.recipe.as_dict() | dict(plan.report) | {"reduce_range": options.reduce_range}
        write_bundle(source, folder, stage_model, decoder_model, encoder_model, recipe, fused if options.fused else {})

        progress("checking kernels")
        certificates = {name: certify(folder / f"{name}.onnx", options.session) for name in planned}
        for name, names in planned.items():
            certificates[name].require_integer(names)
        progress("emulating CPUs without VNNI")
        saturation = measure_saturation(Bundle.open(folder), stage_model, decoder_model, encoder_model, options.session)
        progress("comparing with full precision", 0, AGREEMENT_IMAGES)
        found = teacher_forced(
            Generator(full_precision.bundle, options.session),
            {"integer": Generator(folder, options.session)},
            images=AGREEMENT_IMAGES,
            batch_size=1,  # two models at once: more would need more memory than calibration
            on_images=lambda done: progress("comparing with full precision", done, AGREEMENT_IMAGES),
        )["integer"]
    agreement = {"images": found.images, "kl": found.kl, "top1": found.top1, "cfg_scale": DEFAULT_CFG_SCALE}
    of_saturation = as_report(saturation)
    if saturation_warning(recipe | {"saturation": of_saturation}) is not None:
        agreement["saturated"] = True
    return recipe | {
        "agreement": agreement,
        "saturation": of_saturation,
        "kernels": {name: found.by_layer() for name, found in certificates.items() if name != "generate"},
    }


def write_bundle(
    source: Source,
    folder: Path,
    stage_model: ir.Model,
    decoder_model: ir.Model,
    encoder_model: ir.Model | None,
    recipe: Mapping[str, Any],
    fused: Mapping[str, ir.Model] = MappingProxyType({}),
) -> None:
    """Compose the single file, write all graphs and a manifest whose stored tokens are still zeros.

    Args:
        encoder_model: None leaves it out.
        fused: the other graphs with fused operators, to write beside them.
    """
    model = source.model_info()
    request = var_request(model)
    models = {
        "generate": build_generate_graph(stage_model, decoder_model, model.num_stages, request),
        "stage": stage_model,
        "decoder": decoder_model,
        **({} if encoder_model is None else {"encoder": encoder_model}),
    }
    if fused:
        generate = build_generate_graph(fused["stage"], fused["decoder"], model.num_stages, request)
        models |= {
            f"{role}.{FUSED}": graph for role, graph in {"generate": generate, **fused}.items() if has_fused(graph)
        }
    write_graphs(folder, models)
    labels = [label % model.num_classes for label in VERIFY_LABELS]
    verify = {
        "seed": 0,
        "inputs": {"class_labels": labels, "cfg_scale": VERIFY_CFG_SCALE, "top_k": 1, "top_p": 0.0},
        "token_maps": [[0] * model.num_tokens for _ in labels],
    }
    info = BundleInfo(
        source.name, "var", model, request, recipe, source.class_names, source.licence, _card(source, recipe)
    )
    write_manifest(folder, models, info, verify)


def _card(source: Source, recipe: Mapping[str, Any]) -> str:
    return bundle_card(source.name, source.description, source.licence, source.model_info(), recipe)


def _stored_tokens(folder: Path, options: SessionOptions) -> tuple[list[list[int]], list[list[int]] | None]:
    """The bundle's own greedy tokens, and those of probe pictures, for `nextscale verify` to compare with."""
    generator = Generator(folder, options)
    record = generator.bundle.manifest.verify
    greedy = generator.generate(seed=record.seed, inputs=record.inputs)
    if "encoder" not in generator.bundle.manifest.graphs:
        return greedy.token_maps.tolist(), None
    probes = probe_pictures(generator.bundle.model.image_size, len(greedy.images))
    return greedy.token_maps.tolist(), generator.encode(probes).tolist()
