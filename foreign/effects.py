"""What each operator alone costs: its own error, and how much of that reaches the model's outputs."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from nextscale.foreign._names import Names
from nextscale.foreign.own_errors import Error, changed_outputs, own_changes, squares
from nextscale.foreign.plan import Plan
from nextscale.foreign.running import Running, write_graph
from nextscale.foreign.samples import Samples
from nextscale.graph_passes._graph_edit import add_initializer
from nextscale.runtime._session import SessionOptions


@dataclass(frozen=True)
class Cost:
    """Of one operator that alone is quantized, over some samples.

    Attributes:
        error: of what it gives.
        effect: of that on the outputs' numbers together, each output relative to itself.
    """

    error: Error
    effect: Error


def costs(model: ir.Model, plan: Plan, samples: Samples, work: Path, options: SessionOptions) -> dict[str, Cost]:
    """By name of all that the plan makes integer.

    What an operator alone gets wrong is added to what it gives in the float model: one run for each, of one session.

    Args:
        model: normalized.
        plan: of it.
        samples: the first of those that it was made on: a run of each operator for each.
        work: an existing folder.
        options: threads and memory.
    """
    outputs = changed_outputs(model, plan)
    if not outputs:
        return {}
    changed, additions = _with_additions(model, set(outputs.values()))
    path = write_graph(changed, work / "effects.onnx")
    running = Running.of(path, options)
    exact = [running.run(feed) for feed in samples]
    own, effects = ({name: np.zeros(2) for name in outputs} for _ in range(2))
    for change in own_changes(model, plan, samples, work, options):
        own[change.name] += squares(change.exact, change.found)
        added = (change.found - change.exact).astype(np.float32)
        feed = {**samples.feeds[change.sample], additions[change.output]: np.where(np.isfinite(added), added, 0)}
        effects[change.name] += 1, _effect(exact[change.sample], running.run(feed))
    return {name: Cost(Error.of_squares(*own[name]), Error.of_squares(*effects[name])) for name in outputs}


def _effect(exact: Mapping[str, NDArray], found: Mapping[str, NDArray]) -> float:
    """The mean over outputs of the square of the relative difference."""
    of_outputs = [
        Error.of(value, found[name]).relative ** 2
        for name, value in exact.items()
        if value.dtype.kind == "f" and np.any(value) and found[name].shape == value.shape
    ]
    return math.fsum(of_outputs) / max(len(of_outputs), 1)


def _with_additions(model: ir.Model, outputs: set[str]) -> tuple[ir.Model, dict[str, str]]:
    """A copy where each of these values is its own sum with an input, zero unless it is fed; the inputs' names."""
    model = model.clone()
    names, additions = Names(model), dict[str, str]()
    for node in [node for node in model.graph if node.outputs and node.outputs[0].name in outputs]:
        old, name = node.outputs[0], str(node.outputs[0].name)
        additions[name] = names.value(f"{name}.added")
        addition = add_initializer(model.graph, additions[name], np.zeros((), np.float32))
        addition.shape = None
        model.graph.inputs.append(addition)
        add = ir.node("Add", [old, addition], name=names.node(f"{name}/add"))
        (new,) = add.outputs
        new.shape, new.type = old.shape, old.type
        old.name, new.name = names.value(f"{name}.alone"), name
        old.replace_all_uses_with(new, replace_graph_outputs=True)
        add.replace_input_with(0, old)
        model.graph.insert_after(node, add)
    return model, additions
