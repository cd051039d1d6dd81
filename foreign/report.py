"""What became of a model: each operator that multiplies, what the outputs lose, and what was gained."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from nextscale.foreign.compare import Difference
from nextscale.foreign.own_errors import Error
from nextscale.foreign.reconstruct_blocks import ReconstructedBlock
from nextscale.foreign.suggestion import Suggestion
from nextscale.foreign.survey import Kind
from nextscale.measure.provenance import finite
from nextscale.measure.statistics import Interval


@dataclass(frozen=True)
class Line:
    """An operator that multiplies.

    Attributes:
        name: of its node; of an attention, of its second MatMul, or of its Softmax where its form is refused.
        kind: what it is.
        ranges: what shares a range of its input, "tensor", "image" or "token"; None where it stays as it is.
        refused: why it stays as it is; None where it became integer.
        kernels: what multiplies in ONNX Runtime's optimized graph; () where it stays as it is.
        is_integer: whether all of them are integer kernels.
        error: of its output on a few samples, if it alone is quantized; None where the recipe leaves it.
        effect: of that on the model's outputs together.
    """

    name: str
    kind: Kind
    ranges: str | None = None
    refused: str | None = None
    kernels: tuple[str, ...] = ()
    is_integer: bool = False
    error: Error | None = None
    effect: Error | None = None


@dataclass(frozen=True)
class Speed:
    """Of both models on the first sample.

    Attributes:
        float_seconds, integer_seconds: of a run, means.
        ratio: how many times as fast the integer model is.
        rounds: that were taken.
    """

    float_seconds: float
    integer_seconds: float
    ratio: Interval
    rounds: int


@dataclass(frozen=True)
class Report:
    """Everything that `quantize` found.

    Attributes:
        recipe: its name.
        notes: lines on how the model was brought into a form that can be quantized, and on words of the recipe that
            do not apply.
        samples: how many the model was calibrated on, and where they come from.
        normalized: the largest absolute difference of any output that comes from the first kind of notes alone.
        lines: all that multiplies, in the graph's order.
        blocks: whose rounding was learned together.
        outputs: what the outputs lose, by name.
        not_compared: names of outputs that are no tensors of numbers, or whose shapes depend on what is computed.
        float_bytes, integer_bytes: sizes of both models.
        speed: None where it was not measured.
        suggestion: what to leave in float; None where no few operators stand out.
        threads: that it was measured with.
        machine: the processor.
        versions: of this process.
    """

    recipe: str
    notes: tuple[str, ...]
    samples: str
    normalized: float
    lines: tuple[Line, ...]
    blocks: tuple[ReconstructedBlock, ...]
    outputs: Mapping[str, Difference]
    not_compared: tuple[str, ...]
    float_bytes: int
    integer_bytes: int
    speed: Speed | None
    suggestion: Suggestion | None
    threads: int
    machine: str
    versions: Mapping[str, str]

    @property
    def taken(self) -> list[Line]:
        """What became integer."""
        return [line for line in self.lines if line.refused is None]

    @property
    def fallen(self) -> list[Line]:
        """What was to become integer, and multiplies in float all the same."""
        return [line for line in self.taken if not line.is_integer]

    def worst(self, count: int) -> list[Line]:
        """The operators that cost the outputs most."""
        known = [(line.effect.relative, line) for line in self.taken if line.effect is not None]
        return [line for effect, line in sorted(known, key=lambda item: -item[0])[:count] if effect > 0]

    def to_json(self) -> dict[str, Any]:
        """Plain values; what is not finite becomes null."""
        plain: dict[str, Any] = finite(asdict(self))
        return plain
