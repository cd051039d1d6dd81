"""Rounding of whole residual blocks, learned on the samples (BRECQ, Li et al., 2021).

Block after block in the graph's order: each learns the rounding of its linear layers so that, fed what the quantized
model before it gives, it comes close to what the float model has there; its activations are quantized meanwhile.
Learning begins at each layer's own rounding (GPTQ). What is kept is what is best on samples that were held out: the
learned rounding, each layer's own, or to nearest.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
import onnx_ir as ir
import torch
from torch import Tensor

from nextscale.foreign._straight_through import StraightThroughRounding
from nextscale.foreign.learning import BlockLearning
from nextscale.foreign.plan import Plan
from nextscale.foreign.residual_blocks import ResidualBlock, residual_blocks
from nextscale.foreign.running import Running, giving, write_graph
from nextscale.foreign.samples import Arrays, Samples
from nextscale.foreign.simulated_block import SimulatedBlock
from nextscale.graph_passes._attention_patterns import attention_patterns
from nextscale.graph_passes.linear_layers import find_layers
from nextscale.graph_passes.qparams import QuantizedWeight, WeightQParams
from nextscale.runtime._session import SessionOptions, session_settings

Kept = Literal["block", "layers", "nearest"]
# What a block reads and gives, of all samples that it learns from.
LARGEST_STREAMS = 2**30
# Of the largest number that a block adds: torch and ONNX Runtime differ by less.
CLOSE = 1e-3
TINY = float(np.finfo(np.float32).tiny)


@dataclass(frozen=True)
class ReconstructedBlock:
    """What became of a block.

    Attributes:
        name: of the sum that ends it.
        layers: names of its layers whose rounding was learned together.
        kept: whose rounding they have: learned as a block, layer by layer, or to nearest.
        errors: mean squared errors on held-out samples by what could be kept, relative to rounding to nearest.
    """

    name: str
    layers: tuple[str, ...]
    kept: Kept
    errors: Mapping[Kept, float]


@dataclass(frozen=True)
class LeftBlock:
    """A block that could not be learned as a whole, so that its layers keep their own rounding.

    Attributes:
        name: of the sum that ends it.
        why: what was in the way.
    """

    name: str
    why: str


def reconstruct_blocks(
    model: ir.Model,
    plan: Plan,
    samples: Samples,
    work: Path,
    options: SessionOptions,
    learning: BlockLearning,
    progress: Callable[[str], object],
) -> tuple[Plan, list[ReconstructedBlock], list[LeftBlock]]:
    """The plan with rounding of blocks, and what became of each block.

    Layers that share their weights are left to their own rounding.

    Args:
        model: normalized.
        plan: of it, with layers that are rounded each by itself.
        samples: what it is run on.
        work: an existing folder.
        options: threads and memory.
        learning: how.
        progress: told each block.
    """
    layers = find_layers(model.graph, set(plan.integer.layers))
    readers = [layer.weight for layer in layers]
    alone = {layer.name for layer in layers if layer.graph is model.graph and readers.count(layer.weight) == 1}
    blocks = residual_blocks(model.graph, alone)
    known = {layer.name: plan.rounder(layer.name, _weight(layer.weight)) for layer in layers}
    # Each block sees what those before it have learned.
    plan = replace(plan, rounder=lambda name, weight: known[name])
    patterns = [found for found in attention_patterns(model.graph) if found.graph is model.graph]
    observer = _Observer(model, plan, samples, work, options)
    found, left = list[ReconstructedBlock](), list[LeftBlock]()
    for number, block in enumerate(blocks):
        progress(f"learning block {number + 1} of {len(blocks)}")
        try:
            simulated = SimulatedBlock(block, plan, patterns)
            streams = observer.streams(block)
            _require_same(simulated, streams)
        except NotImplementedError as why:
            left.append(LeftBlock(block.name, str(why)))
            continue
        with _threads(session_settings(options).intra_op_num_threads):
            learned, became = _learn(simulated, streams, replace(learning, seed=learning.seed + number))
        known |= learned
        found.append(became)
    return plan, found, left


@dataclass(frozen=True)
class _Streams:
    """What a block reads and should give.

    Attributes:
        inputs: of each sample, behind quantized operators.
        exact_inputs: of the first sample, behind float ones.
        targets: of each sample, what the block gives in float.
    """

    inputs: Sequence[Sequence[Tensor]]
    exact_inputs: Sequence[Tensor]
    targets: Sequence[Tensor]


class _Observer:
    """Gives what blocks read, one after the other: of the model it runs what lies behind the block before."""

    def __init__(self, model: ir.Model, plan: Plan, samples: Samples, work: Path, options: SessionOptions) -> None:
        self.model, self.plan, self.samples, self.work, self.options = model, plan, samples, work, options
        # Attention and convolutions become integer by what surrounds them, which a part does not have.
        self.integer = plan.apply_others(model)
        # Of each sample, by name.
        self.known: tuple[list[Arrays], list[Arrays]] = ([{}] * len(samples.feeds), [{}] * len(samples.feeds))

    def streams(self, block: ResidualBlock) -> _Streams:
        """Of a block.

        Raises:
            NotImplementedError: what it adds to, or gives, is not finite, or what it reads is not in the integer model.
        """
        if any(value.dtype is None for value in block.inputs):
            raise NotImplementedError("it reads a value of unknown type")
        names, result = [str(value.name) for value in block.inputs], str(block.result.name)
        exact = self._running([*names, result], self.known[0], "float_block.onnx", None)
        quantized = self._running(names, self.known[1], "integer_block.onnx", self.plan)
        inputs, targets, first, left = [], [], list[Tensor](), float(LARGEST_STREAMS)
        known = list[Arrays](), list[Arrays]()
        for feed, *before in zip(self.samples, *self.known, strict=False):
            values, read = (run(feed, of_one) for run, of_one in zip((exact, quantized), before, strict=True))
            if missing := [name for name in names if name not in read]:
                raise NotImplementedError(f"the integer model does not have {missing[0]}, which it reads")
            if not all(np.isfinite(array).all() for array in (values[names[0]], read[names[0]], values[result])):
                raise NotImplementedError("what it adds to, or what it gives, is not finite")
            first = first or [_tensor(values[name]) for name in names]
            inputs.append([_tensor(read[name]) for name in names])
            targets.append(_tensor(values[result]))
            known[0].append({result: values[result]})
            known[1].append({name: read[name] for name in names})
            left -= sum(array.nbytes for array in (*known[0][-1].values(), *known[1][-1].values()))
            if left < 0 and len(targets) > 1:
                break
        self.known = known
        return _Streams(inputs, first, targets)

    def _running(
        self, names: Sequence[str], known: Sequence[Arrays], file: str, plan: Plan | None
    ) -> Callable[[Arrays, Arrays], dict[str, np.ndarray]]:
        """Runs a part of the model, integer by the plan, for those of these values that it has."""
        whole = self.model if plan is None else self.integer
        part = giving(whole, set(names) - set(known[0]), known[0])
        if plan is not None:
            part = plan.apply_layers(part)
        running = Running.of(write_graph(part, self.work / file), self.options) if part.graph.outputs else None
        read = [str(value.name) for value in part.graph.inputs]

        def run(feed: Arrays, before: Arrays) -> dict[str, np.ndarray]:
            values = {**feed, **before}
            found = {} if running is None else running.run({name: values[name] for name in read})
            return found | {name: values[name] for name in names if name in values}

        return run


def _tensor(array: np.ndarray) -> Tensor:
    return torch.from_numpy(np.array(array))


def _require_same(simulated: SimulatedBlock, streams: _Streams) -> None:
    """Compare the block in torch, in float and on the first sample, with ONNX Runtime.

    Raises:
        NotImplementedError: it is another.
    """
    target, read = streams.targets[0], streams.exact_inputs
    try:
        with torch.no_grad():
            found = simulated.exact(read)
    except RuntimeError:  # torch refuses what ONNX Runtime runs
        raise NotImplementedError("torch cannot compute it") from None
    is_like = found.shape == target.shape and found.dtype == target.dtype and target.numel() > 0
    # Without x, beside which f may be little.
    if not is_like or not (found - target).abs().max() <= CLOSE * (target - read[0]).abs().max():
        raise NotImplementedError("torch computes it otherwise than ONNX Runtime")


def _learn(
    simulated: SimulatedBlock, streams: _Streams, learning: BlockLearning
) -> tuple[dict[str, QuantizedWeight], ReconstructedBlock]:
    """The best rounding of the block's layers, and what became of the block."""
    block, plan = simulated.block, simulated.plan
    own = {name: plan.rounder(name, weight.numpy()) for name, weight in simulated.weights.items()}
    rows = {name: np.ascontiguousarray(simulated.weights[name].numpy().T) for name in block.layers}
    weights = plan.recipe.weights
    qparams = {name: WeightQParams.choose(weight, 0, weights.bits, weights.range) for name, weight in rows.items()}
    soft = {name: StraightThroughRounding(weight, qparams[name], own[name]) for name, weight in rows.items()}
    fixed = {name: _decoded(of_one) for name, of_one in own.items() if name not in soft}
    count = len(streams.targets)
    held = list(range(count - max(1, round(count * learning.held_out)), count))
    seen = np.arange(held[0]) if count > 1 else np.arange(1)

    def error(sample: int, found: Mapping[str, Tensor]) -> Tensor:
        given = simulated.quantized(streams.inputs[sample], {**fixed, **found})
        return (given - streams.targets[sample]).square().mean()

    @torch.no_grad()
    def judged(found: Mapping[str, QuantizedWeight], by: Sequence[int]) -> float:
        decoded = {name: _decoded(of_one) for name, of_one in found.items()}
        return sum(float(error(sample, decoded)) for sample in by) / len(by)

    nearest = {name: _nearest(weight, qparams[name]) for name, weight in rows.items()}
    least = max(judged(nearest, seen[: learning.batch_size].tolist()), TINY)
    _together(soft, lambda sample, found: error(sample, found) / least, seen, learning)
    choices: dict[Kept, Mapping[str, QuantizedWeight]] = {
        "layers": {name: own[name] for name in soft},
        "nearest": nearest,
        "block": {name: layer.coded() for name, layer in soft.items()},
    }
    errors = {kept: judged(found, held) for kept, found in choices.items()}
    kept = _best(errors)
    relative = {one: value / max(errors["nearest"], TINY) for one, value in errors.items()}
    return dict(choices[kept]), ReconstructedBlock(block.name, tuple(soft), kept, relative)


