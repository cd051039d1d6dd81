"""Sets of weights whose tensors do not have the model's names, as averaged ones are saved: lists in the order of the
parameters, or names without dots.

They are found so that nothing beside them is taken silently, and read where their order or names leave no doubt.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path

from torch import Tensor

from nextscale.models.checkpoint_weights import Container, Weights, containers, is_counter, joined, parts_of

# Parts of words in a place.
AVERAGED = re.compile(r"ema\d*|shadow\w*|average\w*|swa\d*|polyak")
OPTIMIZER = re.compile(r"opt|optim\w*")


@dataclass(frozen=True)
class _Model:
    """A set of weights that has names, and the shapes of its parameters and of all its tensors, in the file's order."""

    weights: Weights
    shapes: Mapping[str, tuple[int, ...]]
    all_shapes: Mapping[str, tuple[int, ...]]

    def with_parameters(self, parameters: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Others than its own, beside its buffers."""
        assert self.weights.tensors is not None
        return {**self.weights.tensors, **parameters}


@dataclass(frozen=True)
class _Group:
    """Tensors that may be weights: those of a list, or of a dictionary those whose names have one prefix."""

    place: str
    tensors: Mapping[str, Tensor]
    is_list: bool


def find_unnamed(
    content: object, named: Sequence[Weights], is_buffer: Callable[[str], bool], path: Path
) -> list[Weights]:
    """What has more than half of the shapes of a set of weights, but not its names.

    Args:
        content: what `read_checkpoint` gave.
        named: what `find_weights` found there.
        is_buffer: whether a tensor of this name is no parameter, so that averages lack it.
        path: how errors name the file.
    Returns:
        Sets of weights, with the buffers of a named one; without tensors where nobody can tell which is which.
    """
    models = [_model(weights, is_buffer) for weights in named]
    taken = {(weights.keys, name) for weights in named for name in weights.names.values()}
    found: list[Weights] = []
    spread: dict[tuple[str, ...], dict[str, Tensor]] = {}
    for container in containers(content, path):
        rest = {n: t for n, t in container.tensors.items() if t.ndim and (container.keys, n) not in taken}
        groups = [_whole(container, rest)] if container.is_list else _prefixed(container, rest)
        found += _weights(groups, models) or _weights([_whole(container, rest)], models)
        # An optimizer may hold each parameter's average beside its moments.
        for name in (name for name in rest if container.keys and _has_part(name, AVERAGED)):
            spread.setdefault((*container.keys[:-1], name), {})[container.keys[-1]] = rest[name]
    return found + _weights([_Group(joined(keys), tensors, is_list=True) for keys, tensors in spread.items()], models)


def _model(weights: Weights, is_buffer: Callable[[str], bool]) -> _Model:
    assert weights.tensors is not None
    shapes = {name: _shape(tensor) for name, tensor in weights.tensors.items() if not is_counter(tensor)}
    return _Model(weights, {name: shape for name, shape in shapes.items() if not is_buffer(name)}, shapes)


def _prefixed(container: Container, tensors: Mapping[str, Tensor]) -> list[_Group]:
    """A dictionary's tensors by what stands before the last dot of their names."""
    by_prefix: dict[str, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        prefix, _, last = name.rpartition(".")
        by_prefix.setdefault(prefix, {})[last] = tensor
    return [
        _Group(joined((*container.keys, *prefix.split("."))), inner, is_list=False)
        for prefix, inner in by_prefix.items()
    ]


def _whole(container: Container, tensors: Mapping[str, Tensor]) -> _Group:
    """All of a container, placed by what the names of a dictionary have in common."""
    columns = (
        () if container.is_list else takewhile(lambda letters: len(set(letters)) == 1, zip(*tensors, strict=False))
    )
    common = "".join(letters[0] for letters in columns).rstrip("._-")
    return _Group(joined((*container.keys, *common.split("."))), tensors, container.is_list)


def _weights(groups: Sequence[_Group], models: Sequence[_Model]) -> list[Weights]:
    """Those of the groups that have the shapes of a model, except for what optimizers hold of each parameter."""
    found = []
    for group in groups:
        alike = [model for model in models if _has_most(group.tensors.values(), model.shapes.values())]
        averaged = _has_part(group.place, AVERAGED)
        if not alike or (_has_part(group.place, OPTIMIZER) and not averaged):
            continue
        tensors = _by_order(group, alike) if group.is_list else _by_squeezed_names(group, alike)
        if tensors is not None or averaged or group.is_list:
            found.append(Weights(group.place, tensors))
    return found


def _has_part(place: str, pattern: re.Pattern[str]) -> bool:
    return any(pattern.fullmatch(part) for part in parts_of(place))


def _has_most(tensors: Iterable[Tensor], shapes: Collection[tuple[int, ...]]) -> bool:
    there = Counter(map(_shape, tensors)) & Counter(shapes)
    return there.total() > len(shapes) / 2


def _by_order(group: _Group, alike: Sequence[_Model]) -> dict[str, Tensor] | None:
    """A list in the order of the parameters, as `shadow_params` of torch_ema and diffusers, or of all tensors, if the
    shapes fit one such order."""
    given = [_shape(tensor) for tensor in group.tensors.values()]
    orders = [(model, shapes) for model in alike for shapes in (model.shapes, model.all_shapes)]
    fitting = [(model, list(shapes)) for model, shapes in orders if list(shapes.values()) == given]
    if not fitting or any(names != fitting[0][1] for _, names in fitting):
        return None
    model, names = fitting[0]
    return model.with_parameters(dict(zip(names, group.tensors.values(), strict=True)))


def _by_squeezed_names(group: _Group, alike: Sequence[_Model]) -> dict[str, Tensor] | None:
    """Names without dots, which buffers cannot have (LitEma of latent diffusion), after any of the words before."""
    squeezed = {_squeezed(name): tensor for name, tensor in group.tensors.items()}
    if len(squeezed) < len(group.tensors):
        return None
    for model in alike:
        words = {name: model.weights.names[name].split(".") for name in model.shapes}
        for first in range(min(map(len, words.values()))):
            names = {name: _squeezed(".".join(parts[first:])) for name, parts in words.items()}
            own = {name: squeezed[short] for name, short in names.items() if short in squeezed}
            differ = len(set(names.values())) == len(names)
            if differ and {name: _shape(tensor) for name, tensor in own.items()} == model.shapes:
                return model.with_parameters(own)
    return None


def _squeezed(name: str) -> str:
    return re.sub(r"[\W_]", "", name)


def _shape(tensor: Tensor) -> tuple[int, ...]:
    return () if tensor.is_nested else tuple(tensor.shape)
