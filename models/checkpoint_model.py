"""A model of a known configuration, filled with a checkpoint's tensors, or one message of all that misfits."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor, nn

from nextscale.models.checkpoint_file import CheckpointError, first_line
from nextscale.models.checkpoint_weights import as_float32, listed, require_stored

Model = TypeVar("Model", bound=nn.Module)
Config = TypeVar("Config")
Shapes = Mapping[str, tuple[int, ...]]


def no_tensor(name: str) -> bool:
    """For models without derived tensors."""
    return False


def filled_model(
    model_type: Callable[[Config], Model],
    config: Config,
    state_dict: dict[str, Tensor],
    path: Path | str,
    *,
    is_derived: Callable[[str], bool] = no_tensor,
    derived: Mapping[str, Tensor] | None = None,
    hint: Callable[[Shapes], str] = lambda found: "",
) -> Model:
    """Build the model without memory and give it the checkpoint's tensors, which leave `state_dict` one by one.

    Args:
        model_type, config: what to build.
        state_dict: the tensors by the model's own names.
        path: how errors name the file.
        is_derived: whether a tensor of this name follows from the configuration, whatever a checkpoint holds.
        derived: these tensors.
        hint: what to say of shapes that misfit, such as the model that they are; begins with a line's end.
    Returns:
        float32, in eval mode, without gradients.
    Raises:
        CheckpointError: tensors are missing, unexpected or misshapen, or have values that are no weights.
    """
    model = skeleton(model_type, config, path)
    expected = shapes_of(model, is_derived)
    found = {name: tuple(tensor.shape) for name, tensor in state_dict.items() if not is_derived(name)}
    if found != expected:
        raise CheckpointError(f"{path} does not fit {config}{differences(expected, found)}{hint(found)}")
    require_stored(state_dict, Path(path))
    weights = {name: as_float32(state_dict.pop(name), name, Path(path)) for name in expected}
    model.load_state_dict(weights | dict(derived or {}), assign=True)
    return model.eval().requires_grad_(False)


def skeleton(model_type: Callable[[Config], Model], config: Config, source: str | Path = "the preset") -> Model:
    """The model without memory for its tensors.

    Raises:
        CheckpointError: none can be built; `source` is how the error names where the configuration comes from.
    """
    try:
        with torch.device("meta"):
            return model_type(config)
    except (ValueError, RuntimeError) as error:  # torch's own, of sizes beyond all bounds
        raise CheckpointError(f"{source}: no model can be built from {config}: {first_line(error)}") from error


def shapes_of(model: nn.Module, is_derived: Callable[[str], bool] = no_tensor) -> dict[str, tuple[int, ...]]:
    """The shapes of a model's tensors by name, without derived ones."""
    return {name: tuple(tensor.shape) for name, tensor in model.state_dict().items() if not is_derived(name)}


def differences(expected: Shapes, found: Shapes) -> str:
    """What misfits, a line each for what is missing, unexpected and misshapen."""
    kinds = {
        "missing": [f"{name} (expected {list(shape)})" for name, shape in expected.items() if name not in found],
        "unexpected": [f"{name} (found {list(shape)})" for name, shape in found.items() if name not in expected],
        "misshapen": [
            f"{name} (expected {list(shape)}, found {list(found[name])})"
            for name, shape in expected.items()
            if found.get(name, shape) != shape
        ],
    }
    return "".join(f"\n  {len(names)} {kind}: {listed(names)}" for kind, names in kinds.items() if names)
