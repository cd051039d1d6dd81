"""Rounding of whole residual blocks, learned on the samples (BRECQ, Li et al., 2021).

Block after block in the graph's order: each learns the rounding of its linear layers so that, fed what the quantized
model before it gives, it comes close to what the float model has there; its activations are quantized meanwhile. What
is kept is what is best on samples that were held out: the learned rounding, each layer's own (GPTQ), or to nearest.
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

from nextscale.foreign._torch_operators import is_known
from nextscale.foreign.plan import Plan
from nextscale.foreign.residual_blocks import ResidualBlock, residual_blocks
from nextscale.foreign.running import Running, giving, write_graph
from nextscale.foreign.samples import Arrays, Samples
from nextscale.foreign.simulated_block import SimulatedBlock
from nextscale.graph_passes._attention_patterns import AttentionPattern, attention_patterns
from nextscale.graph_passes.linear_layers import find_layers
from nextscale.graph_passes.qparams import QuantizedWeight, WeightQParams
from nextscale.runtime._session import SessionOptions, session_settings
from nextscale.simulation._soft_rounding import SoftRounding, regularizer
from nextscale.simulation.reconstruction_settings import ReconstructionSettings
from nextscale.simulation.rounding import codes_of

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


def reconstruct_blocks(
    model: ir.Model,
    plan: Plan,
    samples: Samples,
    work: Path,
    options: SessionOptions,
    settings: ReconstructionSettings,
    progress: Callable[[str], object],
) -> tuple[Plan, list[ReconstructedBlock]]:
    """The plan with rounding of blocks, and what became of each that could be learned as a whole.

    Left out are blocks of operators that `_torch_operators` does not have, and layers that share their weights.

    Args:
        model: normalized.
        plan: of it, with layers that are rounded each by itself.
        samples: what it is run on.
        work: an existing folder.
        options: threads and memory.
        settings: how to learn.
        progress: told each block.
    """
    layers = find_layers(model.graph, set(plan.integer.layers))
    readers = [layer.weight for layer in layers]
    alone = {layer.name for layer in layers if layer.graph is model.graph and readers.count(layer.weight) == 1}
    blocks = [block for block in residual_blocks(model.graph, alone) if all(map(is_known, block.nodes))]
    known = {layer.name: plan.rounder(layer.name, _weight(layer.weight)) for layer in layers}
    # Each block sees what those before it have learned.
    plan = replace(plan, rounder=lambda name, weight: known[name])
    patterns = [found for found in attention_patterns(model.graph) if found.graph is model.graph]
    found = []
    for number, block in enumerate(blocks):
        progress(f"learning block {number + 1} of {len(blocks)}")
        streams = _observe(model, plan, block, samples, work, options)
        simulated = None if streams is None else _same_in_torch(block, plan, patterns, streams)
        if streams is None or simulated is None:
            continue
        with _threads(session_settings(options).intra_op_num_threads):
            learned, became = _learn(simulated, streams, replace(settings, seed=settings.seed + number))
        known |= learned
        found.append(became)
    return plan, found


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


def _observe(
    model: ir.Model, plan: Plan, block: ResidualBlock, samples: Samples, work: Path, options: SessionOptions
) -> _Streams | None:
    """None where a number is not finite."""
    names = [str(value.name) for value in block.inputs]
    exact = _giving(model, [*names, str(block.result.name)], work / "float_block.onnx", options)
    quantized = _giving(plan.apply(model), names, work / "integer_block.onnx", options)
    inputs, targets, first, left = [], [], list[Tensor](), float(LARGEST_STREAMS)
    for feed in samples:
        values, coded = exact(feed), quantized(feed)
        # A value that the integer graph does not have is the float one.
        read = [coded.get(name, values[name]) for name in names]
        target = values[str(block.result.name)]
        if not all(np.isfinite(array).all() for array in (*read, target) if array.dtype.kind == "f"):
            return None
        first = first or _tensors([values[name] for name in names])
        inputs.append(_tensors(read))
        targets += _tensors([target])
        left -= sum(array.nbytes for array in (*read, target))
        if left < 0 and len(targets) > 1:
            break
    return _Streams(inputs, first, targets)


def _giving(
    model: ir.Model, names: Sequence[str], path: Path, options: SessionOptions
) -> Callable[[Arrays], dict[str, np.ndarray]]:
    """Runs a model for those of these values that it has."""
    model = giving(model, names)
    fed = [str(value.name) for value in model.graph.inputs if value.name in names]
    running = Running.of(write_graph(model, path), options) if model.graph.outputs else None

    def run(feed: Arrays) -> dict[str, np.ndarray]:
        found = {} if running is None else running.run(feed)
        return found | {name: feed[name] for name in fed}

    return run


def _tensors(arrays: Sequence[np.ndarray]) -> list[Tensor]:
    return [torch.from_numpy(np.array(array)) for array in arrays]


def _same_in_torch(
    block: ResidualBlock, plan: Plan, patterns: Sequence[AttentionPattern], streams: _Streams
) -> SimulatedBlock | None:
    """The block in torch, if it computes what ONNX Runtime does, in float and on the first sample."""
    try:
        simulated = SimulatedBlock(block, plan, patterns)
        with torch.no_grad():
            found = simulated.exact(streams.exact_inputs)
    except (NotImplementedError, RuntimeError):  # torch refuses what ONNX Runtime runs
        return None
    # Without x, beside which f may be little.
    exact, target = streams.exact_inputs[0], streams.targets[0]
    if found.shape != target.shape or found.dtype != target.dtype or not target.numel():
        return None
    return simulated if (found - target).abs().max() <= CLOSE * (target - exact).abs().max() else None


def _learn(
    simulated: SimulatedBlock, streams: _Streams, settings: ReconstructionSettings
) -> tuple[dict[str, QuantizedWeight], ReconstructedBlock]:
    """The best rounding of the block's layers, and what became of the block."""
    block, plan = simulated.block, simulated.plan
    known = {name: plan.rounder(name, weight.numpy()) for name, weight in simulated.weights.items()}
    rows = {name: simulated.weights[name].numpy().T.copy() for name in block.layers}
    weights = plan.recipe.weights
    qparams = {name: WeightQParams.choose(weight, 0, weights.bits, weights.range) for name, weight in rows.items()}
    soft = {name: SoftRounding(torch.from_numpy(weight), qparams[name]) for name, weight in rows.items()}
    fixed = {name: _decoded(of_one) for name, of_one in known.items() if name not in soft}
    count = len(streams.targets)
    held = list(range(count - max(1, round(count * settings.held_out)), count))
    seen = np.arange(held[0]) if count > 1 else np.arange(1)

    def error(sample: int, found: Mapping[str, Tensor]) -> Tensor:
        given = simulated.quantized(streams.inputs[sample], {**fixed, **found})
        return (given - streams.targets[sample]).square().mean()

    @torch.no_grad()
    def judged(found: Mapping[str, QuantizedWeight], by: Sequence[int]) -> float:
        decoded = {name: _decoded(of_one) for name, of_one in found.items()}
        return sum(float(error(sample, decoded)) for sample in by) / len(by)

    nearest = {name: _coded(qparams[name].quantize(weight, 0), qparams[name]) for name, weight in rows.items()}
    least = max(judged(nearest, seen[: settings.batch_size].tolist()), TINY)
    _together(soft, lambda sample, found: error(sample, found) / least, seen, settings)
    learned = {
        name: _coded(codes_of(rows[name], qparams[name], layer.up()), qparams[name]) for name, layer in soft.items()
    }
    choices: dict[Kept, Mapping[str, QuantizedWeight]] = {
        "layers": {name: known[name] for name in soft},
        "nearest": nearest,
        "block": learned,
    }
    errors = {kept: judged(found, held) for kept, found in choices.items()}
    kept = _best(errors)
    relative = {one: value / max(errors["nearest"], TINY) for one, value in errors.items()}
    return dict(choices[kept]), ReconstructedBlock(block.name, tuple(soft), kept, relative)


