from __future__ import annotations

import pytest
import torch
from torch import nn

from nextscale.runtime._errors import NextscaleError
from nextscale.simulation._device import on_device, require_device


class Recorded(nn.Module):
    """A module that tells where it was put, on a machine without GPU."""

    def __init__(self) -> None:
        super().__init__()
        self.devices: list[str] = []

    def to(self, device: str) -> Recorded:  # type: ignore[override]
        self.devices.append(device)
        return self


def test_a_missing_gpu_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    require_device("cpu")
    module = Recorded()
    with pytest.raises(NextscaleError, match="--device cuda: this torch finds no GPU"), on_device("cuda", module):
        pytest.fail("began")
    assert module.devices == []


def test_modules_come_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    first, second = Recorded(), Recorded()
    with on_device("cuda", first, second):
        assert first.devices == second.devices == ["cuda"]
    assert first.devices == second.devices == ["cuda", "cpu"]


def test_a_small_gpu_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    module = Recorded()
    expected = r"out of GPU memory; fewer images per step \(--batch\) need less"
    with pytest.raises(NextscaleError, match=expected), on_device("cuda", module):
        raise torch.cuda.OutOfMemoryError
    assert module.devices == ["cuda", "cpu"]
