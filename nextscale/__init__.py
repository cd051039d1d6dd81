"""nextscale: VAR (next-scale prediction) checkpoints to int8 ONNX bundles, and pictures from them on a plain CPU."""

__version__ = "0.1.0"