def _best(errors: Mapping[Kept, float]) -> Kept:
    """Of the least error; what is no number is more than any, and of equals the first is kept."""
    return min(errors, key=lambda kept: math.inf if math.isnan(errors[kept]) else errors[kept])


def _together(
    soft: Mapping[str, SoftRounding],
    error: Callable[[int, Mapping[str, Tensor]], Tensor],
    seen: np.ndarray,
    settings: ReconstructionSettings,
) -> None:
    """Adam on the logits of all layers: `error` is of a sample with weights [K, N], relative to rounding to nearest."""
    optimizer = torch.optim.Adam([layer.logits for layer in soft.values()], lr=settings.learning_rate)
    random, batch = np.random.default_rng(settings.seed), min(settings.batch_size, len(seen))
    for step in range(settings.iterations):
        shares = {name: layer.share_up() for name, layer in soft.items()}
        rounded = {name: layer.weight(shares[name]).T for name, layer in soft.items()}
        # One sample at a time: they may differ in shape, and a graph may be made for one.
        leaves = {name: weight.detach().requires_grad_() for name, weight in rounded.items()}
        slopes = [torch.zeros_like(leaf) for leaf in leaves.values()]
        for sample in random.choice(seen, batch, replace=False):
            loss = error(int(sample), leaves) / batch
            if not loss.requires_grad:
                continue
            found = torch.autograd.grad(loss, list(leaves.values()), allow_unused=True)
            for slope, more in zip(slopes, found, strict=True):
                slope += 0 if more is None else more.nan_to_num(0, 0, 0)
        left = regularizer(shares, step / settings.iterations, settings)
        # From the weights the slopes go on to the logits.
        sums = [(weight * slope).sum() for weight, slope in zip(rounded.values(), slopes, strict=True)]
        optimizer.zero_grad()
        torch.stack([*sums, left]).sum().backward()
        optimizer.step()


def _coded(codes: np.ndarray, qparams: WeightQParams) -> QuantizedWeight:
    """Of codes [N, K]."""
    return QuantizedWeight(np.ascontiguousarray(codes.T), qparams.scale, qparams.qmin)


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
