"""Quantization of ONNX graphs: one pass per file, and pipeline.py, the one ordered list."""

__all__ = [
    "expand_attentive_tokens",
    "integer_model",
    "layer_facts",
    "linear_layers",
    "observe_attention",
    "observe_inputs",
    "observe_scores",
    "pipeline",
    "qparams",
    "quantize_attention",
    "quantize_decoder",
    "quantize_linear",
    "quantize_linear_dynamic",
    "quantize_linear_pairs",
    "recipe",
    "split_rows",
]
