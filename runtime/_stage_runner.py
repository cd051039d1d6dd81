"""The loop over the stages of one batch, over any session that honours the contract of stage.onnx (docs/bundle.md)."""

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from nextscale.runtime._errors import Cancelled, NextscaleError, RequestError
from nextscale.runtime._interruptible import CancelFlag, is_set
from nextscale.runtime._manifest import StateInfo
from nextscale.runtime._request import Request
from nextscale.runtime._session import ort_value, run_session
from nextscale.runtime._wording import shown_value


@dataclass(frozen=True)
class StageOutputs:
    """What one stage gave for a batch.

    Attributes:
        stage: index in [0, num_stages).
        tokens: int64 [B, l], the tokens taken.
        outputs: the further outputs that were asked for, by name.
        f_hat: the latent so far, float32 [B, Cvae, h, w], in ONNX Runtime's memory.
    """

    stage: int
    tokens: NDArray[np.int64]
    outputs: Mapping[str, NDArray[Any]]
    f_hat: onnxruntime.OrtValue


class StageRunner:
    """Runs a stage graph stage after stage; what it carries stays in ONNX Runtime's tensors and is never copied.

    `Generator` is one plus a bundle. A graph that gives more than the contract asks for, such as observed ranges, runs
    here as well. One runner serves several threads at the same time: a run keeps its state to itself.

    Args:
        session: of the graph.
        state: what it carries from one stage to the next.
        num_stages: of an image.
        name: how errors name the graph.
    """

    def __init__(
        self,
        session: onnxruntime.InferenceSession,
        state: Sequence[StateInfo],
        num_stages: int,
        name: str = "the stage graph",
    ) -> None:
        self._session, self._state, self._num_stages, self._name = session, state, num_stages, name
        self._inputs = frozenset(node.name for node in session.get_inputs())
        self._outputs = frozenset(node.name for node in session.get_outputs())

    def run(
        self, request: Request, outputs: Sequence[str] = (), cancel: CancelFlag | None = None
    ) -> Iterator[StageOutputs]:
        """Run all stages of a request; leaving the iteration stops the work.

        Args:
            request: B images.
            outputs: further outputs of the graph to bring back, by name.
            cancel: looked at before each stage and while it runs.
        Raises:
            RequestError: the graph has no such output, or cancel is no flag.
            Cancelled: cancel is set.
            NextscaleError: onnxruntime failed, or the process forked after the first stage and this is the child.
        """
        require_cancel_flag(cancel)
        for name in outputs:
            if name not in self._outputs:
                raise RequestError(f'outputs: {self._name} has no output "{name}"')
        return self._stages(request, outputs, cancel)

    def _stages(self, request: Request, further: Sequence[str], cancel: CancelFlag | None) -> Iterator[StageOutputs]:
        names = list(dict.fromkeys(["tokens", *further, *(item.output for item in self._state)]))
        feeds = {name: ort_value(array) for name, array in request.arrays.items() if name in self._inputs}
        state = {item.input: ort_value(item.initial(len(request))) for item in self._state}
        process = os.getpid()
        for stage in range(self._num_stages):
            if os.getpid() != process:
                raise NextscaleError("a stream does not go on in a forked process: begin it again there")
            if is_set(cancel):
                raise cancelled(stage, self._num_stages)
            index = {"stage": ort_value(np.array(stage, np.int64))}
            try:
                found = run_session(self._session, names, {**feeds, **state, **index}, self._name, cancel)
            except Cancelled:
                raise cancelled(stage, self._num_stages) from None
            state = {item.input: found[item.output] for item in self._state}
            tokens = found["tokens"].numpy()
            # What is large, such as the inputs of all layers, is not kept beside its copy.
            copies = {name: found.pop(name).numpy() for name in dict.fromkeys(further)}
            yield StageOutputs(stage, tokens, copies, state["f_hat"])
            del copies


def require_cancel_flag(cancel: object) -> None:
    """Refuse what cannot be asked whether to stop.

    Raises:
        RequestError: cancel is neither None nor a flag.
    """
    if cancel is not None and (isinstance(cancel, type) or not callable(getattr(cancel, "is_set", None))):
        raise RequestError(f"cancel {shown_value(cancel)}: expected a flag with is_set(), such as a threading.Event")


def cancelled(done: int, num_stages: int) -> Cancelled:
    """The error of a generation that was stopped after some stages."""
    return Cancelled(f"cancelled after {done} of {num_stages} stages")
