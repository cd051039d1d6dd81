"""Calibrating and calling NNCF, OpenVINO's quantizer, whatever form the graphs have; runs where it is installed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import nncf

from nextscale.measure.peers.host_loop import Engine, Floats, Inputs
from nextscale.measure.peers.worker import load_host

Feeds = dict[str, Any]
_SETTINGS: dict[str, Feeds] = {"step": {"model_type": nncf.ModelType.TRANSFORMER}, "decoder": {}}


class Recorder:
    """An engine that keeps what its graphs are fed.

    Args:
        engine: which draws.
        feeds: what the step is fed next, but for the stage's own inputs: arrays by name.
    Attributes:
        step_feeds, decoder_feeds: of each call.
    """

    def __init__(self, engine: Engine, feeds: Callable[[], Feeds]) -> None:
        self.versions, self.compiles = engine.versions, engine.compiles
        self.step_feeds, self.decoder_feeds = list[Feeds](), list[Feeds]()
        self._engine, self._feeds = engine, feeds

    def begin(self, inputs: Inputs) -> Inputs:
        return self._engine.begin(inputs)

    def stage(self, inputs: Inputs) -> Floats:
        self.step_feeds.append(self._feeds() | dict(inputs))
        return self._engine.stage(inputs)

    def decode(self, f_hat: Floats) -> Floats:
        self.decoder_feeds.append({"f_hat": f_hat})
        return self._engine.decode(f_hat)

    def draw(self, family: str, host_weights: Path, images: int) -> None:
        """Draw so many pictures, one after the other."""
        generate = load_host(family, host_weights)
        for seed in range(images):
            generate(self, 1, seed)


def quantize(graph: str, model: Any, feeds: list[Feeds]) -> Any:
    """The model of the graph "step" or "decoder", quantized and calibrated on all feeds."""
    return nncf.quantize(
        model,
        nncf.Dataset(feeds),
        preset=nncf.QuantizationPreset.MIXED,
        subset_size=len(feeds),
        **_SETTINGS[graph],
    )
