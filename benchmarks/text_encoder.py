"""What int8 loses and saves in a text encoder with random weights, some of whose gates open much wider than the others.

The trained weights cannot be had offline; what is known of them is that the inputs of wo have values which overflow
float16. So in each block some units of wo's input are made `gain` times as large. Their weights in wo are as much
smaller, but for some channels of the residual stream: that has outliers, too, which its norms weigh less.
Errors are |features - float32 features| / |float32 features|; times are those of two blocks of Flan-T5-XL.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from unittest.mock import patch

import click
import numpy as np
import onnx_ir as ir
import torch
from numpy.typing import NDArray
from provenance import provenance, publish

from nextscale.export.bundle_writer import write_graphs
from nextscale.export.text_encoder_graph import build_text_encoder_graph
from nextscale.graph_passes.halve_table import halve_table
from nextscale.graph_passes.linear_layers import linear_layers, nearest
from nextscale.graph_passes.qparams import QuantizedWeight
from nextscale.graph_passes.quantize_linear_dynamic import quantize_linear_by_token
from nextscale.graph_passes.quantize_linear_two_bytes import quantize_linear_two_bytes
from nextscale.graph_passes.quantize_text_encoder import TABLE, ZERO_POINT, quantize_text_encoder
from nextscale.measure.interleaved import ORDER, interleave, timed
from nextscale.measure.statistics import ratio_interval
from nextscale.models.t5.encoder import T5Config, T5Encoder
from nextscale.models.t5.layers import wide_layers
from nextscale.models.t5.random_weights import random_t5
from nextscale.runtime._session import SessionOptions, new_session, session_settings

CONFIG = T5Config(vocab_size=2000, embed_dim=768, depth=12, num_heads=12, hidden_dim=2048)
TIMED = T5Config(vocab_size=2000, depth=2)
GAINS, UNITS, CHANNELS = (1, 10, 30, 100), 8, 4
TEXTS, TOKENS, TIMED_TOKENS = 4, 60, (20, 64, 256)
Run = Callable[[NDArray[np.int64]], NDArray[np.float32]]


@torch.no_grad()
def with_outliers(gain: float, seed: int) -> T5Encoder:
    """A random encoder with UNITS wide gates in each block, and CHANNELS of the stream that get them whole."""
    model, generator = random_t5(CONFIG, seed), torch.Generator().manual_seed(seed)
    channels = torch.randperm(CONFIG.embed_dim, generator=generator)[:CHANNELS]
    for i in range(CONFIG.depth):
        block = model.block(i)
        ffn = block.feed_forward.DenseReluDense
        units = torch.randperm(CONFIG.hidden_dim, generator=generator)[:UNITS]
        ffn.wi_1.weight[units] *= gain
        whole = ffn.wo.weight[channels]
        ffn.wo.weight[:, units] /= gain
        ffn.wo.weight[channels] = whole
        for norm in (block.attention.layer_norm, block.feed_forward.layer_norm):
            norm.weight[channels] /= gain
    model.encoder.final_layer_norm.weight[channels] /= gain
    return model


def forms(model: ir.Model) -> Iterator[tuple[str, ir.Model]]:
    """What is compared, by name."""
    wide = wide_layers(CONFIG)
    others = [layer.name for layer in linear_layers(model.graph) if layer.name not in wide]
    by_token = quantize_linear_by_token(model, dict.fromkeys(others, ZERO_POINT), 8, nearest())
    yield "int8, wo float", by_token
    yield "int8, wo one byte", quantize_linear_by_token(by_token, dict.fromkeys(wide, ZERO_POINT), 8, nearest())
    yield "int8, wo two bytes", quantize_linear_two_bytes(by_token, wide, nearest())
    yield "int8, all two bytes", quantize_linear_two_bytes(model, [*others, *wide], nearest())
    yield "table alone, float16", halve_table(model, TABLE)
    rounded = model.clone()
    table = rounded.graph.initializers[TABLE]
    assert table.const_value is not None
    rows = QuantizedWeight.per_channel(table.const_value.numpy(), 0)
    table.const_value = ir.tensor(rows.codes * rows.scale[:, None], name=TABLE)
    yield "table alone, int8 rows", rounded


def session(model: ir.Model, threads: int) -> Run:
    with TemporaryDirectory() as folder:
        write_graphs(Path(folder), {"text_encoder": model.clone()})
        made = new_session(Path(folder) / "text_encoder.onnx", session_settings(SessionOptions(threads=threads)))
    return lambda ids: made.run(["text_features"], {"token_ids": ids})[0]


def errors(gain: float, seeds: int, threads: int) -> dict[str, float]:
    """By form, the mean over seeds."""
    found: dict[str, list[float]] = {}
    for seed in range(seeds):
        encoder = with_outliers(gain, seed)
        ids = np.random.default_rng(seed).integers(3, CONFIG.vocab_size, (TEXTS, TOKENS))
        model = build_text_encoder_graph(encoder)
        expected = session(model, threads)(ids)
        compared = dict(forms(model))
        with patch("nextscale.export.text_encoder_graph.channel_factors", lambda weight: torch.ones(weight.shape[1])):
            plain = dict(forms(build_text_encoder_graph(encoder)))
        compared["int8, wo two bytes, columns as they are"] = plain["int8, wo two bytes"]
        for name, form in compared.items():
            difference = session(form, threads)(ids) - expected
            found.setdefault(name, []).append(float(np.linalg.norm(difference) / np.linalg.norm(expected)))
    return {name: float(np.mean(values)) for name, values in found.items()}


def times(rounds: int, threads: int) -> Iterator[str]:
    """Rows of the table of times."""
    model = build_text_encoder_graph(random_t5(TIMED))
    compared = {"float32": model}
    for name, wide in (("wo two bytes", wide_layers(TIMED)), ("wo one byte", [])):
        compared[name] = quantize_text_encoder(model, wide, nearest())
    runs = {name: session(form, threads) for name, form in compared.items()}
    for tokens in TIMED_TOKENS:
        ids = np.random.default_rng(0).integers(3, TIMED.vocab_size, (1, tokens))
        turns = {name: timed(lambda _, run=run, ids=ids: run(ids)) for name, run in runs.items()}
        taken = interleave(turns, repetitions=rounds)
        ratios = [ratio_interval(taken[name], taken["float32"]) for name in list(turns)[1:]]
        cells = [f"{ratio.mean:.2f} [{ratio.low:.2f}, {ratio.high:.2f}]" for ratio in ratios]
        yield f"| {tokens} | {1e3 * float(np.median(taken['float32'])):.0f} ms | {' | '.join(cells)} |"


@click.command()
@click.option("--seeds", type=click.IntRange(1), default=3, show_default=True)
@click.option("--rounds", type=click.IntRange(2), default=20, show_default=True)
@click.option("--threads", type=click.IntRange(1), default=2, show_default=True)
def main(seeds: int, rounds: int, threads: int) -> None:
    """Measure errors and times."""
    torch.set_num_threads(threads)
    by_gain = {gain: errors(gain, seeds, threads) for gain in GAINS}
    publish(
        "text_encoder",
        [
            "# The text encoder in int8",
            "",
            *provenance(threads),
            f"- errors: {CONFIG.depth} blocks, width {CONFIG.embed_dim}, random weights, mean of {seeds} seeds, "
            f"{TEXTS} texts of {TOKENS} tokens; {UNITS} units of wo's input and {CHANNELS} channels with a gain",
            f"- times: 2 blocks of Flan-T5-XL, one text, {rounds} rounds, {ORDER}; times that of float32",
            "",
            f"| error | {' | '.join(f'gain {gain}' for gain in GAINS)} |",
            f"|---|{'---|' * len(GAINS)}",
            *(f"| {name} | {' | '.join(f'{by_gain[gain][name]:.2%}' for gain in GAINS)} |" for name in by_gain[1]),
            "",
            "| tokens | float32 | wo two bytes | wo one byte |",
            "|---|---|---|---|",
            *times(rounds, threads),
        ],
    )


if __name__ == "__main__":
    main()
