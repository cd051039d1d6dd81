"""Decoder graphs, and encoders' features, observed and run in sessions of their own."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
import onnxruntime
from numpy.typing import NDArray

from nextscale.calib_data.observe_moments import observe_moments
from nextscale.graph_passes.observe_inputs import observe_inputs
from nextscale.graph_passes.qparams import Range
from nextscale.graph_passes.quantize_autoencoder import (
    AutoencoderObservation,
    autoencoder_observers,
    integer_convolutions,
    observed_results,
    two_byte_convolutions,
)


def run(model: ir.Model, x: NDArray, *outputs: str, library: Path | None = None, threads: int = 1) -> list[NDArray]:
    """The outputs for the one input, by default all; `library` has the fused operators."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    if library is not None:
        options.register_custom_ops_library(str(library))
    session = onnxruntime.InferenceSession(ir.to_proto(model).SerializeToString(), options)
    results: list[NDArray] = session.run(outputs or None, {model.graph.inputs[0].name: x})
    return results


def observe(model: ir.Model, x: NDArray, moments: bool = False, narrow: int = 0) -> AutoencoderObservation:
    """The ranges of a float graph's values for these latents or pictures, and perhaps moments for GPTQ."""
    inputs, results = integer_convolutions(model), observed_results(model, narrow)
    observers = [observer for kind in autoencoder_observers(model, narrow) for observer in kind]
    assert [observer.input.node for observer in observers] == [*inputs, *results]
    outputs = [observer.output for observer in observers]
    found = [Range(*ends.reshape(2, -1)) for ends in run(observe_inputs(model, observers), x, *outputs)]
    names, feeds = two_byte_convolutions(model, narrow), [{str(model.graph.inputs[0].name): x}]
    seen = observe_moments(model, names, feeds) if moments else {}
    return AutoencoderObservation(
        dict(zip(inputs, found[: len(inputs)], strict=True)),
        dict(zip(results, found[len(inputs) :], strict=True)),
        seen,
        narrow,
    )


def psnr(a: NDArray, b: NDArray) -> float:
    return float(10 * np.log10(255**2 / np.mean((a.astype(float) - b) ** 2)))
