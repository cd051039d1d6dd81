"""The models here are small: threads would wait for each other more than they work."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

torch.set_num_threads(1)


@pytest.fixture
def save(tmp_path: Path) -> Callable[..., Path]:
    """Write something with torch.save and return where."""

    def save(content: object, name: str = "var.pth", **options: int) -> Path:
        torch.save(content, tmp_path / name, **options)
        return tmp_path / name

    return save