def _best(errors: Mapping[Kept, float]) -> Kept:
    """Of the least error; what is no number is more than any, and of equals the first is kept."""
    return min(errors, key=lambda kept: math.inf if math.isnan(errors[kept]) else errors[kept])


def _together(
    soft: Mapping[str, StraightThroughRounding],
    error: Callable[[int, Mapping[str, Tensor]], Tensor],
    seen: np.ndarray,
    learning: BlockLearning,
) -> None:
    """Adam on all layers: `error` is of a sample with weights [K, N], relative to rounding to nearest.

    Steps shrink to nothing, so that the largest add up to the reach.
    """
    optimizer = torch.optim.Adam([layer.u for layer in soft.values()], betas=(0.9, 0.95))
    random, batch = np.random.default_rng(learning.seed), min(learning.batch_size, len(seen))
    for step in range(learning.iterations):
        left = 1 - step / learning.iterations
        optimizer.param_groups[0]["lr"] = 2 * learning.reach / learning.iterations * left
        leaves = {name: layer.weight().requires_grad_() for name, layer in soft.items()}
        slopes = [torch.zeros_like(leaf) for leaf in leaves.values()]
        # One sample at a time: they may differ in shape, and a graph may be made for one.
        for sample in random.choice(seen, batch, replace=False):
            loss = error(int(sample), leaves) / batch
            if not loss.requires_grad:
                continue
            found = torch.autograd.grad(loss, list(leaves.values()), allow_unused=True)
            for slope, more in zip(slopes, found, strict=True):
                slope += 0 if more is None else more.nan_to_num(0, 0, 0)
        for layer, slope in zip(soft.values(), slopes, strict=True):
            layer.push(slope)
        optimizer.step()


def _nearest(weight: np.ndarray, qparams: WeightQParams) -> QuantizedWeight:
    """Of a weight [N, K]."""
    return QuantizedWeight(np.ascontiguousarray(qparams.quantize(weight, 0).T), qparams.scale, qparams.qmin)


def _decoded(weight: QuantizedWeight) -> Tensor:
    """[K, N]."""
    return torch.from_numpy(weight.codes * weight.scale)


def _weight(value: ir.Value) -> np.ndarray:
    assert value.const_value is not None
    return value.const_value.numpy()


@contextlib.contextmanager
def _threads(count: int) -> Iterator[None]:
    """Meanwhile torch computes with so many; 0: as many as it would."""
    before = torch.get_num_threads()
    torch.set_num_threads(count or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)
