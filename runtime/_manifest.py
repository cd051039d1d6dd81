"""What manifest.json says, as frozen dataclasses of schema 2; a manifest of schema 1 is converted when it is read."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from nextscale.runtime._errors import BundleError, RequestError
from nextscale.runtime._sizes import Size, SizeInfo, choose_size

DTYPES = ("float32", "float16", "int64", "int32", "int8", "uint8")
# What a request's inputs may be: labels, texts and a size are the caller's, readers can make uniforms, forced tokens
# and scalars, and the caller gives tensors of the other kinds.
KINDS = (
    "label", "uniform", "smooth_uniform", "forced_tokens", "scalar", "text_features", "text_mask", "image", "mask",
    "negative_features", "negative_mask", "size",
)  # fmt: skip
# Those of which a request may have several.
PLURAL_KINDS = ("scalar", "image", "mask")
BATCH = "B"
# A graph's variants: of stock operators, and of the domain of nextscale-ops as well.
STOCK: Final = "stock"
FUSED: Final = "fused"
OPERATORS = "nextscale"
MAX_CLASS_NAMES = 100_000
MAX_CLASS_NAME = 1000  # bytes of UTF-8; the longest of ImageNet's 21,841 has some 130
MAX_TOKENS = 2**16  # of a text
FLOAT32_MAX = float(np.finfo(np.float32).max)

Dimension = int | str | None
Shape = tuple[int | str, ...]


@dataclass(frozen=True)
class ModelInfo:
    """The sizes of the model; symbols as in docs/bundle.md. Sizes of two numbers are (height, width).

    Attributes:
        num_classes: labels are 0 to num_classes - 1; 0 where the model has no classes.
        stage_sizes: tokens of each stage's token map.
        image_size: pixels.
        vocab_size: V, the values that an entry of a token map may have; 2 where tokens are bits.
        depth, embed_dim, num_heads: of the transformer.
        latent_channels, latent_size: of f_hat.
    """

    num_classes: int
    stage_sizes: tuple[Size, ...]
    image_size: Size
    vocab_size: int
    depth: int
    embed_dim: int
    num_heads: int
    latent_channels: int
    latent_size: Size

    def of_size(self, size: SizeInfo) -> ModelInfo:
        """The same model where it makes pictures of another size."""
        return replace(self, stage_sizes=size.stage_sizes, image_size=size.image_size, latent_size=size.latent_size)

    @property
    def symbols(self) -> dict[str, int]:
        """What the size decides, by its symbol in shapes: SIZE_SYMBOLS."""
        (h, w), (height, width) = self.latent_size, self.image_size
        return {"L": self.num_tokens, "S": self.num_stages, "h": h, "w": w, "H": height, "W": width}

    @property
    def num_stages(self) -> int:
        return len(self.stage_sizes)

    @property
    def num_tokens(self) -> int:
        """L, the tokens of all stages."""
        return sum(height * width for height, width in self.stage_sizes)

    @cached_property
    def stage_slices(self) -> tuple[slice, ...]:
        """Where each stage's tokens lie among the L."""
        lengths = [height * width for height, width in self.stage_sizes]
        ends = np.cumsum(lengths).tolist()
        return tuple(slice(end - length, end) for end, length in zip(ends, lengths, strict=True))

    @property
    def patch_nums(self) -> tuple[int, ...]:
        """The side length of each stage's token map.

        Raises:
            BundleError: a stage is not square.
        """
        return tuple(_side("stages", size) for size in self.stage_sizes)

    @property
    def stages_in_words(self) -> str:
        """Such as "1, 2, 3": the side lengths of squares, height x width of others."""
        sizes = self.stage_sizes
        return ", ".join(str(height) if height == width else f"{height} x {width}" for height, width in sizes)

    @property
    def image_side(self) -> int:
        """The side of a picture in pixels.

        Raises:
            BundleError: pictures are not square.
        """
        return _side("pictures", self.image_size)


def _side(what: str, size: Size) -> int:
    height, width = size
    if height != width:
        raise BundleError(f"{what} of {height} x {width}: expected squares, which alone this is made for")
    return height


