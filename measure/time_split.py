"""Where a generation's time goes, from one profiled run of generate.onnx.

ONNX Runtime's profiler names each operator that it runs; the names are those that the export and the passes gave, with
what a fusion added. What runs after the Loop over the stages is the decoder. A block's layer norms, GELU, residuals and
modulation, the embedding and the latent are "other".
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from nextscale.graph_passes.layer_facts import StageFacts
from nextscale.measure.profile_events import GenerationProfile, profile_generation
from nextscale.models.operations import facts_of_bundle
from nextscale.runtime._bundle import Bundle
from nextscale.runtime._session import SessionOptions

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
    # What has queries, attention to a text, too.
    modules = [layer.name.removesuffix(".q").rpartition(".") for layer in facts.layers if layer.name.endswith(".q")]
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
    return split_profile(profile_generation(bundle, options, folder, batch), facts_of_bundle(bundle))


def split_profile(profile: GenerationProfile, facts: StageFacts) -> TimeSplit:
    """Split a profile; the facts are those of the stage graph."""
    parts, patterns = dict.fromkeys(PARTS, 0.0), part_patterns(facts)
    for operator in profile.operators:
        part = part_of(operator.name, patterns)
        parts[DECODER if part == OTHER and operator.decoding else part] += operator.seconds
    return TimeSplit(profile.total, parts, profile.stages)
