"""From a torch model to float32 ONNX graphs, and graphs into a bundle."""

__all__ = [
    "bundle_writer",
    "generate_graph",
    "graph_builder",
    "sampling_graph",
    "text_encoder_graph",
    "var",
]
