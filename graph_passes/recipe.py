"""Recipes: how a bundle is quantized, as data. `docs/quantization.md` defines every word.

A recipe is a small TOML file; `recipes/` beside this file has those that come with nextscale.
"""

from __future__ import annotations

import dataclasses
import re
import sys
import typing
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar

from nextscale.graph_passes.qparams import RangeRule
from nextscale.runtime._errors import NextscaleError
from nextscale.runtime._regular_file import require_regular

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

RECIPES = Path(__file__).parent / "recipes"
Granularity = Literal["tensor", "stage", "pair", "image", "token"]
LayerChoice = Literal["float", "tensor", "stage", "pair", "image", "token"]
AttentionWeights = Literal["log2", "log2-row", "row", "uniform"]
Matching = Literal["none", "published", "stagewise"]
MIN_BITS, MAX_BITS = 2, 8
MAX_IMAGES = 1_000_000


@dataclass(frozen=True)
class WeightRecipe:
    """s8 weights of linear layers, per output channel."""

    bits: int = 8
    range: RangeRule = "max"
    rounding: Literal["nearest", "reconstructed"] = "nearest"
    packed: bool = False


@dataclass(frozen=True)
class ActivationRecipe:
    """u8 inputs of linear layers."""

    bits: int = 8
    granularity: Granularity = "stage"
    range: RangeRule = "max"


@dataclass(frozen=True)
class AttentionRecipe:
    """The two products of attention, those to a text by a word of their own, and the keys and values carried on."""

    products: Literal["float", "integer"] = "float"
    granularity: Literal["tensor", "image"] = "image"
    weights: AttentionWeights = "row"
    shift_and_sum: Literal["off", "duplicate", "residual"] = "off"
    budget: float = 0.01
    cross: Literal["float", "integer"] = "float"
    cache: Literal["auto", "float", "integer"] = "auto"


@dataclass(frozen=True)
class DecoderRecipe:
    """Its convolutions, 8 bits whatever the transformer's; those to at most `two_bytes` channels read twice as many."""

    precision: Literal["integer", "float"] = "integer"
    two_bytes: int = 32


@dataclass(frozen=True)
class EqualizationRecipe:
    """How much of the channels' spread weights take over; 0 is off."""

    alpha: float = 0.0


@dataclass(frozen=True)
class CalibrationRecipe:
    """The token maps that calibration observes."""

    images: int = 256
    matching: Matching = "none"


