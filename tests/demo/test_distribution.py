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
from nextscale.demo.train_tokenizer import DEMO_VQVAE
from nextscale.demo.train_transformer import DEMO_VAR
from nextscale.evaluate.reference_statistics import read_demo_reference
from nextscale.models.var.sources import demo_source
from nextscale.runtime._errors import NextscaleError

DISTRIBUTION = Path(__file__).parents[2] / "demo" / "nextscale-demo"
# Published weights never change: bundles and figures of docs/results.md are theirs.
SHA256 = {
    "var": "eea2a5c4f26c424fc2567ee1d3b2b2a701c94fdf35b8013fea7bb317b5ef31bf",
    "vae": "738c276d52f1f91b83a83ad50214ca0e373caf9417ba90aed3dc2d900f515e0f",
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


def test_class_names() -> None:
    names = nextscale_demo.class_names()
    assert len(names) == len(set(names)) == DEMO_VAR.num_classes == 150
    assert all(name and name.isprintable() and name == name.strip() for name in names)


@pytest.mark.parametrize("call", [lambda: demo_source("demo"), read_demo_reference], ids=["model", "reference"])
def test_without_it_one_line_says_what_to_install(call: Callable[[], object], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "nextscale_demo", None)
    with pytest.raises(NextscaleError) as error:
        call()
    assert str(error.value) == ("the demo model is not installed: in a checkout, pip install ./demo/nextscale-demo")


def test_the_wheel(tmp_path: Path) -> None:
    source, out = tmp_path / "source", tmp_path / "wheel"
    ignored = shutil.ignore_patterns("build", "*.egg-info", "__pycache__")
    shutil.copytree(DISTRIBUTION, source, ignore=ignored)
    build = f"from setuptools import build_meta; build_meta.build_wheel({str(out)!r})"
    done = subprocess.run([sys.executable, "-c", build], cwd=source, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    (path,) = out.iterdir()
    assert path.name == "nextscale_demo-0.1.0-py3-none-any.whl"
    assert path.stat().st_size < 40e6
    info = "nextscale_demo-0.1.0.dist-info"
    package = DISTRIBUTION / "nextscale_demo"
    with zipfile.ZipFile(path) as archive:
        names = set(archive.namelist())
        metadata = archive.read(f"{info}/METADATA").decode()
    in_package = {f"nextscale_demo/{file.name}" for file in package.iterdir() if file.name != "__pycache__"}
    assert {name for name in names if not name.startswith(info)} == in_package
    assert {f"{info}/licenses/LICENSE", f"{info}/licenses/LICENSE-WEIGHTS"} <= names
    assert "License-Expression: MIT AND LicenseRef-nextscale-demo-weights\n" in metadata
    assert "Requires-Dist" not in metadata
    assert (DISTRIBUTION / "model_card.md").read_text(encoding="utf-8") in metadata
