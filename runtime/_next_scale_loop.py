"""The next-scale loop: a request in, token maps and pictures out, in one call or stage by stage."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, NoReturn

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from nextscale.runtime._bundle import Bundle
from nextscale.runtime._checked_values import is_truth_value, require_integer
from nextscale.runtime._edit import blend, default_feather, forced_tokens, latent_mask, require_mask
from nextscale.runtime._errors import BundleError, NextscaleError, RequestError
from nextscale.runtime._freed_memory import return_freed_memory
from nextscale.runtime._interruptible import CancelFlag
from nextscale.runtime._operators import Choice
from nextscale.runtime._request import Labels, Request, RequestSettings
from nextscale.runtime._session import SessionOptions, ort_value, run_session
from nextscale.runtime._session_pool import SessionPool
from nextscale.runtime._stage_runner import StageRunner, cancelled, require_cancel_flag
from nextscale.runtime._wording import shown_number, shown_text, shown_value

if TYPE_CHECKING:
    from typing_extensions import Unpack

Images = NDArray[np.uint8]
_SHOWN = 8  # sizes in an error


@dataclass(frozen=True)
class Generation:
    """Generated images.

    Attributes:
        images: uint8 [B, H, W, 3], RGB.
        token_maps: int64 [B, L], or [B, L, d] where tokens are bits; stages in order, row-major; `forced_tokens` of the
            same form.
        class_labels: int64 [B]; empty where the bundle takes no classes.
    """

    images: Images
    token_maps: NDArray[np.int64]
    class_labels: NDArray[np.int64]


@dataclass(frozen=True)
class StageResult:
    """One finished stage of a batch.

    Attributes:
        stage: index in [0, num_stages).
        num_stages: stages of an image.
        tokens: int64 [B, l], or [B, l, d] where tokens are bits: the tokens taken.
        outputs: the further outputs of stage.onnx that the caller asked for, by name, such as "logits".
        first: position of the batch's first image in the request.
    """

    stage: int
    num_stages: int
    tokens: NDArray[np.int64]
    outputs: Mapping[str, NDArray[Any]]
    first: int
    _preview: _Preview = field(repr=False)

    def preview(self) -> Images:
        """Decode the picture as it is after this stage: uint8 [B, H, W, 3]; after the last stage, the picture."""
        return self._preview.decode()


@dataclass(frozen=True)
class _Preview:
    """A latent in ONNX Runtime's memory, and what decodes it; neither leaves the process."""

    generator: Generator
    f_hat: onnxruntime.OrtValue

    def decode(self) -> Images:
        return self.generator._decode(self.f_hat)

    def __deepcopy__(self, memo: object) -> _Preview:
        return self

    def __reduce__(self) -> NoReturn:
        raise TypeError("a StageResult stays in its process: send its tokens, its outputs, or what preview() gives")


