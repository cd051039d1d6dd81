"""The peers of the tiny model draw what the reference draws, in processes that keep to the protocol."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny_model import PATCH_NUMS, tiny_source

from nextscale.measure.contender import Contender, Worker
from nextscale.measure.peers import NAMES, peers
from nextscale.measure.peers.contenders import worker_command
from nextscale.measure.peers.host_loop import HostWeights, random_inputs, sample
from nextscale.measure.peers.host_weights import host_weights
from nextscale.measure.peers.setup import environment_packages, set_up
from nextscale.measure.peers.stored_models import digest, load_models, save_models
from nextscale.measure.peers.torch_engine import require_compiler
from nextscale.models.var import reference
from nextscale.models.var.sources import VARSource
from nextscale.runtime._errors import NextscaleError

FLOAT = ("pytorch-fp32", "onnxruntime-fp32")
QUICK = (*FLOAT, "pytorch-bf16", "onnxruntime-int8")
BATCH = 2
SAMPLINGS: tuple[dict[str, Any], ...] = ({"top_k": 1, "top_p": 0.0}, {"top_k": 30, "top_p": 0.96})

Drawn = dict[str, list[dict[str, np.ndarray]]]


@pytest.fixture(scope="module")
def source() -> VARSource:
    return tiny_source()


@pytest.fixture(scope="module")
def work(source: VARSource, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which the quick peers are set up."""
    folder = tmp_path_factory.mktemp("peers")
    assert set_up(source, folder, 1, QUICK) == {}
    return folder


def ask(contender: Contender, *requests: dict[str, Any]) -> list[dict[str, Any]]:
    """What a contender's process says to requests, which may hold more than the protocol's."""
    lines = "".join(json.dumps(request) + "\n" for request in requests)
    environment = {**os.environ, **contender.environment}
    done = subprocess.run(contender.command, input=lines, stdout=subprocess.PIPE, text=True, env=environment)
    return [json.loads(line) for line in done.stdout.splitlines()]


@pytest.fixture(scope="module")
def drawn(source: VARSource, work: Path) -> Drawn:
    """By peer, token_maps and images for each of SAMPLINGS."""
    found = {}
    for contender in peers(source, work, 1, QUICK):
        files = [work.parent / f"{work.name}-{contender.name}-{i}.npz" for i in range(len(SAMPLINGS))]
        requests = [
            {"batch": BATCH, "seed": 3, "save": str(file), **sampling}
            for file, sampling in zip(files, SAMPLINGS, strict=True)
        ]
        replies = ask(contender, *requests)
        assert all("seconds" in reply for reply in replies[1:]), replies
        found[contender.name] = [dict(np.load(file)) for file in files]
    return found


def expected(source: VARSource, **sampling: Any) -> reference.Generation:
    labels, uniforms = random_inputs(host_weights(source.var, source.vqvae), BATCH, 3)
    return reference.generate(
        source.var, source.vqvae, torch.from_numpy(labels), torch.from_numpy(uniforms), cfg_scale=4.0, **sampling
    )


@pytest.mark.parametrize("name", FLOAT)
@pytest.mark.parametrize("case", range(len(SAMPLINGS)), ids=["greedy", "sampled"])
def test_a_float_peer_draws_the_reference(name: str, case: int, source: VARSource, drawn: Drawn) -> None:
    found, wanted = drawn[name][case], expected(source, **SAMPLINGS[case])
    np.testing.assert_array_equal(found["token_maps"], wanted.token_maps)
    # Equal before rounding to about 1e-6, so that a pixel may round the other way.
    difference = np.abs(found["images"].astype(int) - wanted.images.numpy().astype(int))
    assert difference.max() <= 1
    assert difference.mean() < 0.01


@pytest.mark.exact_products
@pytest.mark.parametrize("name", sorted(set(QUICK) - set(FLOAT)))
def test_a_low_precision_peer_stays_near_it(name: str, source: VARSource, drawn: Drawn) -> None:
    found, wanted = drawn[name][0], expected(source, **SAMPLINGS[0])
    # Random logits are near-ties often, and each wrong token changes later ones; chance is 1 in 128.
    assert (found["token_maps"] == wanted.token_maps.numpy()).mean() > 0.3
    np.testing.assert_array_equal(found["token_maps"][:, 0], wanted.token_maps[:, 0])


