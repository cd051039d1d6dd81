"""The training programs for a step or two, on two tiny models and a few synthetic photographs."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from click import Command

from nextscale.demo import train_tokenizer, train_transformer
from nextscale.demo.training import load_checkpoint
from nextscale.demo.weights import save_weights
from nextscale.models.var.checkpoint import load_models, load_vqvae
from nextscale.models.var.vqvae import VQVAE

pytestmark = pytest.mark.usefixtures("global_state")

Train = Callable[..., dict[str, Any]]


@pytest.fixture
def train(data: Path, tmp_path: Path) -> Train:
    """Run a program until `steps` and return its checkpoint."""

    def run(program: Command, steps: int) -> dict[str, Any]:
        options = {"--data": data, "--out": tmp_path, "--steps": steps, "--batch": 2}
        arguments = [str(part) for option in options.items() for part in option]
        program.main([*arguments, "--tiny", "--no-compile"], standalone_mode=False)
        (checkpoint,) = tmp_path.glob("*.ckpt")
        return load_checkpoint(checkpoint, torch.device("cpu"))

    return run


def write_tiny_vqvae(folder: Path) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        save_weights(VQVAE(train_tokenizer.TINY_VQVAE), folder / "vae.safetensors")


def optimizer_steps(optimizer: dict[str, Any]) -> set[int]:
    return {int(state["step"]) for state in optimizer["state"].values() if "step" in state}


def changed(before: dict[str, Any], after: dict[str, Any]) -> bool:
    return any(not torch.equal(before["model"][name], after["model"][name]) for name in before["model"])


def records(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_the_tokenizer_learns_and_goes_on_from_its_checkpoint(train: Train, tmp_path: Path) -> None:
    first = train(train_tokenizer.main, 1)
    assert (first["step"], optimizer_steps(first["optimizer"])) == (1, {1})
    assert load_vqvae(tmp_path / "vae.safetensors", config=train_tokenizer.TINY_VQVAE)

    unchanged = train(train_tokenizer.main, 1)
    assert unchanged["step"] == 1
    assert not changed(first, unchanged)

    second = train(train_tokenizer.main, 2)
    assert (second["step"], optimizer_steps(second["optimizer"])) == (2, {2})
    assert changed(first, second)
    assert second["average"]["steps"] == 2
    assert second["elapsed"] >= first["elapsed"]
    assert [record["step"] for record in records(tmp_path / "tokenizer.jsonl")] == [1, 1, 2]


def test_the_transformer_learns_and_goes_on_from_its_checkpoint(train: Train, tmp_path: Path) -> None:
    write_tiny_vqvae(tmp_path)
    first = train(train_transformer.main, 1)
    _, adamw = first["optimizers"]
    assert (first["step"], optimizer_steps(adamw)) == (1, {1})
    var, _ = load_models(tmp_path / "var.safetensors", tmp_path / "vae.safetensors")
    assert var.config.num_classes == 2

    second = train(train_transformer.main, 2)
    _, adamw = second["optimizers"]
    assert (second["step"], optimizer_steps(adamw)) == (2, {2})
    assert changed(first, second)
    assert second["average"]["steps"] == 2
    assert second["best"] <= first["best"]
    finals = [record for record in records(tmp_path / "transformer.jsonl") if "final" in record]
    # Two of the four validation photographs are of classes that have training photographs.
    assert [(record["step"], record["val_images"]) for record in finals] == [(1, 2), (2, 2)]


@torch.no_grad()
def test_stagewise_attention_is_the_masked_one() -> None:
    torch.manual_seed(0)
    config = train_transformer.VARConfig(num_classes=2, depth=1, embed_dim=64, num_heads=2, vocab_size=16)
    var = train_transformer.VAR(config)
    labels, inputs = torch.tensor([0, 2]), torch.randn(2, config.num_tokens - 1, config.z_channels)
    expected = var(labels, inputs)
    state = var.state_dict()
    for block in var.blocks:
        block.attn = train_transformer.StagewiseAttention(config)
    var.load_state_dict(state)
    # The same float32 sums of up to 680 terms in another order; logits are of order 1.
    torch.testing.assert_close(var(labels, inputs), expected, rtol=0, atol=680 * 2**-23)
