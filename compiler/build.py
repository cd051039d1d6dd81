"""From a torch model to a bundle: graphs, calibration, quantization, certificate, stored tokens."""

from __future__ import annotations

import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import torch
from numpy.typing import NDArray

from nextscale.compiler._autoencoder import encoder_graphs
from nextscale.compiler._caches import with_decided_cache
from nextscale.compiler._families import family_of
from nextscale.compiler._finite import require_finite_logits, require_finite_picture
from nextscale.compiler._float_model import FloatModel
from nextscale.compiler._mapped_weights import MappedWeights
from nextscale.compiler._plan import Plan, make_plan
from nextscale.compiler._rounders import require_reducible, require_rounding
from nextscale.compiler._text_encoder import text_encoder_graphs
from nextscale.compiler.family import Family
from nextscale.compiler.fusion_certificate import certify
from nextscale.compiler.options import BuildOptions, Progress
from nextscale.compiler.write_bundle import bundle_info, write_bundle
from nextscale.evaluate.saturation import as_report, measure_saturation
from nextscale.evaluate.teacher_forced import Agreement, Sampled, agreement, sample
from nextscale.export.bundle_writer import complete_manifest
from nextscale.graph_passes.integer_model import IntegerModel
from nextscale.graph_passes.pipeline import fuse_stage, quantize_stage
from nextscale.graph_passes.qparams import QuantizedWeight
from nextscale.graph_passes.quantize_autoencoder import stock_and_fused_autoencoder
from nextscale.models.sources import Source
from nextscale.runtime._bundle import Bundle
from nextscale.runtime._machine import saturation_warning
from nextscale.runtime._manifest import STOCK
from nextscale.runtime._next_scale_loop import Generator
from nextscale.runtime._outputs import atomic_folder
from nextscale.runtime._probe_pictures import probe_pictures
from nextscale.runtime._session import SessionOptions
from nextscale.runtime._verify import stored_settings, stored_size

# Images that are compared with full precision; few of large models, whose images have the more numbers to compare.
AGREEMENT_IMAGES, AGREEMENT_IMAGES_OF_LARGE = 8, 2
# A large model has float weights of more bytes. They are not copied into sessions, which map them from their file.
MOST_COPIED = 4_000_000_000


def build_bundle(source: Source, out: Path, options: BuildOptions, progress: Progress) -> Bundle:
    """Write the bundle `out`; an interrupted build leaves nothing.

    Raises:
        OutputError: out exists or cannot be written.
        NextscaleError: the recipe asks for what the family does not have, or lacks what it needs; the model's logits or
            pictures overflow float32; an integer layer fell back to float in this release of ONNX Runtime.
    """
    family = family_of(source)
    if options.recipe.precision != "fp32":
        family.require_recipe(options.recipe)
    with atomic_folder(out) as folder, torch.no_grad():
        progress("building graphs")
        weights = MappedWeights(family.weights(), folder.parent)
        progress = weights.tidying(progress)
        stage, decoder = family.stage_graph(), family.decoder_graph()
        options = replace(options, session=_session_of(stage, options.session))
        if options.recipe.precision == "fp32":
            recipe: dict[str, Any] = {"name": options.recipe.name}
            _build_float(family, folder, stage, decoder, options, progress)
        else:
            recipe = _build_integer(family, weights, folder, stage, decoder, options, progress)
        progress("generating the stored tokens")
        session = options.session if options.recipe.precision == "fp32" else _of_integers(options.session)
        require_finite_logits(Bundle.open(folder), session)
        token_maps, encoded = _stored_tokens(folder, session)
        require_finite_picture(family, token_maps[0])
        complete_manifest(folder, token_maps, encoded, recipe, bundle_info(family, recipe).card)
    return Bundle.open(out)


def _build_float(
    family: Family, folder: Path, stage: ir.Model, decoder: ir.Model, options: BuildOptions, progress: Progress
) -> None:
    progress("writing")
    graphs = {"stage": family.as_run(stage), "decoder": decoder}
    if options.encoder:
        graphs["encoder"], _ = encoder_graphs(family, None)
    text_encoder = family.text_encoder() if options.text_encoder else None
    if text_encoder is not None:
        graphs["text_encoder"] = text_encoder.graph
    write_bundle(family, folder, graphs, {"name": options.recipe.name})