def test_a_peer_keeps_to_the_protocol(source: VARSource, work: Path) -> None:
    with Worker(peers(source, work, 1, ["onnxruntime-fp32"])[0]) as worker:
        assert worker.load_seconds > 0
        assert set(worker.versions) == {"onnxruntime", "numpy", "python"}
        replies = [worker.request(batch, 7) for batch in (1, 3)]
    assert all(reply.seconds > 0 for reply in replies)
    assert replies[1].peak_memory_bytes >= replies[0].peak_memory_bytes > 10_000_000


def test_setting_up_again_changes_nothing(source: VARSource, work: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in work.rglob("*")}
    assert set_up(source, work, 1, QUICK) == {}
    assert {path: path.stat().st_mtime_ns for path in work.rglob("*")} == before


def test_a_failure_is_one_line(source: VARSource, work: Path) -> None:
    replies = ask(peers(source, work, 1, ["onnxruntime-fp32"])[0], {"batch": 1, "seed": -1})
    assert set(replies[-1]) == {"error"}
    assert "\n" not in replies[-1]["error"]


def test_a_peer_that_is_not_set_up_says_so(source: VARSource, tmp_path: Path) -> None:
    found = peers(source, tmp_path, 1)
    assert [item.name for item in found] == list(NAMES)
    with pytest.raises(NextscaleError, match=r"not set up .*nextscale\.measure\.peers\.setup"), Worker(found[-1]):
        pass


def test_an_unknown_peer_is_refused(source: VARSource, tmp_path: Path) -> None:
    with pytest.raises(NextscaleError, match="no peer 'tensorflow'; the peers are pytorch-fp32"):
        peers(source, tmp_path, 1, ["tensorflow"])


def test_compiling_asks_for_a_compiler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    with pytest.raises(RuntimeError, match=r"C\+\+ compiler .* install g\+\+"):
        require_compiler()


@pytest.mark.parametrize(
    ("cpuinfo", "package"),
    [
        ("vendor_id\t: GenuineIntel\n", "onnxruntime-ep-openvino"),
        ("vendor_id\t: AuthenticAMD\n", "onnxruntime-openvino"),
    ],
)
def test_openvinos_provider_is_the_one_for_this_processor(cpuinfo: str, package: str, tmp_path: Path) -> None:
    (tmp_path / "cpuinfo").write_text(cpuinfo)
    packages = environment_packages("onnxruntime-openvino", tmp_path / "cpuinfo")
    assert sum(item.startswith(f"{package}==") for item in packages) == 1
    others = environment_packages("onnxruntime-openvino", tmp_path / "none")
    assert any(item.startswith("onnxruntime-openvino==") for item in others)
    assert environment_packages("openvino", tmp_path / "cpuinfo") == environment_packages("openvino")


def test_without_openvinos_provider_the_peer_says_so(source: VARSource, work: Path) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    if "OpenVINOExecutionProvider" in onnxruntime.get_available_providers():
        pytest.skip("it is here")
    graphs = dict.fromkeys(("condition", "step", "decoder"), "none.onnx")
    arguments = {"engine": "onnxruntime-openvino", "threads": 1, "host_weights": "none.npz", "precision": "f32"}
    replies = ask(Contender("provider", worker_command(arguments | graphs)))
    assert replies == [
        {
            "error": "this ONNX Runtime has no OpenVINO provider: onnxruntime-ep-openvino and onnxruntime-openvino are "
            "missing"
        }
    ]


