"""Calibrating and calling NNCF, OpenVINO's quantizer, whatever form the graphs have; runs where it is installed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import nncf

from nextscale.measure.peers.host_loop import Engine, Floats, HostWeights, generate

Feeds = dict[str, Any]
_SETTINGS: dict[str, Feeds] = {"step": {"model_type": nncf.ModelType.TRANSFORMER}, "decoder": {}}


class Recorder:
    """An engine that keeps what its graphs are fed.

    Args:
        engine: which draws.
        inputs: what the step is fed next, but for x: arrays by name.
    Attributes:
        step_feeds, decoder_feeds: of each call.
    """

    def __init__(self, engine: Engine, inputs: Callable[[], Feeds]) -> None:
        self.versions, self.compiles = engine.versions, engine.compiles
        self.step_feeds, self.decoder_feeds = list[Feeds](), list[Feeds]()
        self._engine, self._inputs = engine, inputs

    def begin(self, embedding: Floats) -> None:
        self._engine.begin(embedding)

    def stage(self, x: Floats) -> Floats:
        self.step_feeds.append(self._inputs() | {"x": x})
        return self._engine.stage(x)

    def decode(self, f_hat: Floats) -> Floats:
        self.decoder_feeds.append({"f_hat": f_hat})
        return self._engine.decode(f_hat)

    def draw(self, host_weights: Path, images: int) -> None:
        """Draw so many pictures, one after the other."""
        weights = HostWeights.load(host_weights)
        for seed in range(images):
            generate(self, weights, 1, seed)


def quantize(graph: str, model: Any, feeds: list[Feeds]) -> Any:
    """The model of the graph "step" or "decoder", quantized and calibrated on all feeds."""
    return nncf.quantize(
        model,
        nncf.Dataset(feeds),
        preset=nncf.QuantizationPreset.MIXED,
        subset_size=len(feeds),
        **_SETTINGS[graph],
    )
