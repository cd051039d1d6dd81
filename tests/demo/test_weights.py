from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tiny_model import PATCH_NUMS, tiny_models

from nextscale.demo.weights import save_weights
from nextscale.models.var.checkpoint import load_var, load_vqvae
from nextscale.models.var.transformer import VAR
from nextscale.models.var.vqvae import VQVAE


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32], ids=str)
@pytest.mark.parametrize("shared_aln", [False, True])
def test_what_is_written_is_what_is_loaded(shared_aln: bool, dtype: torch.dtype, tmp_path: Path) -> None:
    path, models = tmp_path / "model.safetensors", tiny_models(shared_aln=shared_aln)
    for model in models:
        save_weights(model, path, dtype=dtype)
        loaded: VAR | VQVAE
        if isinstance(model, VAR):
            loaded = load_var(path, patch_nums=PATCH_NUMS)
        else:
            loaded = load_vqvae(path, patch_nums=PATCH_NUMS)
        assert loaded.config == model.config
        found, expected = loaded.state_dict(), model.state_dict()
        assert found.keys() == expected.keys()
        for name, parameter in model.named_parameters():
            assert torch.equal(found[name], parameter.to(dtype).float()), name
    assert [p.name for p in tmp_path.iterdir()] == [path.name]