def test_a_plug_in_that_offers_nothing_is_named(tmp_path: Path) -> None:
    """As on processors that are not Intel's: the plug-in is a stand-in that registers ONNX Runtime's own devices."""
    package = tmp_path / "onnxruntime_ep_openvino"
    package.mkdir()
    (package / "__init__.py").write_text("def get_library_path():\n    return 'none.so'\n")
    metadata = tmp_path / "onnxruntime_ep_openvino-7.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: onnxruntime-ep-openvino\nVersion: 7\n")
    code = (
        f"import sys; sys.path.insert(0, {str(tmp_path)!r}); import onnxruntime; "
        "onnxruntime.register_execution_provider_library = print; "
        "from nextscale.measure.peers.onnxruntime_openvino_engine import OnnxRuntimeOpenVinoEngine; "
        "OnnxRuntimeOpenVinoEngine([], 1, 'f32')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert "RuntimeError: onnxruntime-ep-openvino 7 offers no device on" in done.stderr
    assert "it takes Intel's processors alone; onnxruntime-openvino takes others" in done.stderr


def test_pytorchs_int8_where_torchao_is_installed(source: VARSource, tmp_path: Path) -> None:
    pytest.importorskip("torchao")
    from nextscale.measure.peers.host_loop import generate
    from nextscale.measure.peers.torch_int8_engine import TorchInt8Engine
    from nextscale.measure.peers.torch_quantize import main

    save_models(source.var, source.vqvae, tmp_path)
    host_weights(source.var, source.vqvae).save(tmp_path / "host.npz")
    files = {"models": str(tmp_path), "host_weights": str(tmp_path / "host.npz"), "out": str(tmp_path)}
    main(files | {"threads": 1, "images": 2})
    engine = TorchInt8Engine(tmp_path, 1)
    found = generate(engine, host_weights(source.var, source.vqvae), BATCH, 3, top_k=1, top_p=0.0)
    assert (found.token_maps == expected(source, top_k=1).token_maps.numpy()).mean() > 0.3


def test_openvino_where_it_is_installed(source: VARSource, tmp_path: Path) -> None:
    pytest.importorskip("openvino")
    from nextscale.measure.peers.exported_graphs import export_graphs
    from nextscale.measure.peers.host_loop import generate
    from nextscale.measure.peers.openvino_engine import OpenVinoEngine

    export_graphs(source.var, source.vqvae, tmp_path, lambda line: None)
    graphs = [tmp_path / f"{name}.onnx" for name in ("condition", "step", "decoder")]
    engine = OpenVinoEngine(graphs, 1, "f32")
    found = generate(engine, host_weights(source.var, source.vqvae), BATCH, 3, top_k=1, top_p=0.0)
    np.testing.assert_array_equal(found.token_maps, expected(source, top_k=1).token_maps)


@pytest.mark.parametrize("seed", range(5))
def test_sampling_is_the_references(seed: int) -> None:
    generator = np.random.default_rng(seed)
    logits = generator.normal(scale=2.5, size=(200, 64)).astype(np.float32)
    uniforms = generator.random(200, np.float32)
    for top_k, top_p in ((0, 0.0), (1, 0.0), (20, 0.0), (0, 0.7), (20, 0.9)):
        found = sample(logits, uniforms, top_k, top_p)
        wanted = reference.sample(torch.from_numpy(logits), torch.from_numpy(uniforms), top_k, top_p)
        np.testing.assert_array_equal(found, wanted, err_msg=f"seed {seed}, top_k {top_k}, top_p {top_p}")


def test_host_weights_survive_a_file(source: VARSource, tmp_path: Path) -> None:
    weights = host_weights(source.var, source.vqvae)
    weights.save(tmp_path / "host.npz")
    loaded = HostWeights.load(tmp_path / "host.npz")
    np.testing.assert_array_equal(loaded.patch_nums, PATCH_NUMS)
    np.testing.assert_array_equal(loaded.phi_weight, weights.phi_weight)


def test_models_survive_a_file(source: VARSource, tmp_path: Path) -> None:
    save_models(source.var, source.vqvae, tmp_path)
    var, vqvae = load_models(tmp_path)
    assert digest(var, vqvae) == digest(source.var, source.vqvae)
    assert not torch.equal(var.head.weight, tiny_source(seed=1).var.head.weight)
    assert digest(*load_models(tmp_path)) != digest(tiny_source(seed=1).var, source.vqvae)


def test_workers_do_not_need_what_nextscale_needs() -> None:
    """The loop runs in environments without torch and onnxruntime."""
    code = (
        "import sys; sys.modules |= dict.fromkeys(('torch', 'onnxruntime', 'onnx', 'click')); "
        "import nextscale.measure.peers.worker"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
