"""A stage graph that was altered to give more, running in memory: what observes a model needs no bundle of its own."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime

from nextscale.calib_data.subjects import Subjects, TokenRows
from nextscale.graph_passes._graph_session import open_model
from nextscale.runtime._bundle import Bundle
from nextscale.runtime._request import Request
from nextscale.runtime._session import SessionOptions
from nextscale.runtime._stage_runner import StageOutputs, StageRunner

OnImages = Callable[[int], object]


def nobody(done: int) -> None:
    """An `on_images` that tells nobody."""


@dataclass(frozen=True)
class ObservedStage:
    """A stage graph of a bundle's model, with more outputs than the bundle's own.

    Attributes:
        bundle: whose model it is; requests are made for it.
        session: of the graph.
        outputs: the names of what it gives beyond the bundle's stage graph, in order.
    """

    bundle: Bundle
    session: onnxruntime.InferenceSession
    outputs: tuple[str, ...]

    @classmethod
    def open(
        cls, bundle: Bundle, model: ir.Model, options: SessionOptions, weights: Path | None = None
    ) -> ObservedStage:
        """Load the altered graph.

        Args:
            bundle: of the same model.
            model: the graph, with the contract of stage.onnx.
            options: threads and memory.
            weights: the folder of its external weights; None is the bundle's.
        """
        contract = bundle.manifest.graphs["stage"]
        known = {tensor.name for tensor in contract.outputs}
        further = [str(value.name) for value in model.graph.outputs if value.name not in known]
        session = open_model(model, weights or bundle.folder, options, None if weights else bundle.linked_data())
        return cls(bundle, session, tuple(further))

    def runner(self, size: int = 0) -> StageRunner:
        """Of the graph, for pictures of one of the bundle's sizes."""
        manifest = self.bundle.manifest.of_size(size)
        return StageRunner(self.session, manifest.graphs["stage"].state, manifest.model.num_stages)

    def run(
        self,
        subjects: Subjects,
        token_maps: TokenRows,
        *,
        outputs: Sequence[str] | None = None,
        batch_size: int = 1,
        on_images: OnImages = nobody,
        **settings: Any,
    ) -> Iterator[tuple[slice, StageOutputs]]:
        """Feed token maps to the model, batch after batch and stage after stage.

        Image i is image i of the seed, whatever the batch.

        Args:
            subjects: what the N images are of.
            token_maps: int64 [L] of each; -1 is sampled.
            outputs: what to bring back; None is all that `self.outputs` names.
            batch_size: images at a time.
            on_images: called with the number of images finished, after each batch.
            settings: of the request: seed, cfg_scale, top_k, top_p.
        Yields:
            which images of the N, and what a stage gave for them.
        """
        wanted = self.outputs if outputs is None else outputs
        for images in subjects.batches(batch_size):
            of, forced = subjects[images], np.stack(list(token_maps[images]))
            request = Request.create(
                self.bundle,
                first_image=images.start,
                forced_tokens=forced,
                **of.settings(self.bundle.manifest),
                **settings,
            )
            for found in self.runner(request.size).run(request, wanted):
                yield images, found
                del found  # all inputs of layers, which the next stage needs no more
            on_images(images.stop)
