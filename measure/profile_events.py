"""What ONNX Runtime's profiler tells of one generation by generate.onnx: each operator's own time, and its stage."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from nextscale.measure.bundle_contender import bundle_contender
from nextscale.measure.contender import Worker
from nextscale.measure.random_request import Subject
from nextscale.runtime._bundle import Bundle
from nextscale.runtime._errors import NextscaleError
from nextscale.runtime._scratch import scratch_folder
from nextscale.runtime._session import SessionOptions

LOOP, SUFFIX, BODY = "Loop", "_kernel_time", "SequentialExecutor::Execute"
Shape = tuple[int, ...]


@dataclass(frozen=True)
class OperatorTime:
    """One execution of an operator, or what the session itself takes around some.

    Attributes:
        name: as the graph has it, with what a fusion added.
        op_type: "" for the session.
        seconds: without those of the operators in its own graphs.
        stage: None outside the Loop over the stages.
        decoding: whether it begins after that Loop.
        inputs: shapes of those that are there.
    """

    name: str
    op_type: str
    seconds: float
    stage: int | None
    decoding: bool
    inputs: tuple[Shape, ...] = ()


@dataclass(frozen=True)
class GenerationProfile:
    """Seconds of one profiled generation; profiling slows small operators, so read shares.

    Attributes:
        total: all of it.
        stages: of each stage, without the decoder.
        operators: with times that sum to the total.
    """

    total: float
    stages: tuple[float, ...]
    operators: tuple[OperatorTime, ...]


def profile_generation(
    bundle: Bundle, options: SessionOptions, folder: Path, batch: int = 1, subject: Subject | None = None
) -> GenerationProfile:
    """Generate twice in a process of its own, and tell the second.

    Args:
        bundle: what to profile.
        options: of its session.
        folder: for the profile, which is removed.
        batch: images at a time.
        subject: what is drawn, where the bundle lets one choose.
    """
    with scratch_folder(folder) as work:
        profiled = replace(options, profile=str(work.absolute() / "profile"))
        contender = bundle_contender(f"profile of {bundle.path}", bundle, "generate", profiled, subject=subject)
        with Worker(contender) as worker:
            for seed in range(2):
                worker.request(batch, seed)
        files = list(work.iterdir())
        if len(files) != 1:
            raise NextscaleError(f"{bundle.path}: onnxruntime wrote no profile")
        return read_profile(json.loads(files[0].read_text(encoding="utf-8")))


def read_profile(events: Iterable[Mapping[str, Any]]) -> GenerationProfile:
    """The last run of a profile.

    An event's own time is what it has beyond the events inside it: those of a Loop or If are their bodies'.
    """
    spans = [event for event in events if event.get("ph") == "X" and event.get("cat") in ("Node", "Session")]
    run = max((event for event in spans if event["name"] == "model_run"), key=lambda event: event["ts"])
    end = run["ts"] + run["dur"]
    inside = sorted(
        (event for event in spans if run["ts"] <= event["ts"] < end), key=lambda event: (event["ts"], -event["dur"])
    )
    loop_ends = [event["ts"] + event["dur"] for event in inside if _op_type(event) == LOOP]
    decoding = min(loop_ends, default=end)
    operators, stages = list[OperatorTime](), list[float]()
    # Each event with the time of the events directly inside it, so far.
    open_events: list[tuple[Mapping[str, Any], list[float]]] = []

    def is_stage(place: int) -> bool:
        return place > 0 and open_events[place][0]["name"] == BODY and _op_type(open_events[place - 1][0]) == LOOP

    def close() -> None:
        place = len(open_events) - 1
        event, children = open_events[place]
        within = any(map(is_stage, range(len(open_events))))
        operators.append(
            OperatorTime(
                str(event["name"]).removesuffix(SUFFIX) if event["cat"] == "Node" else "",
                _op_type(event),
                (event["dur"] - sum(children)) / 1e6,
                len(stages) if within else None,
                event["ts"] >= decoding,
                _input_shapes(event),
            )
        )
        if is_stage(place):
            stages.append(event["dur"] / 1e6)
        if place:
            open_events[place - 1][1].append(event["dur"])
        open_events.pop()

    for event in inside:
        while open_events and event["ts"] >= open_events[-1][0]["ts"] + open_events[-1][0]["dur"]:
            close()
        open_events.append((event, []))
    while open_events:
        close()
    return GenerationProfile(run["dur"] / 1e6, tuple(stages), tuple(operators))


def _op_type(event: Mapping[str, Any]) -> str:
    return str(event.get("args", {}).get("op_name", ""))


def _input_shapes(event: Mapping[str, Any]) -> tuple[Shape, ...]:
    """Those of tensors; ONNX Runtime lists [{"uint8": [1, 4, 8]}, …]."""
    listed = event.get("args", {}).get("input_type_shape", [])
    return tuple(tuple(shape) for tensor in listed for shape in tensor.values())
