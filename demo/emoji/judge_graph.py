"""The judge as an ONNX file, as `nextscale paper table-2 --judge` takes it (`evaluate/concept_judge.py`).

`python -m nextscale.demo.emoji.judge_graph --data sprites.npz --run RUN --out judge.onnx`
"""

from __future__ import annotations

import json
import warnings
from pathlib import Path

import click
import onnx_ir as ir
import torch
from torch import Tensor, nn

from nextscale.demo.emoji.judge import WINDOWS, Judge, cut, load_judge
from nextscale.demo.emoji.sprites import Sprites
from nextscale.demo.emoji.weights import JUDGE
from nextscale.evaluate.concept_judge import METADATA

OPSET = 20  # the first with GridSample as torch means it


class _OfPictures(nn.Module):
    """Pictures uint8 [B, H, W, 3] and windows float32 [B, 3] to logits of looks."""

    def __init__(self, judge: Judge) -> None:
        super().__init__()
        self.judge = judge

    def forward(self, pictures: Tensor, windows: Tensor) -> Tensor:
        looks: Tensor = self.judge(cut(pictures.permute(0, 3, 1, 2).float() / 127.5 - 1, windows))[0]
        return looks


def build_judge_graph(judge: Judge, sprites: Sprites) -> ir.Model:
    """The graph: pictures uint8 [B, H, W, 3] and windows float32 [B, 3] -> logits of looks, float32 [B, n].

    Its metadata names the concepts of the looks and the windows.
    """
    batch, height, width = (torch.export.Dim(name) for name in ("B", "H", "W"))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of torch about its own modules
        exported = torch.onnx.export(
            _OfPictures(judge).eval(),
            (torch.zeros(2, 96, 160, 3, dtype=torch.uint8), torch.zeros(2, 3)),
            input_names=["pictures", "windows"],
            output_names=["logits"],
            dynamic_shapes=({0: batch, 1: height, 2: width}, {0: batch}),
            opset_version=OPSET,
            dynamo=True,
            verbose=False,
        )
    assert exported is not None
    model = exported.model
    concepts = {e.name: int(look) for e, look in zip(sprites.emoji, sprites.looks, strict=True)}
    model.metadata_props[METADATA] = json.dumps({"name": "emoji judge", "concepts": concepts, "windows": WINDOWS})
    return model


@click.command(context_settings={"show_default": True})
@click.option("--data", type=click.Path(exists=True, dir_okay=False, path_type=Path), required=True)
@click.option("--run", type=click.Path(exists=True, file_okay=False, path_type=Path), required=True, help="Weights.")
@click.option("--out", type=click.Path(dir_okay=False, path_type=Path), default=Path("judge.onnx"))
def main(data: Path, run: Path, out: Path) -> None:
    """Write the judge of a run as a graph."""
    sprites = Sprites.load(data)
    ir.save(build_judge_graph(load_judge(run / JUDGE, int(sprites.looks.max()) + 1), sprites), out)


if __name__ == "__main__":
    main()
