"""What to generate: the inputs that a bundle's manifest lists, checked before anything runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, SupportsIndex, TypedDict

import numpy as np
from numpy.typing import ArrayLike, NDArray

from nextscale.runtime._bundle import Bundle
from nextscale.runtime._checked_values import is_truth_value, require_integer
from nextscale.runtime._errors import RequestError
from nextscale.runtime._input_arrays import (
    Noise,
    Numbers,
    as_array,
    require_mask,
    require_texts,
    scalar_array,
    smooth_array,
    tensor_array,
    token_array,
    type_and_shape,
    uniform_array,
)
from nextscale.runtime._manifest import BATCH, Manifest, ModelInfo
from nextscale.runtime._texts import TEXT_SETTINGS, Encode, Texts, masks_of_ones, pad_texts, texts_of_prompts
from nextscale.runtime._var_request import DEFAULT_CFG_SCALE, DEFAULT_TOP_K, DEFAULT_TOP_P
from nextscale.runtime._wording import shown_number, shown_text, shown_value

if TYPE_CHECKING:
    from typing_extensions import Unpack

__all__ = [
    "DEFAULT_CFG_SCALE",
    "DEFAULT_TOP_K",
    "DEFAULT_TOP_P",
    "Labels",
    "Request",
    "RequestSettings",
    "resolve_top_k",
]

Labels = Sequence[str | SupportsIndex] | NDArray[np.integer]
# The settings that are a scalar input's value, by its name.
_SCALARS = ("cfg_scale", "top_k", "top_p", "tau")
# The settings that are an input's value, by its kind.
_KINDS = {"uniforms": "uniform", "forced_tokens": "forced_tokens"}

_FEATURES = tuple(features for features, _ in TEXT_SETTINGS.values())
# Where they are not given, all is text.
_MASKS = tuple(mask for _, mask in TEXT_SETTINGS.values())
# Iterables whose elements are no values in an order.
_NO_LISTS = (bytes, bytearray, memoryview, Mapping, Set)


class RequestSettings(TypedDict, total=False):
    """What a request may say besides its classes. What is left out, or None, has the bundle's default.

    Attributes:
        seed: in [0, 2^64), 0 by default; the same seed gives the same pictures.
        first_image: image i of the result is image first_image + i of the seed, whatever the batch; 0 by default.
        cfg_scale: guidance strength, at least 0; 0 is none.
        top_k: keep the k likeliest tokens, 0 (off) to V; 1 is greedy.
        top_p: keep the likeliest tokens of this probability mass, 0 (off) to 1.
        forced_tokens: int [B, L]; entries of the codebook to take instead of sampling, -1 to sample.
        uniforms: float [B, L] in [0, 1), instead of those of seed and first_image.
        more_smooth: take mixtures of codebook entries instead of single ones: for looks, not for metrics; False by
            default. Tokens are still sampled, and forced ones keep their entry.
        prompts: texts, one for each image. Their features may be given in inputs instead: [B, Lt, Ct] with a mask
            [B, Lt], or a list of B arrays [N, Ct].
        negative: what the images are to be guided away from: one text for all of them, or one for each; None: what the
            model learned for no text.
        area: of the pictures, such as "0.25M", where the bundle is built for several sizes; by default the first's.
        ratio: width to height, such as "3:4", in the same way.
        tau: temperature: logits are divided by it before sampling.
        inputs: any of the bundle's inputs by name: tensors such as text features, scalars that have no setting above,
            and the index of a size. A scalar, here and above, is one value; where the bundle takes that, it may also be
            a list with one value for each stage.
    """

    seed: int
    first_image: int
    cfg_scale: float | Sequence[float] | None
    top_k: int | Sequence[int] | None
    top_p: float | Sequence[float] | None
    forced_tokens: ArrayLike | None
    uniforms: ArrayLike | None
    more_smooth: bool | None
    prompts: Sequence[str] | None
    negative: str | Sequence[str] | None
    area: str | None
    ratio: str | None
    tau: float | Sequence[float] | None
    inputs: Mapping[str, Any] | None


@dataclass(frozen=True)
class Request:
    """B images to generate, checked.

    Attributes:
        count: B, the number of images.
        arrays: the inputs by name, of the manifest's dtypes and shapes: copies, which later changes of the caller's
            arrays do not reach.
        per_image: names of the inputs in which each image has a row; all images share the others.
        noise: of more_smooth, which `images` makes, V numbers a token being too many to keep; None: there is none.
        size: index of the size that all images have; 0 where the bundle has one.
        texts: prompts and negative ones, of which `images` makes tensors once they are `encoded`.
    """

    count: int
    arrays: Mapping[str, NDArray[Any]]
    per_image: frozenset[str]
    noise: Noise | None = None
    size: int = 0
    texts: tuple[Texts, ...] = ()

    @classmethod
    def create(cls, bundle: Bundle, class_labels: Labels | None = None, **settings: Unpack[RequestSettings]) -> Request:
        """Check every value and make those that are not given.

        Args:
            bundle: its manifest lists the inputs.
            class_labels: B class ids or names; None where the bundle takes no classes.
            settings: see RequestSettings.
        Raises:
            ClassLabelError: a label or name that the model does not have.
            RequestError: any other value that is missing, out of range or of another shape.
        """
        given = _given(bundle.manifest, class_labels, settings)
        size = _size(bundle.manifest, given, settings)
        manifest = bundle.manifest.of_size(size)
        pad_texts(manifest, given)
        labels = _labels(bundle, given)
        texts, count = _texts(bundle, labels, given, settings)
        sizes = {BATCH: count}
        numbers = Numbers.of(settings.get("seed"), settings.get("first_image"))
        noise = _noise(manifest, given, settings, numbers)
        if noise is not None:
            numbers.require_range(count)
        # Images and masks that the stage graph does not list are other roles' inputs.
        generating = {tensor.name for tensor in bundle.graph("stage").inputs}
        later = {item.name for text in texts for item in (text.features, text.mask) if item is not None}
        arrays: dict[str, NDArray[Any]] = {}
        for item in manifest.request:
            value = given.get(item.name)
            if item.name in later:
                continue
            if item.kind == "label":
                assert labels is not None
                arrays[item.name] = labels
            elif item.kind == "uniform":
                arrays[item.name] = uniform_array(item, value, count, numbers)
            elif item.kind == "smooth_uniform":
                arrays[item.name] = smooth_array(item, value, count)
            elif item.kind == "forced_tokens":
                arrays[item.name] = token_array(item, value, count, manifest.model)
            elif item.kind == "scalar":
                arrays[item.name] = scalar_array(item, value)
            elif item.kind == "size":
                arrays[item.name] = np.array(size, np.int64)
            elif item.kind == "negative_features" and value is None:
                arrays[item.name] = np.zeros((count, 0, *item.row_shape), item.dtype)
            elif value is not None or (item.kind not in _MASKS and item.name in generating):
                arrays[item.name] = tensor_array(item, value, sizes)
                if item.kind in _FEATURES:
                    require_texts(item, arrays[item.name])
                if item.kind in _MASKS:
                    require_mask(item, arrays[item.name])
        arrays |= masks_of_ones(manifest, arrays)
        per_image = frozenset(item.name for item in manifest.request if item.per_image)
        return cls(count, arrays, per_image, noise, size, texts)

    def __len__(self) -> int:
        return self.count

    def images(self, start: int, stop: int) -> Request:
        """The same request for images start to stop - 1 alone, ready to run."""
        count = min(stop, self.count) - start
        arrays = {name: array[start:stop] if name in self.per_image else array for name, array in self.arrays.items()}
        if self.noise is not None:
            arrays[self.noise.item.name] = self.noise.of(start, count)
        for texts in self.texts:
            arrays |= texts.arrays(start, start + count)
        return replace(self, count=count, arrays=arrays, noise=None, texts=())

    def encoded(self, encode: Encode) -> Request:
        """The same request with the features of its prompts; encode: see `Texts.encoded`."""
        return replace(self, texts=tuple(texts.encoded(encode) for texts in self.texts))

    def with_forced_tokens(self, forced: NDArray[np.int64], manifest: Manifest) -> Request:
        """The same request with these tokens forced, int64 [B, L, ...]."""
        return replace(self, arrays={**self.arrays, manifest.forced_tokens.name: forced})


def resolve_top_k(top_k: int | None, model: ModelInfo) -> int:
    """The k that a request to a VAR uses: None is 900, or V if smaller.

    Raises:
        RequestError: top_k is below 0 or above V.
    """
    if top_k is None:
        return min(DEFAULT_TOP_K, model.vocab_size)
    number = require_integer("top_k", top_k)
    if not 0 <= number <= model.vocab_size:
        raise RequestError(
            f"top_k {shown_number(number)} is out of range: "
            f"expected 0 (off) to {model.vocab_size}, the entries of the codebook"
        )
    return number


def _given(manifest: Manifest, class_labels: Labels | None, settings: RequestSettings) -> dict[str, Any]:
    """The values that the caller gave, by the name of the input."""
    named: dict[str, tuple[str | None, Any]] = {
        "class_labels": (_name_of_kind(manifest, "label"), class_labels),
        **{key: (_name_of_kind(manifest, kind), settings.get(key)) for key, kind in _KINDS.items()},
        **{key: (key, settings.get(key)) for key in _SCALARS},
    }
    for name in settings:
        if name not in RequestSettings.__annotations__:
            expected = ", ".join(RequestSettings.__annotations__)
            raise RequestError(f'a request has no setting "{shown_text(name)}"; expected {expected}')
    known, inputs = [item.name for item in manifest.request], settings.get("inputs")
    if inputs is None:
        inputs = {}
    if not isinstance(inputs, Mapping):
        raise RequestError(f"inputs {shown_value(inputs)}: expected values by name, as in {{{known[0]!r}: …}}")
    for name in inputs:
        if name not in known:
            raise RequestError(
                f'inputs: this bundle has no input "{shown_text(str(name))}"; it takes {", ".join(known)}'
            )
    given = {name: value for name, value in inputs.items() if value is not None}
    for setting, (input_name, value) in named.items():
        if value is None:
            continue
        if input_name is None or input_name not in known:
            raise RequestError(f"{setting}: this bundle has no such input; it takes {', '.join(known)}")
        if input_name in given:
            raise RequestError(f"{setting} is given twice: by itself and in inputs")
        given[input_name] = value
    return given


def _size(manifest: Manifest, given: Mapping[str, Any], settings: RequestSettings) -> int:
    """The index of the size that is asked for, by area and ratio or by itself."""
    area, ratio = settings.get("area"), settings.get("ratio")
    item = manifest.input_of_kind("size")
    if item is None or item.name not in given:
        return manifest.choose_size(area, ratio)
    for name, value in (("area", area), ("ratio", ratio)):
        if value is not None:
            raise RequestError(f"{name}: the size is given twice: by {name} and in inputs")
    index = require_integer(item.name, given[item.name])
    if not 0 <= index < len(manifest.sizes):
        last = len(manifest.sizes) - 1
        raise RequestError(f"{item.name} {shown_number(index)} is out of range: expected 0 to {last}")
    return index


def _texts(
    bundle: Bundle, labels: NDArray[np.int64] | None, given: Mapping[str, Any], settings: RequestSettings
) -> tuple[tuple[Texts, ...], int]:
    """The prompts and negative texts that are given, and B."""
    told: dict[str, Any] = {name: settings.get(name) for name in TEXT_SETTINGS if settings.get(name) is not None}
    if told.get("negative") == "":  # no text, as where it is left out
        del told["negative"]
    for setting in told:
        for kind in TEXT_SETTINGS[setting]:
            name = _name_of_kind(bundle.manifest, kind)
            if name in given:
                raise RequestError(f"{setting} and {name} are both given: leave one out")
    features = _name_of_kind(bundle.manifest, "text_features")
    if features not in (None, *given) and "prompts" not in told and "text_encoder" in bundle.manifest.graphs:
        raise RequestError("prompts are missing: expected a text for each image")
    count = None if labels is None else len(labels)
    texts = []
    if "prompts" in told:
        texts.append(texts_of_prompts(bundle, "prompts", told["prompts"], count))
        count = len(texts[0].index)
    if count is None:
        count = _count(bundle.manifest, given)
    if "negative" in told:
        texts.append(texts_of_prompts(bundle, "negative", told["negative"], count))
    return tuple(texts), count


def _name_of_kind(manifest: Manifest, kind: str) -> str | None:
    item = manifest.input_of_kind(kind)
    return None if item is None else item.name


def _labels(bundle: Bundle, given: Mapping[str, Any]) -> NDArray[np.int64] | None:
    name = _name_of_kind(bundle.manifest, "label")
    if name is None:
        return None
    labels = given.get(name)
    if labels is None:
        raise RequestError(f"{name} is missing: expected a class for each image")
    try:
        single = isinstance(labels, str)
        each = iter(() if single or isinstance(labels, _NO_LISTS) else labels)
    except TypeError:
        single = True
    if single:
        raise RequestError(f"{name} {shown_value(labels)}: expected several, such as [{shown_value(labels)}]")
    if isinstance(labels, _NO_LISTS):
        raise RequestError(f"{name} {shown_value(labels)}: expected a list of class ids or names")
    found = np.array([bundle.class_label(label) for label in each], dtype=np.int64)
    if not len(found):
        raise RequestError(f"{name} is empty: expected at least one class")
    return found


def _count(manifest: Manifest, given: Mapping[str, Any]) -> int:
    """B, where neither labels nor prompts tell it: that of the first input with a row for each image, or else 1."""
    for item in manifest.request:
        if item.per_image and item.name in given:
            array = as_array(item.name, given[item.name])
            if not array.ndim or not len(array):
                raise RequestError(f"{item.name}: expected a row for each image, found {type_and_shape(array)}")
            return len(array)
    return 1


def _noise(manifest: Manifest, given: Mapping[str, Any], settings: RequestSettings, numbers: Numbers) -> Noise | None:
    """Where more_smooth's numbers come from, if it is asked for."""
    wanted = settings.get("more_smooth")
    if wanted is not None and not is_truth_value(wanted):
        raise RequestError(f"more_smooth {shown_value(wanted)}: expected True or False")
    if not wanted:
        return None
    item = manifest.input_of_kind("smooth_uniform")
    if item is None:
        raise RequestError("more_smooth: this bundle was built without it; build the bundle again")
    if item.name in given:
        raise RequestError("more_smooth is given twice: by itself and in inputs")
    return Noise(item, numbers)
