"""Learned rounding as a file: for each weight whether it is rounded up, and all that this belongs to.

A code is clip(floor(w / s) + bit, qmin, qmax) with the recipe's s and ends (AdaRound; docs/quantization.md). The file
is safetensors: packed bits of each layer, equalization factors, and the rest as JSON in its metadata.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from nextscale.calib_data._work_folder import differences
from nextscale.graph_passes.qparams import WeightQParams
from nextscale.graph_passes.recipe import Recipe
from nextscale.runtime._errors import NextscaleError
from nextscale.runtime._outputs import write_files
from nextscale.runtime._regular_file import require_regular

SCHEMA = "nextscale.rounding/1"
BITS, FACTORS = "bits.", "equalization."
# What of a recipe the rounding was learned for, and what of that it does not depend on: how codes are stored, the
# budget that a theta may come from, and how stages carry keys and values.
TABLES = ("weights", "activations", "attention", "equalization", "layers")
INDEPENDENT = frozenset({"weights.packed", "attention.budget", "attention.cache"})
# Words that came after the first files, and what files without them mean.
LATER = {"attention.cross": "float"}


@dataclass(frozen=True)
class LayerBits:
    """One layer: whether each weight is rounded up, bool [out, in], and the sha256 of the float weights."""

    up: NDArray[np.bool_]
    sha256: str


@dataclass(frozen=True)
class Rounding:
    """What reconstruction found for one model and one recipe.

    Attributes:
        layers: by the linear layer's name in the stage graph.
        factors: the equalization that was assumed, float32 [C] by input (`models.var.equalization`).
        recipe: the recipe's values (`Recipe.as_dict`).
        report: figures and settings: losses by unit, KL before and after, what was kept.
    """

    layers: Mapping[str, LayerBits]
    factors: Mapping[str, NDArray[np.float32]]
    recipe: Mapping[str, Any]
    report: Mapping[str, Any] = field(default_factory=dict)

    def require(
        self, recipe: Recipe, shapes: Mapping[str, tuple[int, ...]], channels: Mapping[str, tuple[int, ...]]
    ) -> None:
        """Find out before a long computation whether this was learned for such a recipe and model.

        Args:
            recipe: of the bundle.
            shapes: [out, in] of the linear layers that it makes integer and reconstruction learns.
            channels: [C] of the inputs that it equalizes (`models.var.equalization`).
        Raises:
            NextscaleError: it was learned for another recipe, other layers, or another shape of them.
        """
        where = f"recipe {recipe.name}: the rounding is that of {self.recipe['name']}"
        differing = differences(LATER | _settings(self.recipe), _settings(recipe.as_dict()))
        if differing:
            raise NextscaleError(f"{where}, with {', '.join(differing)}; give one that was learned with this recipe")
        differing = differences({name: found.up.shape for name, found in self.layers.items()}, shapes)
        differing += differences({name: found.shape for name, found in self.factors.items()}, channels)
        if differing:
            further = f" and {len(differing) - 1} more" if len(differing) > 1 else ""
            raise NextscaleError(f"{where} for another model, with {differing[0]}{further}; reconstruct this model")

    def summary(self) -> str:
        """One line: what learning gained on images that it did not see."""
        report = self.report
        return (
            f"KL of {report['held_out_images']} held-out images {report['kl_nearest']:.4f} rounded to nearest, "
            f"{report['kl_reconstructed']:.4f} reconstructed; kept: {report['kept']}"
        )

    def codes(self, layer: str, weight: NDArray[np.float32]) -> NDArray[np.int8]:
        """The layer's codes, int8 [out, in].

        Args:
            layer: the linear layer's name.
            weight: float32 [out, in], equalized and folded as the stage graph has it.
        Raises:
            NextscaleError: the layer is not in this file, or the weights are others.
        """
        if layer not in self.layers:
            raise NextscaleError(f"rounding for {self.recipe['name']}: it has no layer {layer}")
        bits = self.layers[layer]
        if weight_sha256(weight) != bits.sha256:
            raise NextscaleError(
                f"rounding for {self.recipe['name']}: {layer} has other weights or another equalization; reconstruct "
                "this model"
            )
        qparams = weight_qparams(weight, self.recipe)
        return codes_of(weight, qparams, bits.up)

    def save(self, path: Path) -> None:
        """Write the file; an interrupted write leaves nothing.

        Raises:
            OutputError: it cannot be written.
        """
        tensors = {BITS + name: np.packbits(bits.up) for name, bits in self.layers.items()}
        tensors |= {FACTORS + name: np.ascontiguousarray(found, np.float32) for name, found in self.factors.items()}
        document = {
            "layers": {n: {"shape": list(b.up.shape), "sha256": b.sha256} for n, b in self.layers.items()},
            "recipe": self.recipe,
            "report": self.report,
        }
        metadata = {"schema": SCHEMA, "rounding": json.dumps(document)}
        write_files({path: lambda file: file.write(save(tensors, metadata))})

    @classmethod
    def load(cls, path: Path) -> Rounding:
        """Read and check a file.

        Raises:
            NextscaleError: it cannot be read, or is not what `save` writes.
        """
        require_regular(path)
        try:
            with safe_open(path, "np") as file:
                metadata = file.metadata() or {}
                if metadata.get("schema") != SCHEMA:
                    raise NextscaleError(f"{path}: not a rounding file of this version; expected {SCHEMA}")
                tensors = {name: _tensor(file, name, path) for name in file.keys()}  # noqa: SIM118
        except (OSError, SafetensorError) as error:
            raise NextscaleError(f"{path}: cannot be read as a rounding file ({error})") from None
        try:
            document = json.loads(metadata["rounding"])
            layers = {
                name: LayerBits(_unpacked(tensors[BITS + name], tuple(entry["shape"])), str(entry["sha256"]))
                for name, entry in document["layers"].items()
            }
            recipe, report = dict(document["recipe"]), dict(document["report"])
            int(recipe["weights"]["bits"]), str(recipe["weights"]["range"]), str(recipe["name"])
        except (AttributeError, KeyError, RecursionError, TypeError, ValueError) as error:
            raise NextscaleError(f"{path}: a damaged rounding file ({type(error).__name__}: {error})") from None
        factors = {name[len(FACTORS) :]: found for name, found in tensors.items() if name.startswith(FACTORS)}
        for name, found in factors.items():
            if found.ndim != 1 or not (np.isfinite(found) & (found > 0)).all():
                raise NextscaleError(f"{path}: {FACTORS}{name}: expected finite numbers above 0, one for each channel")
        return cls(layers, factors, recipe, report)


def codes_of(weight: NDArray[np.float32], qparams: WeightQParams, up: NDArray[np.bool_]) -> NDArray[np.int8]:
    """clip(floor(w / s) + up, qmin, qmax): float32 and bool [out, in] -> int8 [out, in]."""
    scale, qmin, qmax = (field[:, None] for field in (qparams.scale, qparams.qmin, qparams.qmax))
    return np.clip(np.floor(weight / scale) + up, qmin, qmax).astype(np.int8)


def nearest_up(weight: NDArray[np.float32], qparams: WeightQParams) -> NDArray[np.bool_]:
    """The bits of rounding to nearest, ties to even: bool [out, in]."""
    steps = weight / qparams.scale[:, None]
    up: NDArray[np.bool_] = np.round(steps) > np.floor(steps)
    return up


def weight_qparams(weight: NDArray[np.float32], recipe: Mapping[str, Any]) -> WeightQParams:
    """How a recipe (`Recipe.as_dict`) rounds a weight [out, in]."""
    return WeightQParams.choose(weight, 0, recipe["weights"]["bits"], recipe["weights"]["range"])


def weight_sha256(weight: NDArray[np.float32]) -> str:
    """Of the shape and the float32 values in C order."""
    digest = hashlib.sha256(repr(weight.shape).encode())
    digest.update(np.ascontiguousarray(weight, np.float32).tobytes())
    return digest.hexdigest()


def _settings(recipe: Mapping[str, Any]) -> dict[str, Any]:
    """What the rounding depends on, "weights.bits" and so on, of a recipe's plain values."""
    found = dict[str, Any]()
    for table in TABLES:
        values = recipe.get(table)
        if isinstance(values, Mapping):
            found |= {f"{table}.{key}": value for key, value in values.items()}
    return {key: value for key, value in found.items() if key not in INDEPENDENT}


def _tensor(file: safe_open, name: str, path: Path) -> NDArray[Any]:
    """A tensor of the dtype that `save` gives it; numpy does not know all that a file may have."""
    expected = "U8" if name.startswith(BITS) else "F32"
    found = file.get_slice(name).get_dtype()
    if found != expected:
        raise NextscaleError(f"{path}: {name}: expected {expected}, found {found}")
    tensor: NDArray[Any] = file.get_tensor(name)
    return tensor


def _unpacked(packed: NDArray[np.uint8], shape: tuple[int, ...]) -> NDArray[np.bool_]:
    count = math.prod(shape)
    if len(shape) != 2 or min(shape) < 1 or packed.dtype != np.uint8 or packed.shape != (-(-count // 8),):
        raise ValueError(f"{count} bits do not fill {packed.dtype} {list(packed.shape)}")
    return np.unpackbits(packed, count=count).astype(bool).reshape(shape)