@dataclass(frozen=True)
class Recipe:
    """Everything that distinguishes one quantized bundle of a model from another."""

    name: str
    description: str = ""
    precision: Literal["int8", "fp32"] = "int8"
    weights: WeightRecipe = field(default_factory=WeightRecipe)
    activations: ActivationRecipe = field(default_factory=ActivationRecipe)
    attention: AttentionRecipe = field(default_factory=AttentionRecipe)
    equalization: EqualizationRecipe = field(default_factory=EqualizationRecipe)
    calibration: CalibrationRecipe = field(default_factory=CalibrationRecipe)
    layers: Mapping[str, LayerChoice] = field(default_factory=dict)
    decoder: DecoderRecipe = field(default_factory=DecoderRecipe)

    @property
    def learned(self) -> bool:
        """Whether the weights' rounding is learned (BRECQ), rather than to nearest."""
        return self.weights.rounding == "reconstructed"

    def layer_choice(self, name: str) -> LayerChoice:
        """How the linear layer `name` is quantized; the longest ending in `layers` decides."""
        end = self._end(name)
        return self.activations.granularity if end is None else self.layers[end]

    def _end(self, name: str) -> str | None:
        """The longest ending of a name in `layers`."""
        return max((end for end in self.layers if _ends_with(name, end)), key=len, default=None)

    def of_layers(self, names: Collection[str]) -> Recipe:
        """The recipe without the names in `layers` that are the end of none of these."""
        found = {end: how for end, how in self.layers.items() if any(_ends_with(name, end) for name in names)}
        return dataclasses.replace(self, layers=found)

    def require_layers(self, names: Collection[str]) -> None:
        """Raise NextscaleError if a name in `layers` is the end of none of the linear layers' names."""
        for end in self.layers:
            if not names:
                raise NextscaleError(f'recipe {self.name}: layers."{end}": the model has no linear layers')
            if not any(_ends_with(name, end) for name in names):
                ends = dict.fromkeys(re.sub(r"^.*\.\d+\.", "", name) for name in names)  # alike in all blocks
                raise NextscaleError(
                    f'recipe {self.name}: layers."{end}" is not a linear layer of the model; expected one of '
                    f"{', '.join(ends)}, or a whole name, such as {next(iter(names))}"
                )

    def require_convolutions(self, names: Collection[str]) -> None:
        """Raise NextscaleError if `layers` asks for ranges that convolutions, those of these names, do not have."""
        for name in names:
            end = self._end(name)
            if end is not None and self.layers[end] not in ("float", "tensor"):
                raise NextscaleError(
                    f'recipe {self.name}: layers."{end}" is "{self.layers[end]}", but {name} is a convolution; '
                    'expected "float" or "tensor", or the whole name of a linear layer'
                )

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for a manifest."""
        return dataclasses.asdict(self)

    def check(self, where: str = "recipe") -> None:
        """Raise NextscaleError where values do not go together, or the name is no line of text."""
        if not self.name.strip() or not self.name.isprintable():
            raise NextscaleError(f"{where}: name is {self.name!r:.80}; expected printable text")
        if set(self.name) & set("/\\"):
            raise NextscaleError(
                f"{where}: name is {self.name!r:.80}; expected no slashes, since files are named by it"
            )
        if self.precision == "fp32":
            plain = Recipe(self.name, self.description, "fp32")
            idle = [key for key, value in self.as_dict().items() if value != plain.as_dict()[key]]
            if idle:
                raise NextscaleError(f'{where}: precision = "fp32" quantizes nothing; remove {", ".join(idle)}')
        for part, bits in (("weights", self.weights.bits), ("activations", self.activations.bits)):
            if not MIN_BITS <= bits <= MAX_BITS:
                raise NextscaleError(f"{where}: {part}.bits is {bits}; expected {MIN_BITS} to {MAX_BITS}")
        if self.weights.packed and self.weights.bits > 4:
            raise NextscaleError(f"{where}: weights.packed stores 4 bits, but weights.bits is {self.weights.bits}")
        if self.attention.cross == "integer" and self.attention.products == "float":
            raise NextscaleError(f'{where}: attention.cross = "integer" needs attention.products = "integer", too')
        if self.attention.shift_and_sum != "off" and self.attention.products == "float":
            raise NextscaleError(
                f'{where}: attention.shift_and_sum needs attention.products = "integer": it quantizes V'
            )
        if self.attention.cache == "integer" and self.attention.products == "integer":
            raise NextscaleError(
                f'{where}: attention.cache = "integer" needs attention.products = "float": integer products make codes '
                "of all keys and values themselves"
            )
        if not 0 <= self.attention.budget <= 1:
            raise NextscaleError(f"{where}: attention.budget is {self.attention.budget}; expected 0 to 1")
        if not 0 <= self.equalization.alpha <= 1:
            raise NextscaleError(f"{where}: equalization.alpha is {self.equalization.alpha}; expected 0 to 1")
        if self.decoder.two_bytes < 0:
            raise NextscaleError(
                f"{where}: decoder.two_bytes is {self.decoder.two_bytes}; expected channels, 0 for none"
            )
        if not 1 <= self.calibration.images <= MAX_IMAGES:
            raise NextscaleError(
                f"{where}: calibration.images is {self.calibration.images}; expected 1 to {MAX_IMAGES}"
            )


def _ends_with(name: str, end: str) -> bool:
    """Whether the last parts of a layer's name are `end`; of foreign models' names they are divided by slashes."""
    return name == end or name.endswith((f".{end}", f"/{end}"))


def recipe_names() -> list[str]:
    """The recipes that come with nextscale."""
    return sorted(path.stem for path in RECIPES.glob("*.toml"))


def load_recipe(name_or_file: str) -> Recipe:
    """A recipe by name, or from a TOML file (a path that ends in .toml).

    Raises:
        NextscaleError: no such recipe, or the file has an unknown key, a value of the wrong kind, or values that do not
            go together.
    """
    path = Path(name_or_file)
    if path.suffix != ".toml":
        path = RECIPES / f"{name_or_file}.toml"
        if name_or_file not in recipe_names():
            raise NextscaleError(
                f'no recipe is named "{name_or_file}"; expected a .toml file or one of {", ".join(recipe_names())}'
            )
    require_regular(path)
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise NextscaleError(f"{path}: cannot read the recipe: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise NextscaleError(f"{path}: not a TOML file: {error}") from None
    values.setdefault("name", path.stem)
    recipe = _read(Recipe, values, str(path), "")
    recipe.check(str(path))
    return recipe


T = TypeVar("T")


def _read(kind: type[T], values: Mapping[str, Any], where: str, prefix: str) -> T:
    """A dataclass from a TOML table; unknown keys and values of the wrong kind are refused by name."""
    hints = typing.get_type_hints(kind)
    for key in values:
        if key not in hints:
            raise NextscaleError(f'{where}: unknown key "{prefix}{key}"; expected one of {", ".join(hints)}')
    return kind(**{key: _value(hints[key], value, where, prefix + key) for key, value in values.items()})


def _value(hint: Any, value: Any, where: str, key: str) -> Any:
    if dataclasses.is_dataclass(hint):
        if not isinstance(value, Mapping):
            raise NextscaleError(f"{where}: {key} is {value!r}; expected a table [{key}]")
        return _read(typing.cast(type, hint), value, where, f"{key}.")
    origin = typing.get_origin(hint)
    if origin is Literal:
        choices = typing.get_args(hint)
        if value not in choices:
            raise NextscaleError(f"{where}: {key} is {value!r}; expected one of {', '.join(map(repr, choices))}")
        return value
    if origin is not None and issubclass(origin, Mapping):
        if not isinstance(value, Mapping):
            raise NextscaleError(f"{where}: {key} is {value!r}; expected a table [{key}]")
        of = typing.get_args(hint)[1]
        return {k: _value(of, v, where, f'{key}."{k}"') for k, v in value.items()}
    accepted = (int, float) if hint is float else hint
    if not isinstance(value, accepted) or (isinstance(value, bool) and hint is not bool):
        raise NextscaleError(f"{where}: {key} is {value!r}; expected {hint.__name__}")
    return hint(value)
