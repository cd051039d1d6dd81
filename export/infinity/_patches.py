"""Maps of latents to tokens and back: where a token is a patch of p x p latents, its bit p^2 c + p i + j is one's."""

from __future__ import annotations

import onnx_ir as ir
from onnxscript import OpBuilder


def to_tokens(op: OpBuilder, maps: ir.Value, sides: ir.Value, patch: int, channels: int) -> ir.Value:
    """[B, c, p h, p w] -> [B, h w, p^2 c], of whatever type; sides are h and w, int64 [2]."""
    height, width = (op.Gather(sides, [axis]) for axis in (0, 1))
    patches = op.Reshape(maps, op.Concat([0, channels], height, [patch], width, [patch], axis=0))
    return op.Reshape(op.Transpose(patches, perm=[0, 2, 4, 1, 3, 5]), [0, -1, channels * patch**2])


def to_maps(op: OpBuilder, tokens: ir.Value, sides: ir.Value, patch: int, channels: int) -> ir.Value:
    """The way back: [B, h w, p^2 c] -> [B, c, p h, p w]."""
    height, width = (op.Gather(sides, [axis]) for axis in (0, 1))
    patches = op.Reshape(tokens, op.Concat([0], height, width, [channels, patch, patch], axis=0))
    together = op.Transpose(patches, perm=[0, 3, 1, 4, 2, 5])
    return op.Reshape(together, op.Concat([0, channels], op.Mul(sides, [patch]), axis=0))
