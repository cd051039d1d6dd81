"""A vision transformer of torchvision or timm with random weights as an ONNX file; runs where it can be imported."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch

if torch.version.cuda is None:
    # The operators in C++ of PyPI's torchvision need a build of torch with CUDA; it asks for two when it is imported.
    for operator in ("nms", "qnms"):
        torch.library.define(f"torchvision::{operator}", "(Tensor boxes, Tensor scores, float iou) -> Tensor")


def main(library: str, name: str, size: int, seed: int, out: str) -> None:
    """Write model.onnx into a folder.

    Args:
        library: "torchvision" or "timm".
        name: of the model.
        size: of the picture, in pixels.
        seed: of the weights.
        out: an existing folder.
    """
    torch.manual_seed(seed)
    if library == "torchvision":
        from torchvision.models import get_model

        model = get_model(name, weights=None)
    else:
        from timm import create_model

        model = create_model(name, pretrained=False)
    for weight in model.parameters():
        # Some heads begin as zeros, and would hide every error.
        if weight.ndim > 1 and not weight.any():
            torch.nn.init.normal_(weight, std=0.02)
    torch.onnx.export(
        model.eval(),
        (torch.zeros(2, 3, size, size),),
        Path(out) / "model.onnx",
        input_names=["pixels"],
        output_names=["logits"],
        dynamic_shapes=({0: torch.export.Dim("batch")},),
        dynamo=True,
        external_data=False,
        verbose=False,
    )


if __name__ == "__main__":
    main(**json.loads(sys.argv[1]))
