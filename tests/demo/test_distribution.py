"""The distribution `nextscale-demo`: what the package gives, what is in its wheel, and what is said without it."""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable
from importlib.resources import as_file
from pathlib import Path

import pytest
from safetensors import safe_open

import nextscale_demo
from nextscale.demo.emoji.bundle import demo_source as emoji_source
from nextscale.demo.emoji.configuration import EMOJI
from nextscale.demo.train_tokenizer import DEMO_VQVAE
from nextscale.demo.train_transformer import DEMO_VAR
from nextscale.evaluate.reference_statistics import read_demo_reference
from nextscale.models.var.sources import demo_digests, demo_source
from nextscale.runtime._errors import NextscaleError

DISTRIBUTION = Path(__file__).parents[2] / "demo" / "nextscale-demo"
# Published weights never change: bundles and figures of docs/results.md are theirs.
SHA256 = {
    "var": "eea2a5c4f26c424fc2567ee1d3b2b2a701c94fdf35b8013fea7bb317b5ef31bf",
    "vae": "738c276d52f1f91b83a83ad50214ca0e373caf9417ba90aed3dc2d900f515e0f",
    "emoji/infinity": "f5bd72f6f2bbc0232d53489be6ce1b8c9433ee46090bacb08e53b076706fdbbd",
    "emoji/vae": "bf375a06f7dcb4b4dcaf8594a817389e42f3bd03fb39989872d4432586e9663f",
    "emoji/text/model": "d116f822e86dd947d77845648d802ee07cce8ee58050eecc44c7e2a9f77c781e",
}


def test_the_weights_are_those_of_the_model_card() -> None:
    source = demo_source("demo")
    assert (source.var.config, source.vqvae.config) == (DEMO_VAR, DEMO_VQVAE)
    for model, name, weights in (
        (source.var, "var", nextscale_demo.VAR),
        (source.vqvae, "vae", nextscale_demo.VAE),
    ):
        assert hashlib.sha256(weights.read_bytes()).hexdigest() == SHA256[name]
        with as_file(weights) as path, safe_open(path, framework="pt") as file:
            assert set(file.keys()) == {name for name, _ in model.named_parameters()}


def test_the_emoji_weights_are_those_of_its_model_card() -> None:
    source, sizes = emoji_source("demo"), []
    assert source.text is not None
    assert (source.infinity.config, source.vae.config) == (EMOJI.models.config, EMOJI.models.vae)
    assert (source.text.encoder.config, source.sizes) == (EMOJI.text, (EMOJI.size,))
    for model, name in (
        (source.infinity, "infinity"),
        (source.vae, "vae"),
        (source.text.encoder, "text/model"),
    ):
        weights = nextscale_demo.EMOJI / f"{name}.safetensors"
        content = weights.read_bytes()
        assert hashlib.sha256(content).hexdigest() == SHA256[f"emoji/{name}"]
        sizes.append(len(content))
        with as_file(weights) as path, safe_open(path, framework="pt") as file:
            assert set(file.keys()) == {name for name, _ in model.named_parameters()}
    assert sum(sizes) < 40e6


def test_class_names() -> None:
    names = nextscale_demo.class_names()
    assert len(names) == len(set(names)) == DEMO_VAR.num_classes == 150
    assert all(name and name.isprintable() and name == name.strip() for name in names)


@pytest.mark.parametrize(
    "call",
    [lambda: demo_source("demo"), demo_digests, lambda: emoji_source("demo"), read_demo_reference],
    ids=["var", "digests", "emoji", "reference"],
)
def test_without_it_one_line_says_what_to_install(call: Callable[[], object], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "nextscale_demo", None)
    with pytest.raises(NextscaleError) as error:
        call()
    assert str(error.value) == ("the demo models are not installed: in a checkout, pip install ./demo/nextscale-demo")


def test_the_wheel(tmp_path: Path) -> None:
    source, out = tmp_path / "source", tmp_path / "wheel"
    ignored = shutil.ignore_patterns("build", "*.egg-info", "__pycache__")
    shutil.copytree(DISTRIBUTION, source, ignore=ignored)
    build = f"from setuptools import build_meta; build_meta.build_wheel({str(out)!r})"
    done = subprocess.run([sys.executable, "-c", build], cwd=source, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    (path,) = out.iterdir()
    assert path.name == "nextscale_demo-0.1.0-py3-none-any.whl"
    assert path.stat().st_size < 80e6
    info = "nextscale_demo-0.1.0.dist-info"
    package = DISTRIBUTION / "nextscale_demo"
    with zipfile.ZipFile(path) as archive:
        names = set(archive.namelist())
        metadata = archive.read(f"{info}/METADATA").decode()
    files = (file.relative_to(package) for file in package.rglob("*") if file.is_file())
    in_package = {f"nextscale_demo/{file.as_posix()}" for file in files if "__pycache__" not in file.parts}
    assert {name for name in names if not name.startswith(info)} == in_package
    assert {f"{info}/licenses/LICENSE", f"{info}/licenses/LICENSE-WEIGHTS", f"{info}/licenses/CREDITS.md"} <= names
    assert "License-Expression: MIT AND LicenseRef-nextscale-demo-weights\n" in metadata
    assert "Requires-Dist" not in metadata
    assert (DISTRIBUTION / "README.md").read_text(encoding="utf-8") in metadata
