import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from fake_bundle import PATCH_NUMS

from nextscale.measure.bundle_contender import FORMS, bundle_contender
from nextscale.measure.contender import Worker
from nextscale.runtime import Bundle, NextscaleError, SessionOptions


@pytest.mark.parametrize("form", FORMS)
def test_a_bundle_is_served(fake_bundle: Path, form: str) -> None:
    bundle, options = Bundle.open(fake_bundle), SessionOptions(threads=1)
    ballast = bytearray(300_000_000)
    ballast[::4096] = b"1" * len(ballast[::4096])  # this process's peak must not count
    with Worker(bundle_contender("it", bundle, form, options)) as worker:
        first, second = worker.request(1, 0), worker.request(2, 1)
    assert 0 < worker.load_seconds < 60
    assert 0 < first.seconds < 60
    assert len(first.stage_seconds) == (len(PATCH_NUMS) if form == "streaming" else 0)
    if form == "streaming":
        assert first.decoder_seconds is not None
        assert sum(first.stage_seconds) + first.decoder_seconds == pytest.approx(first.seconds)
    assert 20e6 < first.peak_memory_bytes <= second.peak_memory_bytes < 250e6
    assert worker.versions.keys() == {"nextscale", "onnxruntime", "numpy", "python"}


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="needs Linux")
def test_a_bundle_keeps_to_its_cpus(fake_bundle: Path) -> None:
    cpu = sorted(os.sched_getaffinity(0))[-1]
    with Worker(bundle_contender("it", Bundle.open(fake_bundle), "generate", cpus=[cpu])) as worker:
        assert os.sched_getaffinity(worker._process.pid) == {cpu}


def test_a_profile_is_written_at_the_end(fake_bundle: Path, tmp_path: Path) -> None:
    options = SessionOptions(threads=1, profile=str(tmp_path / "profile"))
    with Worker(bundle_contender("it", Bundle.open(fake_bundle), "generate", options)) as worker:
        worker.request(1, 0)
    (path,) = tmp_path.iterdir()
    assert any(event["name"] == "model_run" for event in json.loads(path.read_text()))


def test_a_bundle_without_its_graph_is_one_line(damaged: Path) -> None:
    bundle = Bundle.open(damaged)
    (damaged / "generate.onnx").unlink()
    with (
        pytest.raises(NextscaleError, match=r"^it: .*generate\.onnx: the file is missing"),
        Worker(bundle_contender("it", bundle)),
    ):
        pass


def test_the_process_needs_neither_torch_nor_onnx() -> None:
    code = (
        "import sys; sys.modules |= dict.fromkeys(('torch', 'onnx', 'onnxscript', 'onnx_ir', 'safetensors', 'click')); "
        "import nextscale.measure._bundle_worker"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_bundle_is_found_from_another_folder(fake_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Opened by a relative path, before this process went elsewhere."""
    monkeypatch.chdir(fake_bundle.parent)
    bundle = Bundle.open(fake_bundle.name)
    monkeypatch.chdir("/")
    with Worker(bundle_contender("moved", bundle, options=SessionOptions(threads=1))) as worker:
        assert worker.request(1, 0).seconds > 0
