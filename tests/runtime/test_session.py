from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
from fake_bundle import read_manifest, write_manifest

from nextscale.runtime import Bundle, BundleError, Generator, NextscaleError, SessionOptions
from nextscale.runtime._session import require_onnxruntime, session_settings


@pytest.mark.parametrize("version", ["1.22.1", "1.9.0", "0.30"])
def test_an_old_onnxruntime_is_refused_with_both_versions(
    version: str, fake_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(onnxruntime, "__version__", version)
    with pytest.raises(NextscaleError, match=f"onnxruntime {version} is too old: bundles need 1.23 or later"):
        Generator(fake_bundle).load("decoder")


def test_the_onnxruntime_that_crashes_in_containers_is_refused(
    fake_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(onnxruntime, "__version__", "1.29.0")
    with pytest.raises(
        NextscaleError, match=r"onnxruntime 1\.29\.0 crashes in containers without a shell: pip install"
    ):
        Generator(fake_bundle).load("decoder")


@pytest.mark.parametrize("version", ["1.23.0", "1.29.1", "1.31.1", "1.30.0.dev20261101", "2.0"])
def test_a_later_onnxruntime_is_accepted(version: str) -> None:
    require_onnxruntime(version)


def test_what_is_no_onnx_file_is_refused(damaged: Path) -> None:
    size = (damaged / "decoder.onnx").stat().st_size
    (damaged / "decoder.onnx").write_bytes(b"\xff" * size)
    with pytest.raises(BundleError, match=r"decoder\.onnx: onnxruntime \S+ cannot load it: ") as caught:
        Generator(damaged).load("decoder")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("name", "g_hat", None),
        (
            "shape",
            ["B", 4, 3, 3],
            'input "f_hat": the manifest says float32 [B, 4, 3, 3], the file float32 [B, 2, 3, 3]',
        ),
        ("shape", ["B", 2], 'input "f_hat": the manifest says float32 [B, 2]'),
    ],
)
def test_a_graph_that_is_not_the_manifests_is_refused(
    damaged: Path, key: str, value: object, message: str | None
) -> None:
    manifest = read_manifest(damaged)
    manifest["graphs"]["decoder"]["inputs"][0][key] = value
    write_manifest(damaged, manifest)
    with pytest.raises(BundleError) as caught:
        Generator(damaged).load("decoder")
    assert message is None or message in str(caught.value)


def test_another_bundles_graph_is_refused(damaged: Path) -> None:
    manifest = read_manifest(damaged)
    manifest["graphs"]["generate"]["variants"]["stock"]["file"] = "stage.onnx"
    write_manifest(damaged, manifest)
    with pytest.raises(BundleError, match="not the graph that the manifest describes"):
        Generator(Bundle.open(damaged)).load("generate")


@pytest.mark.parametrize(
    "options",
    [
        SessionOptions(threads=1),
        SessionOptions(spinning=False),
        SessionOptions(memory_arena=False),
        SessionOptions(return_memory=True),
        SessionOptions(keep_text_encoder=False),
    ],
    ids=str,
)
def test_options_do_not_change_the_tokens(fake_bundle: Path, generator: Generator, options: SessionOptions) -> None:
    tokens = Generator(fake_bundle, options).generate([1], seed=9).token_maps
    assert (tokens == generator.generate([1], seed=9).token_maps).all()


@pytest.mark.parametrize(
    ("threads", "spinning", "expected"),
    [(0, True, "1"), (3, True, "1"), (3, False, "0"), (4, True, "0"), (1024, True, "0")],
)
def test_more_threads_than_cpus_do_not_spin(
    threads: int, spinning: bool, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("nextscale.runtime._session.logical_cpus", lambda: 3)
    monkeypatch.setattr("nextscale.runtime._session.default_threads", lambda: 2)
    settings = session_settings(SessionOptions(threads=threads, spinning=spinning))
    assert settings.get_session_config_entry("session.intra_op.allow_spinning") == expected


@pytest.mark.parametrize("threads", [-1, 5000])
def test_threads_out_of_range_are_refused(threads: int) -> None:
    with pytest.raises(NextscaleError, match=f"threads {threads} is out of range"):
        SessionOptions(threads=threads)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"threads": "1"}, "threads '1': expected an integer"),
        ({"threads": True}, "threads True: expected an integer"),
        ({"threads": 1.0}, "threads 1.0: expected an integer"),
        ({"threads": 1025}, "threads 1025 is out of range: expected 1 to 1024, or 0 for all cores"),
        ({"spinning": "no"}, "spinning 'no': expected True or False"),
        ({"memory_arena": 0}, "memory_arena 0: expected True or False"),
        ({"profile": None}, "profile None: expected the beginning of a file's path"),
        ({"profile": "a\0b"}, r"profile 'a\x00b': expected the beginning of a file's path"),
        ({"profile": "/none/a"}, "profile '/none/a': no folder that can be written: /none"),
    ],
    ids=str,
)
def test_options_of_another_type_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(NextscaleError) as caught:
        SessionOptions(**options)
    assert str(caught.value) == message


def test_options_of_numpy_are_taken(fake_bundle: Path) -> None:
    options = SessionOptions(threads=np.int64(1), spinning=np.False_)  # type: ignore[arg-type]
    assert len(Generator(fake_bundle, options).generate([0]).images) == 1
