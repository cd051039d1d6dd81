"""The options that say what pictures are measured with as sets: a feature network, and statistics of real ones."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import click

from nextscale.cli.model_options import VAROptions
from nextscale.cli.paper_models import DEMO
from nextscale.evaluate.feature_network import FeatureNetwork
from nextscale.evaluate.image_statistics import ImageNetwork
from nextscale.evaluate.inception_network import InceptionNetwork, require_standard_weights
from nextscale.evaluate.reference_statistics import Reference, read_demo_reference, read_reference
from nextscale.runtime._text import printable

NONE = "none"
Command = Callable[..., object]
inception_weights = click.option(
    "--inception-weights", type=click.Path(path_type=Path, exists=True, dir_okay=False), metavar="FILE",
    help="Use Inception v3 with torch-fidelity's weights, for standard FID and IS.",
)  # fmt: skip
_REFERENCE = click.option(
    "--reference", metavar="demo|none|FILE.npz",
    help="Statistics of real pictures.  [default: those of the demo model's photographs, or none]",
)  # fmt: skip
picture_count = click.option(
    "--images", type=click.IntRange(2),
    help="Pictures of each row and seed.  [default: 5000; of official models 50000]",
)  # fmt: skip


@dataclass(frozen=True)
class Judging:
    """What pictures are measured with.

    Attributes:
        inception_weights: None: EfficientNet-Lite0, whose figures have other names.
        reference: real pictures: "demo", "none", or a file.
    """

    inception_weights: Path | None
    reference: str

    @property
    def read(self) -> list[Path]:
        """The files."""
        named = [] if self.reference in (DEMO, NONE) else [Path(self.reference)]
        return named if self.inception_weights is None else [self.inception_weights, *named]

    def require_standard(self) -> None:
        """Raise click.UsageError or NextscaleError unless IS and FID can be the standard ones."""
        if self.inception_weights is None or self.reference in (DEMO, NONE):
            raise click.UsageError(
                "--standard-metrics: IS and FID need --inception-weights, and --reference with Inception's statistics "
                "of real pictures"
            )
        require_standard_weights(self.inception_weights)

    @property
    def note(self) -> str | None:
        """What a table calls the real pictures; None of none."""
        if self.reference == NONE:
            return None
        photographs = "the demo model's validation photographs"
        return photographs if self.reference == DEMO else printable(Path(self.reference).name)

    def network(self, threads: int, device: str = "cpu") -> ImageNetwork:
        """The feature network."""
        return feature_network(self.inception_weights, threads, device)

    def classifier(self, threads: int) -> ImageNetwork:
        """Of ImageNet's 1000 classes, whatever the network of IS and FID is."""
        return FeatureNetwork(threads=threads)

    def real_pictures(self) -> Reference | None:
        """Their statistics; None of none."""
        return real_pictures(self.reference)


def judging_options(command: Command) -> Command:
    """--inception-weights and --reference; a command of a `paper_model` gets them as one `Judging`, `judging`."""

    @functools.wraps(command)
    def collected(model: VAROptions, inception_weights: Path | None, reference: str | None, **values: object) -> None:
        default = DEMO if model.model == DEMO and inception_weights is None else NONE
        command(model=model, judging=Judging(inception_weights, reference or default), **values)

    return cast(Command, inception_weights(_REFERENCE(collected)))


def feature_network(inception_weights: Path | None, threads: int, device: str = "cpu") -> ImageNetwork:
    """Inception v3 of these weights, or EfficientNet-Lite0."""
    return InceptionNetwork(inception_weights, device) if inception_weights else FeatureNetwork(device, threads)


def real_pictures(name: str) -> Reference | None:
    """Statistics of "demo", of a file, or of "none"."""
    if name == NONE:
        return None
    return read_demo_reference() if name == DEMO else read_reference(Path(name))


def count_of_pictures(asked: int | None, model: VAROptions) -> int:
    """How many are drawn where nothing is said: as many as the paper draws, and of the demo model a tenth."""
    return asked or (5000 if model.model == DEMO else 50000)
