"""What a user would run instead of nextscale, each with its best settings, as contenders of a measurement.

Imports nothing: the workers of some peers run in environments without nextscale's own requirements.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from nextscale.measure.contender import Contender
    from nextscale.models.sources import Source

NAMES = (
    "pytorch-fp32",
    "pytorch-bf16",
    "torch-compile-fp32",
    "torch-compile-bf16",
    "torch-compile-int8",
    "onnxruntime-fp32",
    "onnxruntime-int8",
    "onnxruntime-openvino-fp32",
    "onnxruntime-openvino-bf16",
    "onnxruntime-openvino-int8",
    "openvino-fp32",
    "openvino-bf16",
    "openvino-int8",
)
INFINITY_NAMES = (
    "pytorch-bf16",
    "onnxruntime-fp32",
    "onnxruntime-int8",
    "openvino-fp32",
    "openvino-bf16",
    "openvino-int8",
)


def peers(source: Source, work: Path, threads: int, names: Sequence[str] | None = None) -> list[Contender]:
    """The peers of a model, ready to be started; `python -m nextscale.measure.peers.setup` makes what they need.

    Args:
        source: the model, as it was given to setup.
        work: setup's folder.
        threads: of each peer; 0 lets each library choose.
        names: of NAMES, or of INFINITY_NAMES; None is all. One that is not set up becomes a contender that says so and
            fails.
    Raises:
        NextscaleError: a name is unknown, or the model has no peers.
    """
    from nextscale.measure.peers.contenders import PeerFolder, checked_names, contender
    from nextscale.measure.peers.peer_model import peer_model

    model = peer_model(source)
    place = PeerFolder.of(model, work)
    return [contender(name, place, threads) for name in checked_names(names, model.names)]
