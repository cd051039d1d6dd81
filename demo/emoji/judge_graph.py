"""The judge as an ONNX file, as `nextscale paper table-2 --judge` takes it (`evaluate/concept_judge.py`).

`python -m nextscale.demo.emoji.judge_graph --data sprites.npz --run RUN --out judge.onnx`
"""

from __future__ import annotations

import json
from pathlib import Path

import click
import numpy as np
import onnx_ir as ir
from onnxscript import OpBuilder

from nextscale.demo.emoji.judge import SIDE, TINY_JUDGE, WINDOWS, Judge, JudgeConfig, load_judge
from nextscale.demo.emoji.sprites import Sprites
from nextscale.demo.emoji.weights import JUDGE
from nextscale.evaluate.concept_judge import METADATA
from nextscale.export.autoencoder_parts import AutoencoderParts, to_numbers
from nextscale.export.graph_builder import Constants, add_output, finish, linear, new_builder


def build_judge_graph(judge: Judge, sprites: Sprites) -> ir.Model:
    """The graph: pictures uint8 [B, H, W, 3] and windows float32 [B, 3] -> logits of looks, float32 [B, n].

    Its metadata names the concepts of the looks and the windows.
    """
    builder = new_builder("judge")
    op, constants = builder.op, Constants(builder)
    pictures = builder.input("pictures", ir.DataType.UINT8, ["B", "H", "W", 3])
    windows = builder.input("windows", ir.DataType.FLOAT, ["B", 3])
    h = op.GridSample(to_numbers(op, pictures), _grid(op, constants, windows), mode="linear", padding_mode="border")
    h = op.AveragePool(h, kernel_shape=[2, 2], strides=[2, 2])
    h = op.ReduceMean(AutoencoderParts(op, constants).encoder("encoder", judge.encoder, h), [2, 3], keepdims=0)
    h = op.Mul(h, op.Sigmoid(h))
    logits = linear(op, constants, "looks", h, judge.looks.weight.detach(), judge.looks.bias.detach())
    add_output(builder, logits, "logits", ir.DataType.FLOAT, ["B", judge.looks.out_features])
    model = finish(builder)
    concepts = {e.name: int(look) for e, look in zip(sprites.emoji, sprites.looks, strict=True)}
    model.metadata_props[METADATA] = json.dumps({"name": "emoji judge", "concepts": concepts, "windows": WINDOWS})
    return model


def _grid(op: OpBuilder, constants: Constants, windows: ir.Value) -> ir.Value:
    """Where `judge.cut` takes its samples, x and y in [-1, 1]: [B, 3] -> [B, 2 SIDE, 2 SIDE, 2]."""
    middles = ((np.arange(2 * SIDE) + 0.5) / SIDE - 1).astype(np.float32)  # of the samples, across the window
    plane = constants("grid", np.stack(np.meshgrid(middles, middles), axis=-1)[None])
    window = op.Unsqueeze(windows, [1, 2])
    side = op.Slice(window, [2], [3], [3])
    return op.Add(op.Mul(plane, side), op.Sub(op.Mul(op.Slice(window, [0], [2], [3]), 2.0), 1.0))


@click.command(context_settings={"show_default": True})
@click.option("--data", type=click.Path(exists=True, dir_okay=False, path_type=Path), required=True)
@click.option("--run", type=click.Path(exists=True, file_okay=False, path_type=Path), required=True, help="Weights.")
@click.option("--out", type=click.Path(dir_okay=False, path_type=Path), default=Path("judge.onnx"))
@click.option("--tiny", is_flag=True, help="The weights are those of a very small model (to try the program).")
def main(data: Path, run: Path, out: Path, tiny: bool) -> None:
    """Write the judge of a run as a graph."""
    sprites = Sprites.load(data)
    judge = load_judge(run / JUDGE, int(sprites.looks.max()) + 1, TINY_JUDGE if tiny else JudgeConfig())
    ir.save(build_judge_graph(judge, sprites), out)


if __name__ == "__main__":
    main()
