"""A checkpoint of an ALBERT as an ONNX file; runs where transformers can be imported."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
from transformers import AlbertConfig, AlbertModel


class Guided(torch.nn.Module):
    """The last hidden states, and one head's attention of one layer.

    Args:
        model: whose attentions are written out.
        layer, head: from 0.
    """

    def __init__(self, model: AlbertModel, layer: int, head: int) -> None:
        super().__init__()
        self.model, self.layer, self.head = model, layer, head

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """int64 [B, T] each to float32 [B, T, C] and [B, T, T]."""
        found = self.model(input_ids=input_ids, attention_mask=attention_mask, output_attentions=True)
        return found.last_hidden_state, found.attentions[self.layer][:, self.head]


def main(weights: str, configuration: str, layer: int, head: int, length: int, out: str) -> None:
    """Write model.onnx into a folder.

    Args:
        weights, configuration: files of the checkpoint.
        layer, head: whose attention is an output.
        length: of the example, in tokens.
        out: an existing folder.
    """
    config = AlbertConfig.from_json_file(configuration)
    config._attn_implementation = "eager"
    model = AlbertModel(config).eval()
    stored = torch.load(weights, map_location="cpu", weights_only=True)
    known = {name.removeprefix("albert."): value for name, value in stored.items()}
    missing, _ = model.load_state_dict(known, strict=False)
    if missing:
        sys.exit(f"{weights}: has no {', '.join(missing)}")
    example = torch.ones((2, length), dtype=torch.int64)
    batch, tokens = torch.export.Dim("batch"), torch.export.Dim("tokens")
    torch.onnx.export(
        Guided(model, layer, head),
        (example, example),
        Path(out) / "model.onnx",
        input_names=["input_ids", "attention_mask"],
        output_names=["hidden", "attention"],
        dynamic_shapes=({0: batch, 1: tokens}, {0: batch, 1: tokens}),
        dynamo=True,
        external_data=False,
        verbose=False,
    )


if __name__ == "__main__":
    main(**json.loads(sys.argv[1]))
