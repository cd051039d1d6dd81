"""From a torch model to float32 ONNX graphs, and graphs into a bundle."""

__all__ = [
    "autoencoder_parts",
    "bit_sampling_graph",
    "bundle_writer",
    "generate_graph",
    "graph_builder",
    "infinity",
    "sampling_graph",
    "text_encoder_graph",
    "var",
]
