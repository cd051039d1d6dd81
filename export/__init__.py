"""From a torch model to float32 ONNX graphs, and graphs into a bundle."""