def _build_integer(
    family: Family,
    weights: MappedWeights,
    folder: Path,
    stage: ir.Model,
    decoder: ir.Model,
    options: BuildOptions,
    progress: Progress,
) -> dict[str, Any]:
    """Calibrate, quantize, write and check; returns the recipe with what the checks found."""
    if options.reduce_range:
        require_reducible(options.recipe)
    decided = with_decided_cache(options.recipe, family.bundle_info({}))
    integer = IntegerModel.decide(decided, family.facts(), options.reduce_range)
    require_rounding(integer, options)

    # Beside the bundle, since the manifest lists what lies in it; full precision is needed again for the comparison.
    with tempfile.TemporaryDirectory(prefix="calibration-", dir=folder.parent) as work:
        progress("writing the full-precision model for calibration")
        full_precision = FloatModel.write(family, stage, decoder, Path(work))
        weights.drop()  # what was written is read from its file from here on
        require_finite_logits(full_precision.bundle, options.session)
        plan = make_plan(full_precision, integer, options, progress)
        progress("quantizing")
        stock, fused = ({"stage": graph, "decoder": decoder} for graph in _stage_graphs(family, weights, plan))
        planned: dict[str, list[str]] = {"stage": [*integer.layers], "decoder": []}
        if plan.decoder is not None:
            planned["decoder"] = [*plan.decoder.inputs]
            stock["decoder"], fused["decoder"] = stock_and_fused_autoencoder(
                decoder, plan.decoder, options.reduce_range
            )
        planned["generate"] = planned["stage"] + planned["decoder"]
        if options.encoder:
            planned["encoder"] = [] if plan.encoder is None else [*plan.encoder.inputs]
            stock["encoder"], fused["encoder"] = encoder_graphs(family, plan.encoder)
        text_encoder = family.text_encoder() if options.text_encoder else None
        if text_encoder is not None:
            planned["text_encoder"] = text_encoder.layers()
            stock["text_encoder"], fused["text_encoder"] = text_encoder_graphs(text_encoder, options.reduce_range)
        progress("writing")
        chosen = {"cache": decided.attention.cache, "reduce_range": options.reduce_range}
        recipe = options.recipe.as_dict() | dict(plan.report) | chosen
        write_bundle(family, folder, stock, recipe, fused if options.fused else {})

        progress("checking kernels")
        session = _of_integers(options.session)
        certificates = {name: certify(folder / f"{name}.onnx", session) for name in planned}
        for name, names in planned.items():
            certificates[name].require_integer(names)
        progress("emulating CPUs without VNNI")
        saturation = measure_saturation(Bundle.open(folder), stock, session, family.saturation_subject())
        del stock, fused  # they map the weights that were looked at
        found = _agreement(family, full_precision.bundle, options.session, Generator(folder, session), progress)
    cfg_scale = full_precision.bundle.manifest.default_cfg_scale
    agrees = {"images": found.images, "kl": found.kl, "top1": found.top1, "cfg_scale": cfg_scale}
    of_saturation = as_report(saturation)
    if saturation_warning(recipe | {"saturation": of_saturation}) is not None:
        agrees["saturated"] = True
    return recipe | {
        "agreement": agrees,
        "saturation": of_saturation,
        "kernels": {name: found.by_layer() for name, found in certificates.items() if name != "generate"},
    }


def _agreement(
    family: Family, bundle: Bundle, options: SessionOptions, candidate: Generator, progress: Progress
) -> Agreement:
    """Of the candidate with the full-precision bundle. Of the two one at a time is in memory."""
    images = AGREEMENT_IMAGES if options.prepacking else AGREEMENT_IMAGES_OF_LARGE
    subjects, sampled = family.agreement_subjects(images), list[Sampled]()
    progress("sampling in full precision", 0, images)
    for batch in sample(Generator(bundle, options), subjects, range(images), batch_size=1):
        sampled.append(batch)
        progress("sampling in full precision", batch.images.stop, images)
    progress("comparing with full precision", 0, images)
    return agreement(sampled, candidate, subjects, lambda done: progress("comparing with full precision", done, images))


def _stage_graphs(family: Family, weights: MappedWeights, plan: Plan) -> tuple[ir.Model, ir.Model]:
    """The stock and the fused integer stage graph. Once they are written, nothing else holds their weights."""
    rounded: dict[str, QuantizedWeight] = {}

    def round_weight(name: str, weight: NDArray[np.float32]) -> QuantizedWeight:
        if name not in rounded:  # both graphs have the same
            rounded[name] = plan.stage.rounder(name, weight)
        weights.drop()  # or all of them would be in memory beside the integer ones
        return rounded[name]

    float_stage, stage_plan = family.stage_graph(plan.equalization), replace(plan.stage, rounder=round_weight)
    stock = quantize_stage(float_stage, stage_plan)
    return family.as_run(stock), family.as_run(fuse_stage(float_stage, stage_plan, stock))


def _session_of(stage: ir.Model, options: SessionOptions) -> SessionOptions:
    """How the build runs the float graphs: the stock ones, as all that it measures and stores is of those."""
    weights = [value.const_value for value in stage.graph.initializers.values()]
    size = sum(weight.nbytes for weight in weights if weight is not None)
    return replace(options, ops=STOCK, prepacking=options.prepacking and size <= MOST_COPIED)


def _of_integers(options: SessionOptions) -> SessionOptions:
    """The same for graphs of integers, whose weights are small, and whose kernels are slow without."""
    return replace(options, prepacking=True)


def _stored_tokens(folder: Path, options: SessionOptions) -> tuple[list[list[int]], list[list[int]] | None]:
    """The bundle's own greedy tokens, and those of probe pictures, for `nextscale verify` to compare with."""
    generator = Generator(folder, options)
    manifest = stored_size(generator.bundle.manifest)
    greedy = generator.generate(**stored_settings(manifest))
    count = len(greedy.images)
    token_maps = greedy.token_maps.reshape(count, -1).tolist()
    if "encoder" not in manifest.graphs:
        return token_maps, None
    probes = probe_pictures(manifest.model.image_size, count)
    return token_maps, generator.encode(probes).reshape(count, -1).tolist()
