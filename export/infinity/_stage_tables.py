"""What size and stage decide, as tables with a row for each stage of each ratio.

Sizes of one ratio are one list of stages, cut at different lengths, and share their rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
import torch
from onnxscript import OpBuilder

from nextscale.export.graph_builder import Constants, scalar_at
from nextscale.models.infinity.rope import rope_tables
from nextscale.models.infinity.schedules import Ratio, Size
from nextscale.models.infinity.transformer import InfinityConfig


@dataclass(frozen=True)
class Stage:
    """A stage of a size.

    Attributes:
        begin, end: of its tokens among all L: int64 [1] each.
        sides: height and width of its map of tokens, int64 [2].
        position: of its first token among the rows of `StageTables.rope`, int64 [1].
    """

    begin: ir.Value
    end: ir.Value
    sides: ir.Value
    position: ir.Value


class StageTables:
    """The tables of some sizes.

    Args:
        config: of the model.
        sizes: those that the graph serves, in the order of its input `size`.
    Raises:
        ValueError: there is no size, or one is not the model's.
    """

    def __init__(self, config: InfinityConfig, sizes: Sequence[Size], constants: Constants) -> None:
        if not sizes:
            raise ValueError("a stage graph serves at least one size")
        longest: dict[Ratio, Size] = {}
        for size in sizes:
            if size.patch != config.patch or size.num_stages > config.num_levels:
                raise ValueError(
                    f"a size of {size.num_stages} stages and patches of {size.patch}: the model makes at most "
                    f"{config.num_levels} stages of patches of {config.patch}"
                )
            if size.ratio not in longest or size.num_stages > longest[size.ratio].num_stages:
                longest[size.ratio] = size
        self._config, self._constants, self._sizes, self._longest = config, constants, sizes, longest

    def stage(self, op: OpBuilder, size: ir.Value, stage: ir.Value) -> Stage:
        """The stage of that index, of the size of that index: int64 [] each."""
        lists = self._longest.values()
        first_rows, positions, rows, position = {}, [], 0, 0
        for item in lists:
            first_rows[item.ratio] = rows
            positions += [position + begin for begin in item.stage_begins]
            rows, position = rows + item.num_stages, position + item.num_tokens
        begins = np.array([begin for item in lists for begin in item.stage_begins])
        lengths = np.array([length for item in lists for length in item.stage_tokens])
        sides = np.array([sides for item in lists for sides in item.stage_sizes])
        table = self._constants
        row = op.Add(
            op.Gather(table("first_rows", np.array([first_rows[item.ratio] for item in self._sizes])), size), stage
        )
        return Stage(
            scalar_at(op, table("stage_begins", begins), row),
            scalar_at(op, table("stage_ends", begins + lengths), row),
            op.Gather(table("stage_sides", sides), row, axis=0),
            scalar_at(op, table("stage_positions", np.array(positions)), row),
        )

    def rope(self) -> tuple[ir.Value, ir.Value]:
        """cos and sin of the tokens of all ratios, one after the other: float32 [P, d/2] each."""
        tables = (rope_tables(item, self._config.head_dim, self._config.rope_mode) for item in self._longest.values())
        cos, sin = (torch.cat(parts) for parts in zip(*tables, strict=True))
        return self._constants("rope.cos", cos), self._constants("rope.sin", sin)
