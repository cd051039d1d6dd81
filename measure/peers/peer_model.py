"""A model as its peers need it, whatever its family."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from nextscale.measure.peers import INFINITY_NAMES, NAMES
from nextscale.measure.peers.stored_models import digest
from nextscale.models.infinity.sources import InfinitySource
from nextscale.models.sources import Source
from nextscale.models.var.sources import VARSource
from nextscale.runtime._errors import NextscaleError


class PeerModel(Protocol):
    """What sets peers up, and what tells them apart."""

    @property
    def name(self) -> str:
        """The source's."""

    @property
    def family(self) -> str:
        """Whose loop runs around engines (`worker.load_host`)."""

    @property
    def names(self) -> tuple[str, ...]:
        """Of its peers."""

    def digest(self) -> str:
        """Digits that change with the model."""

    def save(self, folder: Path) -> None:
        """Store the models for peers that run them in torch."""

    def export(self, folder: Path, log: Callable[[str], object]) -> None:
        """Write condition.onnx, step.onnx, decoder.onnx and host.npz."""


@dataclass(frozen=True)
class VARPeerModel:
    """See `PeerModel`."""

    source: VARSource
    family = "var"
    names = NAMES

    @property
    def name(self) -> str:
        return self.source.name

    def digest(self) -> str:
        return digest(self.source.var, self.source.vqvae)

    def save(self, folder: Path) -> None:
        from nextscale.measure.peers.stored_models import save_models

        save_models(self.source.var, self.source.vqvae, folder)

    def export(self, folder: Path, log: Callable[[str], object]) -> None:
        from nextscale.measure.peers.exported_graphs import export_graphs
        from nextscale.measure.peers.host_weights import host_weights

        export_graphs(self.source.var, self.source.vqvae, folder, log)
        host_weights(self.source.var, self.source.vqvae).save(folder / "host.npz")


@dataclass(frozen=True)
class InfinityPeerModel:
    """See `PeerModel`; of the source's first size."""

    source: InfinitySource
    family = "infinity"
    names = INFINITY_NAMES

    @property
    def name(self) -> str:
        return f"{self.source.name}-{self.source.sizes[0].area}"

    def digest(self) -> str:
        return digest(self.source.infinity, self.source.vae)

    def save(self, folder: Path) -> None:
        from nextscale.measure.peers.infinity_torch_engine import save_bfloat16

        save_bfloat16(self.source.infinity, self.source.vae, folder)

    def export(self, folder: Path, log: Callable[[str], object]) -> None:
        from nextscale.measure.peers.infinity_graphs import export_graphs, host_weights

        source = self.source
        export_graphs(source.infinity, source.vae, source.sizes[0], folder, log)
        host_weights(source.infinity, source.sizes[0]).save(folder / "host.npz")


def peer_model(source: Source) -> PeerModel:
    """The model of a source.

    Raises:
        NextscaleError: it has no peers.
    """
    match source:
        case VARSource():
            return VARPeerModel(source)
        case InfinitySource() if not source.infinity.config.patchify:
            return InfinityPeerModel(source)
    raise NextscaleError(f"{source.name}: peers are made of VAR, and of Infinity whose tokens are no patches")
