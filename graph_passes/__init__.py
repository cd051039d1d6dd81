"""Quantization of ONNX graphs: one pass a file, and pipeline.py, the one ordered list."""
