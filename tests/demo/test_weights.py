from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from tiny_model import PATCH_NUMS, tiny_models

import nextscale.demo
from nextscale.demo.train_tokenizer import DEMO_VQVAE
from nextscale.demo.train_transformer import DEMO_VAR
from nextscale.demo.weights import save_weights
from nextscale.models.var.checkpoint import load_models, load_var, load_vqvae
from nextscale.models.var.transformer import VAR
from nextscale.models.var.vqvae import VQVAE

DEMO = Path(nextscale.demo.__file__).parent
MAX_BYTES = 40e6


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


def test_the_committed_weights_load() -> None:
    var, vqvae = load_models(DEMO / "var.safetensors", DEMO / "vae.safetensors")
    assert (var.config, vqvae.config) == (DEMO_VAR, DEMO_VQVAE)
    for model, name in ((var, "var"), (vqvae, "vae")):
        with safe_open(DEMO / f"{name}.safetensors", framework="pt") as file:
            assert set(file.keys()) == {name for name, _ in model.named_parameters()}


def test_the_committed_weights_are_small() -> None:
    assert sum(path.stat().st_size for path in DEMO.glob("*.safetensors")) <= MAX_BYTES


def test_class_names() -> None:
    names = json.loads((DEMO / "class_names.json").read_text(encoding="utf-8"))
    assert len(names) == len(set(names)) == DEMO_VAR.num_classes == 150
    assert all(name and name.isprintable() and name == name.strip() for name in names)