@dataclass(frozen=True)
class RequestInput:
    """One input of a request.

    Attributes:
        name: of the graphs' input.
        kind: one of KINDS.
        dtype: one of DTYPES.
        shape: sizes and symbols. "B" may come first: then each image has a row; otherwise all images share the input.
            In a bundle of several sizes those of SIZE_SYMBOLS are the chosen size's; others are sizes that the caller's
            tensors decide.
        default: of a scalar: one value, or one for each stage where its shape is [S].
        minimum, maximum: of a scalar; None where any finite number will do.
        max_tokens: of a text, its padding included, where the input is features; None where any number will do.
    """

    name: str
    kind: str
    dtype: str
    shape: Shape
    default: tuple[float, ...] = ()
    minimum: float | None = None
    maximum: float | None = None
    max_tokens: int | None = None

    def resolved(self, symbols: Mapping[str, int]) -> RequestInput:
        """The same input with numbers for symbols of its shape."""
        return replace(self, shape=resolved(self.shape, symbols))

    @property
    def per_image(self) -> bool:
        """Whether each image has a row of its own."""
        return self.shape[:1] == (BATCH,)

    @property
    def row_shape(self) -> tuple[int, ...]:
        """The sizes in numbers: (L,) of forced tokens [B, L], or (L, d) where a token is a vector of d values."""
        return tuple(size for size in self.shape if isinstance(size, int))

    @property
    def row_values(self) -> int:
        """Elements of a tensor of row_shape."""
        return math.prod(self.row_shape)

    def allows(self, value: float) -> bool:
        """Whether a scalar may have the value; NaN is refused."""
        least = -FLOAT32_MAX if self.minimum is None else self.minimum
        most = FLOAT32_MAX if self.maximum is None else self.maximum
        return least <= value <= most

    @property
    def limits(self) -> str:
        """What a scalar's values may be, in words."""
        if self.minimum is not None and self.maximum is not None:
            return f"{self.minimum:.15g} to {self.maximum:.15g}"
        if self.minimum is not None:
            return f"a finite number of at least {self.minimum:.15g}"
        return "a finite number" if self.maximum is None else f"a finite number of at most {self.maximum:.15g}"


@dataclass(frozen=True)
class TensorInfo:
    """A graph's input or output; a dimension is a size, a symbol such as "B", or None."""

    name: str
    dtype: str
    shape: tuple[Dimension, ...]


@dataclass(frozen=True)
class StateInfo:
    """A tensor that the host carries from one stage to the next; it starts as zeros."""

    input: str
    output: str
    dtype: str
    initial_shape: Shape

    def resolved(self, symbols: Mapping[str, int]) -> StateInfo:
        """The same state with numbers for symbols of its initial shape."""
        return replace(self, initial_shape=resolved(self.initial_shape, symbols))

    def initial(self, batch: int) -> NDArray[Any]:
        """Zeros of initial_shape with "B" and "2B" replaced."""
        symbols = {"B": batch, "2B": 2 * batch}
        shape = [symbols[size] if isinstance(size, str) else size for size in self.initial_shape]
        return np.zeros(shape, dtype=self.dtype)


@dataclass(frozen=True)
class FusedGraph:
    """The fused variant of a graph: its ONNX file, and the version of each domain of operators that it needs."""

    file: str
    operators: Mapping[str, int]


@dataclass(frozen=True)
class GraphInfo:
    """The contract of a graph's role, and the ONNX files of its variants: the stock one, and the fused one if any."""

    file: str
    inputs: tuple[TensorInfo, ...]
    outputs: tuple[TensorInfo, ...]
    state: tuple[StateInfo, ...] = ()
    fused: FusedGraph | None = None

    @property
    def files(self) -> tuple[str, ...]:
        """Of all variants."""
        return (self.file,) if self.fused is None else (self.file, self.fused.file)


@dataclass(frozen=True)
class FileInfo:
    """What a file must be: its size in bytes and the sha256 of its content in hexadecimal."""

    size: int
    sha256: str


@dataclass(frozen=True)
class TokenizerInfo:
    """How prompts become the token ids of the text encoder.

    Attributes:
        kind: "bytes" or "sentencepiece", or one that this release does not know.
        max_tokens: of a prompt, its end included; 0 where the kind is not known.
        file: of a "sentencepiece" model.
    """

    kind: str
    max_tokens: int
    file: str | None = None


