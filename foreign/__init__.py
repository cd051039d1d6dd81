"""A user's own ONNX model: normalized, surveyed, calibrated on samples, quantized as far as it goes, and certified."""

from nextscale.foreign.quantize_model import QuantizeOptions, quantize
from nextscale.foreign.report import Report

__all__ = [
    "QuantizeOptions",
    "Report",
    "certificate",
    "compare",
    "effects",
    "equalize",
    "normalize",
    "observe",
    "own_errors",
    "plan",
    "quantize",
    "quantize_model",
    "reconstruct_blocks",
    "report",
    "residual_blocks",
    "running",
    "samples",
    "simulated_block",
    "suggestion",
    "survey",
    "written_model",
]
