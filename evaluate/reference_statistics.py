"""Statistics of real images that FID is measured against; `nextscale-demo` has those of the demo model's photographs.

It has them as standard deviations and correlations in 16 bits, which moves FID-E by less than 0.001. A low rank
would not do: 300 of the 1280 directions hold 80% of the variance, and leaving out the rest moves it by more than 1.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib.resources import as_file
from pathlib import Path

import numpy as np

from nextscale.evaluate.image_statistics import (
    Gaussian,
    ImageStatistics,
    pack_symmetric,
    read_statistics,
    unpack_symmetric,
)
from nextscale.models._demo_files import demo_files
from nextscale.runtime._errors import NextscaleError
from nextscale.runtime._npz import array_shape, checked, read_npz
from nextscale.runtime.image_io import Writer, npz_writer

CODES = 32767  # a correlation of 1
PICTURES = "arr_0"  # the array of pictures in ADM's files


@dataclass(frozen=True)
class Reference:
    """Moments of real images.

    Attributes:
        gaussian: mean and covariance of their features.
        network: name of the feature network; empty where the file does not say.
        image_size: their side in pixels; None where the file does not say.
        images: their number; None where the file does not say.
    """

    gaussian: Gaussian
    network: str
    image_size: int | None
    images: int | None

    def require_comparable(self, network: str, image_size: int) -> None:
        """Refuse figures that would mean nothing.

        Raises:
            NextscaleError: another feature network, or images of another size.
        """
        hint = "give --reference FILE made the same way, or --reference none"
        if self.network and self.network != network:
            raise NextscaleError(f"the reference is of {self.network}, these statistics are of {network}; {hint}")
        if self.image_size not in (None, image_size):
            raise NextscaleError(f"the reference is of {self.image_size}-pixel images, not {image_size}; {hint}")


def read_demo_reference() -> Reference:
    """The demo model's validation photographs.

    Raises:
        NextscaleError: `nextscale-demo` is not installed.
    """
    with as_file(demo_files().PHOTOGRAPH_STATISTICS) as path:
        return read_reference(path)


def read_reference(path: Path) -> Reference:
    """Read a reference: one that `reference_writer` wrote, a statistics file of this package, or mu and sigma.

    Files of other tools with `mu` [D] and `sigma` [D, D] (pytorch-fid, ADM) do not say which network they are of: the
    caller answers for it. ADM's have pictures, too, uint8 [N, side, side, 3], of which the sizes alone are read.

    Raises:
        NextscaleError: the file is missing, damaged or holds none of these.
    """
    try:
        found = _reference(path)
    except ValueError as error:
        raise NextscaleError(f"{path}: no reference statistics: {error}") from None
    if not found.gaussian.is_of_features():
        raise NextscaleError(f"{path}: its covariance is not that of any features")
    return found


def _reference(path: Path) -> Reference:
    """Of a file in any of the three forms."""
    arrays = read_npz(path, without=[PICTURES])
    if "correlations" in arrays:
        deviations = checked(arrays, "deviations", "f", (None,)).astype(np.float64)
        triangle = checked(arrays, "correlations", "i", (len(deviations) * (len(deviations) + 1) // 2,))
        mean, network = checked(arrays, "mean", "f", deviations.shape), checked(arrays, "network", "U", ())
        image_size, images = (int(checked(arrays, name, "iu", ())) for name in ("image_size", "images"))
        covariance = unpack_symmetric(triangle / CODES) * np.outer(deviations, deviations)
        return Reference(Gaussian.checked(path, mean, covariance), str(network), image_size, images)
    if "scatter" in arrays:
        statistics, settings = read_statistics(path)
        return Reference(statistics.gaussian, statistics.network, settings.get("image_size"), statistics.count)
    if {"mu", "sigma"} <= arrays.keys():
        gaussian, pictures = Gaussian.checked(path, arrays["mu"], arrays["sigma"]), array_shape(path, PICTURES)
        side = None if pictures is None or len(pictures) != 4 else pictures[1]
        return Reference(gaussian, "", side, None)
    raise NextscaleError(f"{path}: no reference statistics: expected correlations, scatter, or mu and sigma")


def reference_writer(statistics: ImageStatistics, image_size: int) -> Writer:
    """Write statistics in the compact form: mean and standard deviations in float32, correlations in int16."""
    gaussian = statistics.gaussian
    deviations = np.sqrt(np.diag(gaussian.covariance))
    divisors = np.where(deviations > 0, deviations, 1)
    correlations = gaussian.covariance / np.outer(divisors, divisors)
    arrays = {
        "network": np.array(statistics.network),
        "images": np.array(statistics.count),
        "image_size": np.array(image_size),
        "mean": gaussian.mean.astype(np.float32),
        "deviations": deviations.astype(np.float32),
        "correlations": np.round(pack_symmetric(correlations) * CODES).astype(np.int16),
    }
    return npz_writer(arrays)