@dataclass(frozen=True)
class VerifyInfo:
    """A generation made when the bundle was built: what `nextscale verify` makes again.

    Attributes:
        seed: of the request.
        inputs: further inputs of the request by name, as numbers and nested lists; others have their default.
        token_maps: one row for each image, its values row-major.
        encoded: what the encoder makes of as many `probe_pictures`; None where the bundle has no encoder.
        prompts: one for each image; None where inputs or text_lengths tell the texts, or there are none.
        text_lengths: tokens of each image's text, whose features are `probe_features`; or None, as above.
    """

    seed: int
    inputs: Mapping[str, Any]
    token_maps: tuple[tuple[int, ...], ...]
    encoded: tuple[tuple[int, ...], ...] | None = None
    prompts: tuple[str, ...] | None = None
    text_lengths: tuple[int, ...] | None = None


@dataclass(frozen=True)
class Manifest:
    """Everything manifest.json says.

    Attributes:
        schema: of the file that was read.
        family: of the model, such as "var"; tells people, while programs go by the request and the graphs.
        model: where there are several sizes, that of the first.
        request: the inputs of a request.
        graphs: by role: "stage" and "decoder", and "generate", "encoder" and "text_encoder" where the bundle has them.
        sizes: those that the bundle is built for; empty where it has one, the model's.
        tokenizer: of prompts, if the bundle has one.
    """

    schema: int
    family: str
    name: str
    model: ModelInfo
    recipe: Mapping[str, Any]
    class_names: tuple[str, ...] | None
    request: tuple[RequestInput, ...]
    graphs: Mapping[str, GraphInfo]
    files: Mapping[str, FileInfo]
    verify: VerifyInfo
    versions: Mapping[str, Any]
    licence: str
    sizes: tuple[SizeInfo, ...] = ()
    tokenizer: TokenizerInfo | None = None

    @property
    def models(self) -> tuple[ModelInfo, ...]:
        """The model at each size."""
        return tuple(self.model.of_size(size) for size in self.sizes) or (self.model,)

    def choose_size(self, area: object, ratio: object) -> int:
        """The index of the size of that area and ratio, None being the first size's; 0 where the bundle has one.

        Raises:
            RequestError: a size that was not built, or any where the bundle has one.
        """
        if self.sizes:
            return choose_size(self.sizes, area, ratio)
        for name, value in (("area", area), ("ratio", ratio)):
            if value is not None:
                height, width = self.model.image_size
                raise RequestError(f"{name}: this bundle has one size, {height} x {width}; leave it out")
        return 0

    def of_size(self, index: int) -> Manifest:
        """What the manifest says of one size: its model, and in numbers what it decides of the request and the states.

        Args:
            index: of a size; 0 where the bundle has one.
        """
        if not self.sizes:
            return self
        model = self.model.of_size(self.sizes[index])
        graphs = {
            role: replace(graph, state=tuple(state.resolved(model.symbols) for state in graph.state))
            for role, graph in self.graphs.items()
        }
        request = tuple(item.resolved(model.symbols) for item in self.request)
        return replace(self, model=model, request=request, graphs=graphs)

    @property
    def size(self) -> int:
        """Bytes of all files together."""
        return sum(file.size for file in self.files.values())

    def input_of_kind(self, kind: str) -> RequestInput | None:
        """The request's input of a kind, if it has one: none of PLURAL_KINDS."""
        return next((item for item in self.request if item.kind == kind), None)

    @property
    def default_cfg_scale(self) -> float:
        """Guidance of a request that does not say it: at the first stage, where stages differ."""
        return next(item.default[0] for item in self.request if item.name == "cfg_scale")

    @property
    def forced_tokens(self) -> RequestInput:
        """The input of that kind, which every request has; token maps are of its shape."""
        return next(item for item in self.request if item.kind == "forced_tokens")


def resolved(shape: Shape, symbols: Mapping[str, int]) -> Shape:
    """A shape with numbers for the symbols that are given."""
    return tuple(symbols.get(size, size) if isinstance(size, str) else size for size in shape)


def is_plain_name(name: str) -> bool:
    """Whether name is a file name without any way out of its folder, on Linux and on Windows."""
    return bool(name) and name.isprintable() and name not in (".", "..") and not set(name) & set('/\\:*?"<>|')
