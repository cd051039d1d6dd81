"""The torch models, their checkpoints, and the way from torch to an ONNX bundle."""
