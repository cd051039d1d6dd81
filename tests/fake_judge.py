"""A judge of no weights: a thing is of the channel that is brightest in the middle of its window."""

from __future__ import annotations

import json
from pathlib import Path

import onnx_ir as ir

from nextscale.evaluate.concept_judge import METADATA
from nextscale.export.autoencoder_parts import to_numbers
from nextscale.export.graph_builder import add_output, finish, new_builder

CONCEPTS = {"rose": 0, "poppy": 0, "leaf": 1, "sky": 2}
WINDOWS = {"whole": [0.5, 0.5, 1.0], "left": [0.25, 0.5, 0.5], "right": [0.75, 0.5, 0.5]}


def judge_model() -> ir.Model:
    builder = new_builder("judge")
    op = builder.op
    pictures = builder.input("pictures", ir.DataType.UINT8, ["B", "H", "W", 3])
    windows = builder.input("windows", ir.DataType.FLOAT, ["B", 3])
    middle = op.Sub(op.Mul(op.Slice(op.Unsqueeze(windows, [1, 2]), [0], [2], [3]), 2.0), 1.0)
    colours = op.GridSample(to_numbers(op, pictures), middle, mode="nearest", padding_mode="border")
    add_output(builder, op.Squeeze(colours, [2, 3]), "logits", ir.DataType.FLOAT, ["B", 3])
    model = finish(builder)
    model.metadata_props[METADATA] = json.dumps({"name": "colours", "concepts": CONCEPTS, "windows": WINDOWS})
    return model


def write_judge(path: Path) -> Path:
    ir.save(judge_model(), path)
    return path