class Generator:
    """Generates pictures from a bundle.

    Graphs are loaded when first needed. Several threads may call one generator at the same time: each call has its own
    state. In another process, be it forked, spawned or reached by pickle, a generator loads them again.

    Args:
        bundle: a bundle or its folder.
        options: threads and memory.
    Raises:
        BundleError: the folder holds no usable bundle.
        NextscaleError: options are none, or ask for fused operators that cannot run.
    """

    def __init__(self, bundle: Bundle | str | os.PathLike[str], options: SessionOptions | None = None) -> None:
        self.bundle = bundle if isinstance(bundle, Bundle) else Bundle.open(bundle)
        self.options = SessionOptions() if options is None else options
        if not isinstance(self.options, SessionOptions):
            raise NextscaleError(f"options {shown_value(options)}: expected SessionOptions")
        self._pool = SessionPool(self.bundle, self.options)

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.bundle, self.options)

    @property
    def ops(self) -> Choice:
        """Which variant of the bundle's graphs this generator runs, and why."""
        return self._pool.choice

    def load(self, *graphs: str) -> None:
        """Load "generate", or "stage" and "decoder", and "text_encoder" for prompts, now instead of at the first use.

        Raises:
            BundleError: the bundle has no such graph, onnxruntime cannot load it, or its inputs and outputs are not the
                manifest's.
        """
        for graph in graphs:
            self.bundle.graph(graph)
            self._pool.session(graph)

    def generate(
        self,
        class_labels: Labels | None = None,
        *,
        batch_size: int | None = None,
        on_stage: Callable[[StageResult], object] | None = None,
        cancel: CancelFlag | None = None,
        **settings: Unpack[RequestSettings],
    ) -> Generation:
        """Generate B images.

        One call of generate.onnx for each batch; with `on_stage` or `cancel`, or where the bundle has no generate.onnx,
        one call of stage.onnx for each stage, which gives the same tokens.

        Args:
            class_labels: B class ids or names; None where the bundle takes no classes.
            batch_size: images at a time; None is all at once.
            on_stage: called after each stage; returning False, Python's or NumPy's, cancels.
            cancel: checked before each stage and while it runs; a threading.Event, for example.
            settings: seed, prompts, cfg_scale and everything else that a request may say; see `RequestSettings`.
        Raises:
            ClassLabelError, RequestError: a value is out of range; nothing was run.
            Cancelled: on_stage returned False or cancel is set.
            BundleError: a graph cannot be loaded.
        """
        return self._generate(Request.create(self.bundle, class_labels, **settings), batch_size, on_stage, cancel)

    def _generate(
        self,
        request: Request,
        batch_size: int | None,
        on_stage: Callable[[StageResult], object] | None,
        cancel: CancelFlag | None,
    ) -> Generation:
        step = len(request) if batch_size is None else require_integer("batch_size", batch_size)
        if step < 1:
            raise RequestError(f"batch_size {shown_number(step)} is out of range: expected at least 1")
        if on_stage is not None and not callable(on_stage):
            raise RequestError(f"on_stage {shown_value(on_stage)}: expected a function of one stage's result")
        require_cancel_flag(cancel)
        request = self._encoded(request)
        streaming = on_stage is not None or cancel is not None or "generate" not in self.bundle.manifest.graphs
        parts = [
            self._generate_streaming(request.images(first, first + step), first, on_stage, cancel)
            if streaming
            else self._generate_at_once(request.images(first, first + step))
            for first in range(0, len(request), step)
        ]
        images, token_maps = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
        label = self.bundle.manifest.input_of_kind("label")
        labels = np.zeros(0, np.int64) if label is None else request.arrays[label.name]
        return Generation(images, token_maps, labels)

    def stream(
        self,
        class_labels: Labels | None = None,
        *,
        outputs: Sequence[str] = (),
        cancel: CancelFlag | None = None,
        **settings: Unpack[RequestSettings],
    ) -> Iterator[StageResult]:
        """Generate B images stage by stage: the same tokens as `generate`, with progress, previews and cancel.

        The request is checked and copied at the call, before the first stage; leaving the iteration stops the work.

        Args:
            class_labels: B class ids or names; None where the bundle takes no classes.
            outputs: further outputs of stage.onnx to return: "logits", float32 [B, l, V] after guidance and before
                top_k and top_p; a state output, of which caches may be empty after the last stage; an output that only
                bundles made for debugging have.
            cancel: checked before each stage and while it runs; a threading.Event, for example.
            settings: seed, cfg_scale and everything else that a request may say; see `RequestSettings`.
        Raises:
            ClassLabelError, RequestError: a value is out of range.
            Cancelled: cancel is set.
            BundleError: a graph cannot be loaded.
        """
        request = Request.create(self.bundle, class_labels, **settings)
        require_cancel_flag(cancel)
        known = {tensor.name for tensor in self.bundle.graph("stage").outputs}
        if isinstance(outputs, str | bytes | bytearray) or not isinstance(outputs, Iterable):
            raise RequestError(f'outputs {shown_value(outputs)}: expected several, such as ["logits"]')
        outputs = list(outputs)
        for name in outputs:
            if not isinstance(name, str):
                raise RequestError(f'outputs {shown_value(name)}: expected names of outputs, such as "logits"')
            if name not in known:
                raise RequestError(f'outputs: stage.onnx has no output "{shown_text(name)}"')
        return self._stages(self._encoded(request).images(0, len(request)), 0, outputs, cancel)

    def decode(self, f_hat: NDArray[np.float32]) -> Images:
        """Decode a latent, float32 [B, Cvae, h, w] of a size that the bundle is built for, to uint8 [B, H, W, 3].

        Raises:
            RequestError: f_hat is no such array, is empty, or has a number that is not finite.
        """
        models = self.bundle.manifest.models
        expected = [(model.latent_channels, *model.latent_size) for model in models]
        if not isinstance(f_hat, np.ndarray) or f_hat.shape[1:] not in expected or f_hat.dtype != np.float32:
            raise RequestError(f"f_hat: expected float32 {_shapes(expected)}, found {shown_value(f_hat)}")
        if not len(f_hat):
            raise RequestError("f_hat is empty: expected at least one latent")
        finite = np.isfinite(f_hat)
        if not finite.all():
            raise RequestError(f"f_hat: expected finite numbers, found {shown_number(float(f_hat[~finite][0]))}")
        return self._decode(ort_value(np.ascontiguousarray(f_hat)))

    def encode(self, images: NDArray[np.uint8]) -> NDArray[np.int64]:
        """The token maps of pictures, as `Generation` has: int64 [B, L], or [B, L, d] where tokens are bits.

        Args:
            images: uint8 [B, H, W, 3], RGB, of a size that the bundle is built for.
        Raises:
            RequestError: images is no such array, or is empty.
            BundleError: the bundle has no encoder, or it cannot be loaded.
        """
        self.bundle.require_encoder()
        manifest = self.bundle.manifest
        expected = [(*model.image_size, 3) for model in manifest.models]
        if not isinstance(images, np.ndarray) or images.shape[1:] not in expected or images.dtype != np.uint8:
            raise RequestError(f"images: expected uint8 {_shapes(expected)}, found {shown_value(images)}")
        if not len(images):
            raise RequestError("images is empty: expected at least one picture")
        feeds = {"images": ort_value(np.ascontiguousarray(images))}
        size = manifest.input_of_kind("size")
        if size is not None:
            feeds[size.name] = ort_value(np.array(expected.index(images.shape[1:]), np.int64))
        return self._run("encoder", ["token_maps"], feeds)["token_maps"].numpy()

    def edit(
        self,
        image: NDArray[np.uint8],
        mask: NDArray[np.bool_] | None = None,
        class_labels: Labels | None = None,
        *,
        keep_stages: int = 0,
        feather: int | None = None,
        batch_size: int | None = None,
        on_stage: Callable[[StageResult], object] | None = None,
        cancel: CancelFlag | None = None,
        **settings: Unpack[RequestSettings],
    ) -> Generation:
        """Make parts of a picture anew.

        The picture is encoded; tokens outside the mask are kept at each stage, the others are sampled. Of the result
        the pixels outside the mask are the picture's own, exactly.

        Args:
            image: uint8 [H, W, 3] of a size that the bundle is built for, which the results have, too.
            mask: bool [H, W], True where pixels are made anew; None: everywhere.
            class_labels: one class id or name for each of the B results; None makes one of no class, or of each prompt.
            keep_stages: tokens of so many first stages are kept within the mask too: what remains of the picture's
                layout and colours.
            feather: width in pixels of the seam within the mask, where the picture becomes the new one; None: a quarter
                of what one latent position covers; -1: no blending, the decoder's picture as it is.
            batch_size, on_stage, cancel, settings: as for `generate`.
        Returns:
            B pictures, and their token maps.
        Raises:
            RequestError: an array of another form, an empty mask, keep_stages out of range; nothing was run.
            BundleError: the bundle has no encoder.
            Cancelled: as for `generate`.
        """
        if not isinstance(image, np.ndarray) or image.ndim != 3:
            raise RequestError(f"image: expected uint8 [H, W, 3], found {shown_value(image)}")
        if settings.get("forced_tokens") is not None:
            raise RequestError("forced_tokens: an edit forces those that the picture and the mask say")
        manifest, size = self.bundle.manifest, self._size_of(image, settings)
        model = manifest.models[size]
        anew = None if mask is None else require_mask(mask, model)
        keep, last = require_integer("keep_stages", keep_stages), model.num_stages - 1
        if not 0 <= keep <= last:
            raise RequestError(f"keep_stages {shown_number(keep)} is out of range: expected 0 to {last}")
        seam = default_feather(model) if feather is None else require_integer("feather", feather)
        if not -1 <= seam <= max(model.image_size):
            raise RequestError(f"feather {shown_number(seam)} is out of range: expected -1 to {max(model.image_size)}")
        latent = None if anew is None else latent_mask(anew, model)
        if class_labels is None and manifest.input_of_kind("label") is not None:
            class_labels = [model.num_classes]
        request = Request.create(self.bundle, class_labels, **settings)  # refuses before anything runs
        forced = forced_tokens(self.encode(image[None]), latent, keep, model).repeat(len(request), axis=0)
        made = self._generate(request.with_forced_tokens(forced, manifest), batch_size, on_stage, cancel)
        if anew is None or seam < 0:
            return made
        return replace(made, images=blend(image, made.images, anew, seam))

    def _size_of(self, image: NDArray[np.uint8], settings: RequestSettings) -> int:
        """The index of a picture's size, which is put into the settings, too; 0 where the bundle has one."""
        manifest, inputs = self.bundle.manifest, settings.get("inputs")
        item = manifest.input_of_kind("size")
        if item is None:
            return 0
        told = [name for name in ("area", "ratio") if settings.get(name) is not None]
        if told or (isinstance(inputs, Mapping) and inputs.get(item.name) is not None):
            raise RequestError(f"{(*told, item.name)[0]}: an edit has the size of its picture; leave it out")
        sizes = [size.image_size for size in manifest.sizes]
        if image.shape[:2] not in sizes:
            expected = _shapes([(*size, 3) for size in sizes], "")
            raise RequestError(f"image: expected uint8 {expected}, found {shown_value(image)}")
        index = sizes.index(image.shape[:2])
        settings["inputs"] = {**inputs, item.name: index} if isinstance(inputs, Mapping) else {item.name: index}
        return index

    def _generate_at_once(self, request: Request) -> tuple[Images, NDArray[np.int64]]:
        taken = [tensor.name for tensor in self.bundle.graph("generate").inputs]
        feeds = {name: ort_value(request.arrays[name]) for name in taken}
        outputs = self._run("generate", ["images", "token_maps"], feeds)
        return outputs["images"].numpy(), outputs["token_maps"].numpy()

    def _generate_streaming(
        self,
        request: Request,
        first: int,
        on_stage: Callable[[StageResult], object] | None,
        cancel: CancelFlag | None,
    ) -> tuple[Images, NDArray[np.int64]]:
        token_maps = []
        for result in self._stages(request, first, (), cancel):
            token_maps.append(result.tokens)
            go_on = True if on_stage is None else on_stage(result)
            if is_truth_value(go_on[()] if isinstance(go_on, np.ndarray) else go_on) and not go_on:
                raise cancelled(result.stage + 1, result.num_stages)
        return result.preview(), np.concatenate(token_maps, axis=1)

    def _stages(
        self, request: Request, first: int, further: Sequence[str], cancel: CancelFlag | None
    ) -> Iterator[StageResult]:
        manifest = self.bundle.manifest.of_size(request.size)
        state, num_stages = manifest.graphs["stage"].state, manifest.model.num_stages
        with self._memory_returned():
            path = str(self.bundle.graph_path("stage"))
            runner = StageRunner(self._pool.session("stage"), state, num_stages, path)
            for found in runner.run(request, further, cancel):
                yield StageResult(
                    stage=found.stage,
                    num_stages=num_stages,
                    tokens=found.tokens,
                    outputs=found.outputs,
                    first=first,
                    _preview=_Preview(self, found.f_hat),
                )

    def _encoded(self, request: Request) -> Request:
        """The request with the features of its prompts."""
        if not request.texts:
            return request
        try:
            return request.encoded(self._encode_text)
        finally:
            if not self.options.keep_text_encoder:
                with self._memory_returned():
                    self._pool.close("text_encoder")

    def _encode_text(self, token_ids: NDArray[np.int64]) -> NDArray[np.float32]:
        """The features of one text, int64 [N] -> float32 [N, Ct]."""
        manifest = self.bundle.manifest
        feeds = {"token_ids": ort_value(token_ids[None])}
        features = self._run("text_encoder", ["text_features"], feeds)["text_features"].numpy()
        expected = (1, len(token_ids), *(item.shape[2] for item in manifest.request if item.kind == "text_features"))
        if features.shape != expected:
            path = self.bundle.graph_path("text_encoder")
            raise BundleError(f"{path}: gave features {list(features.shape)}; expected {list(expected)}")
        return np.array(features[0])

    def _decode(self, f_hat: onnxruntime.OrtValue) -> Images:
        return self._run("decoder", ["images"], {"f_hat": f_hat})["images"].numpy()

    def _run(self, graph: str, names: list[str], feeds: Mapping[str, onnxruntime.OrtValue]) -> dict[str, Any]:
        with self._memory_returned():
            return run_session(self._pool.session(graph), names, feeds, self.bundle.graph_path(graph))

    @contextmanager
    def _memory_returned(self) -> Iterator[None]:
        """At the end of the block, where the options ask for it."""
        try:
            yield
        finally:
            if self.options.return_memory:
                return_freed_memory()


def features_of_prompts(generator: Generator, prompts: Sequence[str]) -> list[NDArray[np.float32]]:
    """The features of each prompt by the bundle's text encoder, float32 [N, Ct], for what draws them repeatedly.

    Raises:
        RequestError: the bundle has no text encoder, or a prompt is empty, too long or no text.
    """
    [texts] = generator._encoded(Request.create(generator.bundle, prompts=prompts)).texts
    return [texts.distinct[number] for number in texts.index]


def _shapes(rows: Sequence[tuple[int, ...]], batch: str = "B, ") -> str:
    """The shapes that an argument may have: one, or one of each size."""
    shapes = [f"[{batch}{', '.join(map(str, row))}]" for row in rows]
    return " or ".join(shapes if len(shapes) <= _SHOWN else [*shapes[:_SHOWN], f"{len(shapes) - _SHOWN} others"])
