"""What a user would run instead of nextscale, each with its best settings, as contenders of a measurement.

Imports nothing: the workers of some peers run in environments without nextscale's own requirements.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from nextscale.measure.contender import Contender
    from nextscale.models.var.sources import VARSource

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


def peers(source: VARSource, work: Path, threads: int, names: Sequence[str] | None = None) -> list[Contender]:
    """The peers of a model, ready to be started; `python -m nextscale.measure.peers.setup` makes what they need.

    Args:
        source: the model, as it was given to setup.
        work: setup's folder.
        threads: of each peer; 0 lets each library choose.
        names: of NAMES; None is all. One that is not set up becomes a contender that says so and fails.
    Raises:
        NextscaleError: a name is unknown.
    """
    from nextscale.measure.peers.contenders import PeerFolder, checked_names, contender

    place = PeerFolder.of(source, work)
    return [contender(name, place, threads) for name in checked_names(names)]
