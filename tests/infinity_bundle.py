"""A float32 bundle of a tiny Infinity, its VAE and a tiny ByT5, made by hand of the graphs."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tiny_model import ONE_THREAD

from nextscale.export.bundle_writer import BundleInfo, complete_manifest, write_graphs, write_manifest
from nextscale.export.generate_graph import build_generate_graph
from nextscale.export.infinity.decoder_graph import build_decoder_graph
from nextscale.export.infinity.stage_graph import build_stage_graph
from nextscale.export.text_encoder_graph import build_text_encoder_graph
from nextscale.graph_passes.tile_attention import tile_attention
from nextscale.models.infinity.bsq_vae import BSQVAE, BSQVAEConfig
from nextscale.models.infinity.random_vae import random_bsq_vae
from nextscale.models.infinity.schedules import first_stages
from nextscale.models.infinity.sources import InfinitySource
from nextscale.models.infinity.transformer import Infinity
from nextscale.models.t5.encoder import T5Config
from nextscale.models.t5.random_weights import random_t5
from nextscale.models.t5.text_source import TextSource
from nextscale.runtime import Generator, ModelInfo
from nextscale.runtime._infinity_request import infinity_request
from nextscale.runtime._manifest import TokenizerInfo
from nextscale.runtime._sizes import SizeInfo
from nextscale.runtime._texts import probe_features
from tests.tiny_infinity import CONFIG, tiny_infinity

# 64 x 48, 32 x 32 and 64 x 64 pixels.
SIZES = [first_stages(4, (4, 3)), first_stages(2, (1, 1)), first_stages(3, (1, 1))]
VAE = BSQVAEConfig(latent_channels=CONFIG.latent_channels, ch=32, ch_mult=(1, 1, 1, 1, 1), num_res_blocks=1)
TEXT = T5Config(384, CONFIG.text_channels, depth=1, num_heads=2, head_dim=8, hidden_dim=24)
MAX_SCORES = 500  # so few that there are several parts of queries
PROMPTS = ["fox", "a"]  # ByT5 has a token for each byte, and the end; the model's texts have six at most


def tiny_vae() -> BSQVAE:
    return random_bsq_vae(VAE)


def write_infinity_bundle(folder: Path, infinity: Infinity | None = None, *, text_encoder: bool = True) -> Path:
    """Write it; its verify tokens are what it generates.

    Args:
        folder: must not exist.
        infinity: the model; None: the tiny one.
        text_encoder: without it there is no tokenizer either, and verify has features of a formula.
    """
    infinity = infinity or tiny_infinity()
    sizes, max_text = tuple(SizeInfo(**asdict(size)) for size in SIZES), infinity.config.max_text
    request = infinity_request(CONFIG.token_bits, CONFIG.text_channels, max_text, patchify=CONFIG.patchify)
    stage, decoder = tile_attention(build_stage_graph(infinity, SIZES), MAX_SCORES), build_decoder_graph(tiny_vae())
    models = {
        "generate": build_generate_graph(stage, decoder, SIZES[0].num_stages, request, sizes),
        "stage": stage,
        "decoder": decoder,
        **({"text_encoder": build_text_encoder_graph(random_t5(TEXT))} if text_encoder else {}),
    }
    info = ModelInfo(
        0, sizes[0].stage_sizes, sizes[0].image_size, 2, CONFIG.depth, CONFIG.embed_dim, CONFIG.num_heads,
        CONFIG.latent_channels, sizes[0].latent_size,
    )  # fmt: skip
    bundle = BundleInfo(
        "tiny", "infinity", info, request, {"name": "fp32"}, None, "MIT", "# Card\n", sizes,
        TokenizerInfo("bytes", max_text) if text_encoder else None,
    )  # fmt: skip
    folder.mkdir()
    write_graphs(folder, models)
    settings = {"cfg_scale": 3.0, "top_p": 1e-6}
    values = info.num_tokens * CONFIG.token_bits
    lengths = [len(prompt) + 1 for prompt in PROMPTS]
    texts = {"prompts": PROMPTS} if text_encoder else {"text_lengths": lengths}
    verify = {"seed": 0, "inputs": settings, **texts, "token_maps": [[0] * values] * len(PROMPTS)}
    write_manifest(folder, models, bundle, verify)
    request = {"prompts": PROMPTS, "inputs": settings}
    if not text_encoder:
        request = {"inputs": {**settings, "text_features": probe_features(lengths, CONFIG.text_channels)}}
    found = Generator(folder, ONE_THREAD).generate(seed=0, **request)  # type: ignore[arg-type]
    token_maps = np.reshape(found.token_maps, (len(PROMPTS), values)).tolist()
    complete_manifest(folder, token_maps, None, bundle.recipe, bundle.card)
    return folder


def write_shifted_bundles(folder: Path, shift: float) -> None:
    """Into a folder: fp32; shifted, whose log-odds are larger by so much; features, fp32 without a text encoder."""
    model = tiny_infinity(replace(CONFIG, max_text=128))
    write_infinity_bundle(folder / "fp32", model)
    write_infinity_bundle(folder / "features", model, text_encoder=False)
    with torch.no_grad():
        model.head.bias[1::2] += shift  # type: ignore[index, operator]
    write_infinity_bundle(folder / "shifted", model)


def tiny_infinity_source(**options: Any) -> InfinitySource:
    """The same models to build from, but for texts of up to 64 tokens; `options` are further fields."""
    config = replace(CONFIG, max_text=64)
    text = TextSource(random_t5(TEXT), TokenizerInfo("bytes", config.max_text))
    given = {"text": text, "prompts": ("a red apple", "fog", "two dogs in a field"), "licence": "MIT"} | options
    return InfinitySource(tiny_infinity(config), tiny_vae(), tuple(SIZES), "tiny", "For tests.", **given)
