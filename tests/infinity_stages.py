"""Run Infinity's stage graph in memory, stage after stage."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime
from numpy.typing import NDArray

from nextscale.export.generate_graph import present_name
from nextscale.models.infinity.schedules import Size
from nextscale.models.infinity.transformer import InfinityConfig
from nextscale.runtime._session import SessionOptions, session_settings

Array = NDArray[Any]
Outputs = dict[str, Array]


class InfinityStages:
    """A session of a stage graph.

    Args:
        model: the graph.
        config: of its model.
        sizes: those that it serves.
    """

    def __init__(self, model: ir.Model, config: InfinityConfig, sizes: Sequence[Size]) -> None:
        settings = session_settings(SessionOptions(threads=1))
        serialized = ir.to_proto(model).SerializeToString()
        self.session = onnxruntime.InferenceSession(serialized, settings, providers=["CPUExecutionProvider"])
        self.config, self.sizes = config, sizes

    def feeds(self, features: Array, index: int = 0, **settings: Any) -> Outputs:
        """A request's inputs; what `settings` does not name is unguided, sampled with uniforms of 0.5, and no top_p."""
        size = self.sizes[index]
        batch, bits = len(features), (len(features), size.num_tokens, self.config.token_bits)
        feeds: Outputs = {
            "size": np.array(index),
            "text_features": features,
            "text_mask": np.ones(features.shape[:2], np.int64),
            "negative_features": np.zeros((batch, 0, features.shape[2]), np.float32),
            "uniforms": np.full(bits, 0.5, np.float32),
            "forced_bits": np.full(bits, -1),
            "top_p": np.array(settings.pop("top_p", 0), np.float32),
        }
        for name in ("cfg_scale", "tau"):
            feeds[name] = np.broadcast_to(np.float32(settings.pop(name, 1)), [size.num_stages])
        feeds |= settings
        feeds.setdefault("negative_mask", np.ones(feeds["negative_features"].shape[:2], np.int64))
        return feeds

    def initial(self, feeds: Outputs) -> Outputs:
        """The state before stage 0."""
        batch, (height, width) = len(feeds["text_features"]), self.sizes[int(feeds["size"])].latent_size
        known = {"B": batch, "2B": 2 * batch, "h": height, "w": width}
        state = [value for value in self.session.get_inputs() if value.name not in (*feeds, "stage")]
        dtypes = {"tensor(float)": np.float32, "tensor(uint8)": np.uint8}
        shapes = {value.name: [known.get(d, 0) if isinstance(d, str) else d for d in value.shape] for value in state}
        return {value.name: np.zeros(shapes[value.name], dtypes[value.type]) for value in state}

    def step(self, feeds: Outputs, state: Outputs, si: int) -> Outputs:
        """All outputs of one stage."""
        names = [value.name for value in self.session.get_outputs()]
        return dict(zip(names, self.session.run(names, {**feeds, **state, "stage": np.array(si)}), strict=True))

    def run(self, feeds: Outputs, later: Outputs | None = None) -> list[Outputs]:
        """All outputs of all stages.

        Args:
            feeds: the request.
            later: what stages after the first are fed instead.
        """
        state, stages = self.initial(feeds), []
        for si in range(self.sizes[int(feeds["size"])].num_stages):
            stages.append(self.step(feeds if si == 0 or later is None else {**feeds, **later}, state, si))
            state = {name: stages[-1][present_name(name)] for name in state}
        return stages


def all_stages(stages: Sequence[Outputs], name: str) -> Array:
    """An output [B, l, ...] of all stages, [B, L, ...]."""
    return np.concatenate([outputs[name] for outputs in stages], axis=1)
