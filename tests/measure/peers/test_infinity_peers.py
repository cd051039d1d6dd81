"""The peers of a tiny Infinity draw what the reference draws, as VAR's do (`test_peers`)."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from infinity_bundle import tiny_infinity_source
from tiny_infinity import CONFIG, tiny_infinity

from nextscale.measure.contender import Worker
from nextscale.measure.peers import INFINITY_NAMES, peers
from nextscale.measure.peers.contenders import PeerFolder
from nextscale.measure.peers.infinity_graphs import host_weights
from nextscale.measure.peers.infinity_loop import InfinityHostWeights, generate, random_inputs, sample_bits
from nextscale.measure.peers.infinity_torch_engine import load_bfloat16
from nextscale.measure.peers.onnxruntime_engine import OnnxRuntimeEngine
from nextscale.measure.peers.peer_model import peer_model
from nextscale.measure.peers.setup import set_up
from nextscale.measure.random_request import TEXT_TOKENS, Subject, random_request
from nextscale.models.infinity import reference
from nextscale.models.infinity.presets import get_preset
from nextscale.models.infinity.schedules import first_stages
from nextscale.models.infinity.sources import InfinitySource
from nextscale.models.infinity.transformer import Infinity
from nextscale.runtime import Bundle
from nextscale.runtime._errors import NextscaleError

QUICK = ("onnxruntime-fp32", "onnxruntime-int8", "pytorch-bf16")
BATCH, TEXT = 2, 5
SAMPLINGS = ({"top_p": 0.5}, {"top_p": 0.97, "cfg_scale": 2.0, "tau": 0.7})
IDS = ("greedy", "sampled")


@pytest.fixture(scope="module")
def source() -> InfinitySource:
    return tiny_infinity_source()


@pytest.fixture(scope="module")
def work(source: InfinitySource, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("peers")
    assert set_up(source, folder, 1, QUICK) == {}
    return folder


def expected(source: InfinitySource, sampling: dict[str, float]) -> reference.Generation:
    size = source.sizes[0]
    features, uniforms = random_inputs(host_weights(source.infinity, size), BATCH, 3, TEXT)
    tensors = torch.from_numpy(features), torch.from_numpy(uniforms)
    return reference.generate(source.infinity, size, *tensors, **({"cfg_scale": 3.0, "tau": 0.5} | sampling))


def drawn(name: str, source: InfinitySource, work: Path, file: Path, sampling: dict[str, float]) -> dict[str, Any]:
    (contender,) = peers(source, work, 1, [name])
    with Worker(contender) as worker:
        reply = worker.request(BATCH, 3, text_tokens=TEXT, save=str(file), **sampling)
    assert reply.seconds > 0
    return dict(np.load(file))


@pytest.mark.parametrize("sampling", SAMPLINGS, ids=IDS)
def test_the_exported_graphs_draw_the_reference(
    source: InfinitySource, work: Path, tmp_path: Path, sampling: dict[str, float]
) -> None:
    found, wanted = drawn("onnxruntime-fp32", source, work, tmp_path / "it.npz", sampling), expected(source, sampling)
    np.testing.assert_array_equal(found["token_maps"], wanted.bits)
    pictures = (source.vae.decode(wanted.f_hat).permute(0, 2, 3, 1).numpy() + 1) * 127.5
    # Equal before rounding to about 1e-6, so that a pixel may round the other way.
    assert np.abs(found["images"] - pictures).max() <= 0.51


@pytest.mark.exact_products
@pytest.mark.parametrize("name", ["onnxruntime-int8", "pytorch-bf16"])
def test_a_low_precision_peer_stays_near_it(name: str, source: InfinitySource, work: Path, tmp_path: Path) -> None:
    found, wanted = drawn(name, source, work, tmp_path / "it.npz", SAMPLINGS[0]), expected(source, SAMPLINGS[0])
    # Log-odds of random models are near 0 often, and a wrong bit changes later ones; chance is 1 in 2.
    assert (found["token_maps"] == wanted.bits.numpy()).mean() > 0.75


def test_linear_layers_are_stored_in_bfloat16(source: InfinitySource, work: Path) -> None:
    place = PeerFolder.of(peer_model(source), work)
    infinity, vae = load_bfloat16(place.models)
    assert infinity.blocks[0].ffn.fc1.weight.dtype == vae.decoder.conv_in.weight.dtype == torch.bfloat16
    assert torch.equal(infinity.lvl_embed.weight, source.infinity.lvl_embed.weight)
    error = (infinity.head.weight.float() - source.infinity.head.weight).abs()
    assert (error <= 2**-8 * source.infinity.head.weight.abs()).all()


def test_features_are_those_that_bundles_get(source: InfinitySource, fake_text_bundle: Path) -> None:
    weights = replace(host_weights(source.infinity, source.sizes[0]), cfg_uncond=np.zeros((64, 8), np.float32))
    request = random_request(Bundle.open(fake_text_bundle).manifest, BATCH, 3, Subject())
    features, _ = random_inputs(weights, BATCH, 3, TEXT_TOKENS)
    np.testing.assert_array_equal(features, request["inputs"]["text_features"])


def test_host_weights_survive_a_file(source: InfinitySource, tmp_path: Path) -> None:
    weights = host_weights(source.infinity, source.sizes[0])
    weights.save(tmp_path / "host.npz")
    loaded = InfinityHostWeights.load(tmp_path / "host.npz")
    np.testing.assert_array_equal(loaded.latent_size, source.sizes[0].latent_size)
    np.testing.assert_array_equal(loaded.up, weights.up)


@pytest.mark.parametrize("top_p", [0.0, 0.5, 0.97, 1.0])
def test_sampling_is_the_references(top_p: float) -> None:
    rng = np.random.default_rng(0)
    log_odds = rng.normal(scale=3, size=(500, 8)).astype(np.float32)
    log_odds[:8] = 0
    uniforms = rng.random((500, 8), np.float32)
    wanted = reference.sample_bits(torch.from_numpy(log_odds), torch.from_numpy(uniforms), top_p)
    np.testing.assert_array_equal(sample_bits(log_odds, uniforms, top_p), wanted)


def test_openvino_where_it_is_installed(source: InfinitySource, work: Path) -> None:
    pytest.importorskip("openvino")
    from nextscale.measure.peers.openvino_engine import OpenVinoEngine

    place = PeerFolder.of(peer_model(source), work)
    engine = OpenVinoEngine([place.exported / f"{name}.onnx" for name in ("condition", "step", "decoder")], 1, "f32")
    weights = host_weights(source.infinity, source.sizes[0])
    found = generate(engine, weights, BATCH, 3, text_tokens=TEXT, top_p=0.5)
    np.testing.assert_array_equal(found.token_maps, expected(source, SAMPLINGS[0]).bits)


def test_a_level_embedding_before_later_blocks_is_exported(tmp_path: Path) -> None:
    config = replace(CONFIG, max_text=64, level_blocks=(0, 1))
    source = replace(tiny_infinity_source(), infinity=tiny_infinity(config))
    peer_model(source).export(tmp_path, lambda line: None)
    engine = OnnxRuntimeEngine([tmp_path / f"{name}.onnx" for name in ("condition", "step", "decoder")], 1)
    weights = InfinityHostWeights.load(tmp_path / "host.npz")
    found = generate(engine, weights, BATCH, 3, text_tokens=TEXT, top_p=0.5)
    np.testing.assert_array_equal(found.token_maps, expected(source, SAMPLINGS[0]).bits)


def test_peers_that_infinity_does_not_have_are_refused(source: InfinitySource, tmp_path: Path) -> None:
    assert [item.name for item in peers(source, tmp_path, 1)] == list(INFINITY_NAMES)
    with pytest.raises(NextscaleError, match="no peer 'torch-compile-bf16'; the peers are pytorch-bf16"):
        peers(source, tmp_path, 1, ["torch-compile-bf16"])


def test_a_model_of_patches_has_no_peers() -> None:
    with torch.device("meta"):
        infinity = Infinity(replace(get_preset("infinity-8b").config, depth=1))
    source = replace(tiny_infinity_source(), infinity=infinity, sizes=(first_stages(2, (1, 1), patchify=True),))
    with pytest.raises(NextscaleError, match="tiny: peers are made of VAR, and of Infinity"):
        peer_model(source)
