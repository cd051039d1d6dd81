"""Where a generation's time goes, from one profiled run of generate.onnx.

ONNX Runtime's profiler names each operator that it runs; the names are those that the export and the passes gave, with
what a fusion added. What runs after the Loop over the stages is the decoder. A block's layer norms, GELU, residuals and
modulation, the embedding and the latent are "other".
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from nextscale.graph_passes.layer_facts import StageFacts
from nextscale.measure.bundle_contender import bundle_contender
from nextscale.measure.contender import Worker
from nextscale.models.var.layers import facts_of_bundle
from nextscale.runtime._bundle import Bundle
from nextscale.runtime._errors import NextscaleError
from nextscale.runtime._scratch import scratch_folder
from nextscale.runtime._session import SessionOptions

LOOP, SUFFIX, BODY = "Loop", "_kernel_time", "SequentialExecutor::Execute"
DECODER, OTHER = "decoder", "other"
PARTS = (DECODER, "sampling", "linear", "attention", OTHER)


@dataclass(frozen=True)
class TimeSplit:
    """Seconds of one profiled generation; profiling slows small operators, so read shares.

    Attributes:
        total: all of it.
        parts: by PARTS; they sum to the total.
        stages: of each stage, without the decoder.
    """

    total: float
    parts: Mapping[str, float]
    stages: tuple[float, ...]


def part_patterns(facts: StageFacts) -> dict[str, re.Pattern[str]]:
    """What the names of each part's nodes begin with in generate.onnx; of several that fit, the first counts."""
    linear = "|".join(re.escape(layer.name) for layer in facts.layers)
    modules = [name.rpartition(".")[0].rpartition(".") for name in facts.attentions]
    # blocks.0.attn.scores are as the model names them, blocks.0/attn/Softmax as the graph builder does.
    attention = "|".join(f"{re.escape(block)}[./]{re.escape(module)}[./]" for block, _, module in modules)
    return {
        DECODER: re.compile(r"decoder/"),
        "sampling": re.compile(r"stage/sampling/"),
        # "pair" and "activation" look up the ranges of a stage's linear layers.
        "linear": re.compile(rf"stage/(({linear})(?!\w)|pair/|activation/)"),
        "attention": re.compile(rf"stage/({attention})"),
    }


def part_of(node: str, patterns: Mapping[str, re.Pattern[str]]) -> str:
    """What a node of generate.onnx, or what a fusion made of it, belongs to: one of PARTS."""
    return next((part for part, pattern in patterns.items() if pattern.match(node)), OTHER)


def profile_bundle(bundle: Bundle, options: SessionOptions, folder: Path, batch: int = 1) -> TimeSplit:
    """Generate twice in a process of its own, and split the time of the second.

    Args:
        bundle: what to profile.
        options: of its session.
        folder: for the profile, which is removed.
        batch: images at a time.
    """
    with scratch_folder(folder) as work:
        profiled = replace(options, profile=str(work.absolute() / "profile"))
        with Worker(bundle_contender(f"profile of {bundle.path}", bundle, "generate", profiled)) as worker:
            for seed in range(2):
                worker.request(batch, seed)
        files = list(work.iterdir())
        if len(files) != 1:
            raise NextscaleError(f"{bundle.path}: onnxruntime wrote no profile")
        facts = facts_of_bundle(bundle)
        return split_profile(json.loads(files[0].read_text(encoding="utf-8")), facts)


def split_profile(events: Iterable[Mapping[str, Any]], facts: StageFacts) -> TimeSplit:
    """Split the last run of a profile; the facts are those of the stage graph.

    An operator's own time is what its event has beyond the events inside it: those of a Loop or If are their bodies'.
    """
    spans = [event for event in events if event.get("ph") == "X" and event.get("cat") in ("Node", "Session")]
    run = max((event for event in spans if event["name"] == "model_run"), key=lambda event: event["ts"])
    end = run["ts"] + run["dur"]
    inside = sorted(
        (event for event in spans if run["ts"] <= event["ts"] < end), key=lambda event: (event["ts"], -event["dur"])
    )
    loop_ends = [event["ts"] + event["dur"] for event in inside if _is_loop(event)]
    decoding = min(loop_ends, default=end)
    parts, stages = dict.fromkeys(PARTS, 0.0), list[float]()
    patterns = part_patterns(facts)
    # Each event with the time of the events directly inside it, so far.
    open_events: list[tuple[Mapping[str, Any], list[float]]] = []

    def close() -> None:
        event, children = open_events.pop()
        own = event["dur"] - sum(children)
        part = part_of(str(event["name"]).removesuffix(SUFFIX), patterns) if event["cat"] == "Node" else OTHER
        parts[DECODER if part == OTHER and event["ts"] >= decoding else part] += own
        if open_events:
            parent, siblings = open_events[-1]
            siblings.append(event["dur"])
            if event["name"] == BODY and _is_loop(parent):
                stages.append(event["dur"] / 1e6)

    for event in inside:
        while open_events and event["ts"] >= open_events[-1][0]["ts"] + open_events[-1][0]["dur"]:
            close()
        open_events.append((event, []))
    while open_events:
        close()
    return TimeSplit(run["dur"] / 1e6, {part: micro / 1e6 for part, micro in parts.items()}, tuple(stages))


def _is_loop(event: Mapping[str, Any]) -> bool:
    return event.get("args", {}).get("op_name") == LOOP
