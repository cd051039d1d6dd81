"""The weights of a torch model in a file that is mapped into memory."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from nextscale.compiler import _mapped_weights
from nextscale.compiler._mapped_weights import MappedWeights


class Model(nn.Module):
    """Parameters of several types and shapes, one of them without values, one used twice."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(33, 7)
        self.again = self.linear
        self.narrow = nn.Parameter(torch.randn(5, 3).bfloat16())
        self.transposed = nn.Parameter(torch.randn(4, 6).T)
        self.scalar = nn.Parameter(torch.tensor(2.5))
        self.empty = nn.Parameter(torch.zeros(0, 3))


@pytest.fixture
def model() -> Model:
    torch.manual_seed(0)
    return Model().requires_grad_(False)


def test_weights_keep_their_values_and_are_a_files(model: Model, tmp_path: Path) -> None:
    expected = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    weights = MappedWeights([model], tmp_path)
    for _ in range(2):
        found = model.state_dict()
        assert found.keys() == expected.keys()
        assert all(found[name].dtype == tensor.dtype for name, tensor in expected.items())
        assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())
        weights.drop()
    assert model.again.weight is model.linear.weight
    assert not list(tmp_path.iterdir())  # the file has no name


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_weights_lie_in_a_mapping_of_the_folders_file(model: Model, tmp_path: Path) -> None:
    MappedWeights([model], tmp_path)
    files = {}
    for line in Path("/proc/self/maps").read_text().splitlines():
        span, *_, path = line.split(maxsplit=5)
        files[tuple(int(end, 16) for end in span.split("-"))] = path
    for name, tensor in model.named_parameters():
        if tensor.numel():
            found = [path for (begin, end), path in files.items() if begin <= tensor.data_ptr() < end]
            assert [path.startswith(str(tmp_path)) for path in found] == [True], name


def test_several_modules_share_one_file(model: Model, tmp_path: Path) -> None:
    other = nn.Linear(3, 2)
    expected = other.weight.detach().clone()
    MappedWeights([model, other, model.linear], tmp_path)
    assert torch.equal(other.weight, expected)


def test_a_step_begins_with_what_the_last_one_left_given_back(
    model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[object] = []
    monkeypatch.setattr(MappedWeights, "drop", lambda self: calls.append("drop"))
    monkeypatch.setattr(_mapped_weights, "return_freed_memory", lambda: calls.append("return"))
    told = MappedWeights([model], tmp_path).tidying(lambda *step: calls.append(step))
    told("writing")
    told("comparing", 0, 2)
    told("comparing", 1, 2)
    tidied = ["drop", "return"]
    assert calls == [*tidied, ("writing", 0, 0), *tidied, ("comparing", 0, 2), ("comparing", 1, 2)]
