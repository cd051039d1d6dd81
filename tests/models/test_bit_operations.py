from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from model_infos import VAR_D16, facts_of
from tiny_model import no_progress, tiny_options, tiny_source

from nextscale.compiler.build import build_bundle
from nextscale.models.bit_operations import (
    BitWidths,
    Cost,
    aggregate_cost,
    bit_operations,
    duplicate_cost,
    keys,
    model_cost,
    multiply_adds,
    queries,
    score_cost,
)
from nextscale.models.transformer_parts import KVCache
from nextscale.models.var import layers

W4A6 = BitWidths(4, 6)
D16 = facts_of(VAR_D16)


def test_table_b_baseline_of_var_d16() -> None:
    """3.72T: printed with two decimals."""
    assert model_cost(VAR_D16, D16, W4A6).operations / 1e12 == pytest.approx(3.72, abs=0.005)


def test_table_b_eq_11_of_var_d16() -> None:
    """1.17G; the memory of 0.22M is a 32nd of the formula's bits."""
    cost = score_cost(VAR_D16)
    assert cost.operations / 1e9 == pytest.approx(1.17, abs=0.005)
    assert cost.memory / 32 / 1e6 == pytest.approx(0.22, abs=0.005)


def test_the_parts_of_var_d16() -> None:
    """The figures behind 3.72T, in G: 24 * (137 + 2.9 + ...) + 36 * 9.4."""
    found = {part: count.sum() / 1e9 for part, count in multiply_adds(VAR_D16, D16).items()}
    expected = {"blocks": 136.9, "attention": 9.39, "head": 2.85, "ada_ln": 1.028, "word_embed": 0.02225}
    assert found == pytest.approx(expected, rel=1e-3)
    bits = bit_operations(VAR_D16, D16, W4A6)
    assert bits["attention"].sum() == 36 * multiply_adds(VAR_D16, D16)["attention"].sum()
    assert bits["blocks"].sum() == 24 * multiply_adds(VAR_D16, D16)["blocks"].sum()


def test_eq_13_of_table_b_exceeds_what_scores_that_sum_to_1_allow() -> None:
    """sum(2n) < 2 / theta a head; even with both rows of guidance 33.35G is more."""
    heads = VAR_D16.num_heads * VAR_D16.depth
    bound = np.full(VAR_D16.num_stages, heads * 2 / 0.05)
    one_row = aggregate_cost(VAR_D16, W4A6, np.zeros(VAR_D16.num_stages), bound).operations
    assert one_row == pytest.approx(16.04e9, rel=1e-3)
    assert 2 * one_row < 33.35e9


def test_tokens_of_each_stage() -> None:
    assert queries(VAR_D16).sum() == VAR_D16.num_tokens == 680
    assert keys(VAR_D16).tolist() == [1, 5, 14, 30, 55, 91, 155, 255, 424, 680]


OPTIONS: dict[str, dict[str, Any]] = {"base": {}, "shared adaLN": {"shared_aln": True}, "mlp ratio": {"mlp_ratio": 2.5}}
options = pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS.keys())


@options
def test_weights_are_those_of_the_torch_model(options: dict[str, Any]) -> None:
    """Of its linear layers."""
    source = tiny_source(**options)
    info, facts = source.model_info(), layers.facts_of(source.var)
    linear = sum(module.weight.numel() for module in source.var.modules() if isinstance(module, torch.nn.Linear))
    no_cache = model_cost(info, facts, BitWidths(1, 0))
    assert no_cache.memory == linear
    assert model_cost(info, facts, BitWidths(0, 1)).memory == 2 * info.num_tokens * info.embed_dim * info.depth


@options
def test_operations_are_those_that_the_official_code_runs(options: dict[str, Any]) -> None:
    """Of each linear layer, counted by a hook in the torch model, stage by stage with a cache."""
    source = tiny_source(**options)
    var, info = source.var, source.model_info()
    counted = dict.fromkeys(("blocks", "head", "ada_ln", "word_embed"), 0)

    def count(name: str, module: torch.nn.Linear, x: torch.Tensor) -> None:
        part = "ada_ln" if "ada_lin" in name else name.split(".")[0]
        counted[part] += x.numel() * module.out_features

    for name, module in var.named_modules():
        if isinstance(module, torch.nn.Linear) and not name.endswith("mat_qkv"):
            module.register_forward_pre_hook(lambda module, x, name=name: count(name, module, x[0]))
        if name.endswith("attn"):  # which takes mat_qkv's weight, not the module
            module.register_forward_pre_hook(lambda module, x: count("blocks", module.mat_qkv, x[0]))
    with torch.no_grad():
        embedding, cond = var.condition(torch.zeros(1, dtype=torch.int64))
        caches = [KVCache() for _ in range(info.depth)]
        for si, tokens in enumerate(queries(info)):
            inputs = torch.zeros(1, int(tokens), info.latent_channels) if si else None
            var.stage_logits(var.embed(embedding, inputs, si), embedding, cond, caches)
    found = multiply_adds(info, layers.facts_of(var))
    assert {part: int(found[part].sum()) for part in counted} == counted


@pytest.mark.parametrize("recipe", ["fp32", "default", "nearest-w4a4"])
def test_a_bundle_is_counted_by_its_own_graph(recipe: str, tmp_path: Path) -> None:
    """Float, integer or packed."""
    source = tiny_source(mlp_ratio=2.5)
    bundle = build_bundle(source, tmp_path / "bundle", tiny_options(recipe, encoder=False), no_progress)
    info, facts = source.model_info(), layers.facts_of(source.var)
    assert model_cost(bundle.model, layers.facts_of_bundle(bundle), W4A6) == model_cost(info, facts, W4A6)


def test_copies_cost_what_appendix_d_says() -> None:
    """One token of order n at the third stage of d16: T' = 9, d = 64."""
    for n in (1, 2, 4):
        tokens, copies = np.zeros(10), np.zeros(10)
        tokens[2], copies[2] = 1, 2 * n
        assert duplicate_cost(VAR_D16, tokens, copies) == Cost(16 * (2 * n - 1) * (9 + 64), 2 * n * (9 + 16 * 64))
        assert aggregate_cost(VAR_D16, W4A6, tokens, copies) == Cost(0, (2 * n - 1) * 36 * 64 * 9)


def test_costs_add_up() -> None:
    assert Cost(1, 2) + Cost(10, 20) == Cost(11, 22)
    assert str(W4A6) == "4/6"
