"""The built wheel and sdist: what is in them, and that the runtime needs none of the export's packages.

An editable install hides what a wheel leaves out, so the wheel is built from a copy of the sources and run alone.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from pathlib import Path

import pytest
from saturating import without_warning

from nextscale import __version__

ROOT = Path(__file__).parents[1]
# Folders of the distribution, and where they lie in the repository.
ROOMS = (
    "calib_data",
    "cli",
    "compiler",
    "demo",
    "demo/emoji",
    "evaluate",
    "export",
    "export/infinity",
    "export/var",
    "foreign",
    "graph_passes",
    "measure",
    "measure/peers",
    "models",
    "models/infinity",
    "models/t5",
    "models/var",
    "paper",
    "report",
    "runtime",
    "simulation",
)
PACKAGES = {"nextscale": "nextscale", **{f"nextscale/{room}": room for room in ROOMS}}
DATA = ("py.typed", ".json")
WITH_DATA = ("nextscale", "nextscale/demo/emoji", "nextscale/paper")
MAX_BYTES = 1.2e6
# A stand-in for an install without the extra `export`: its packages cannot be imported.
RUN = """
import sys
class Forbidden:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("torch", "onnx", "onnxscript", "onnx_ir", "safetensors"):
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
sys.meta_path.insert(0, Forbidden())
sys.path.insert(0, {wheel!r})  # before an editable install
import nextscale
assert nextscale.__file__.startswith({wheel!r}), nextscale.__file__
from nextscale.cli.main import main
sys.exit(main(sys.argv[1:]))
"""


@pytest.fixture(scope="session")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy, so that no older build's files get in and none are left here."""
    ignored = shutil.ignore_patterns(".*", "build", "out", "__pycache__", "*.egg-info", "*.safetensors")
    return shutil.copytree(ROOT, tmp_path_factory.mktemp("source"), ignore=ignored, dirs_exist_ok=True)


def built(sources: Path, what: str, out: Path) -> Path:
    """A "wheel" or an "sdist" of the sources, made without network."""
    build = f"from setuptools import build_meta; build_meta.build_{what}({str(out)!r})"
    done = subprocess.run([sys.executable, "-c", build], cwd=sources, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    (path,) = out.iterdir()
    return path


@pytest.fixture(scope="session")
def wheel(sources: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return built(sources, "wheel", tmp_path_factory.mktemp("wheel"))


@pytest.fixture(scope="session")
def unpacked(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("unpacked")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder)
    return folder


def run(unpacked: Path, *arguments: object) -> subprocess.CompletedProcess[str]:
    """The command from the wheel, in a process where the export's packages are missing."""
    command = [sys.executable, "-c", RUN.format(wheel=str(unpacked)), *map(str, arguments)]
    return subprocess.run(command, cwd=unpacked, capture_output=True, text=True, check=False)


def test_every_module_is_in_it_and_no_weights(wheel: Path) -> None:
    expected = {
        f"{package}/{path.name}"
        for package, folder in PACKAGES.items()
        for path in (ROOT / folder).iterdir()
        if path.suffix == ".py" or (package in WITH_DATA and path.name.endswith(DATA))
    }
    expected.add("nextscale/evaluate/imagenet_classes.txt")
    for folder in ("graph_passes/recipes", "paper/recipes", "paper/statistics"):
        expected |= {f"nextscale/{folder}/{path.name}" for path in (ROOT / folder).iterdir()}
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if ".dist-info/" not in name}
    assert names == expected
    assert wheel.stat().st_size < MAX_BYTES


@pytest.fixture(scope="session")
def unpacked_sdist(sources: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sdist")
    with tarfile.open(built(sources, "sdist", folder)) as archive:
        archive.extractall(folder, filter="data")
    return folder / f"nextscale-{__version__}"


def test_an_sdist_builds_the_same_wheel(unpacked_sdist: Path, wheel: Path, tmp_path: Path) -> None:
    again = built(unpacked_sdist, "wheel", tmp_path / "wheel")
    contents = []
    for path in (wheel, again):
        with zipfile.ZipFile(path) as archive:
            contents.append({name: archive.read(name) for name in archive.namelist()})
    assert contents[0] == contents[1]


def test_an_sdist_holds_what_its_readme_links_to(unpacked_sdist: Path) -> None:
    links = re.findall(r"\]\(([^)#\s]+)", (unpacked_sdist / "README.md").read_text(encoding="utf-8"))
    relative = {link for link in links if "://" not in link}
    assert relative
    assert [link for link in sorted(relative) if not (unpacked_sdist / link).exists()] == []


def test_its_metadata(wheel: Path) -> None:
    assert wheel.name == f"nextscale-{__version__}-py3-none-any.whl"
    with zipfile.ZipFile(wheel) as archive:
        info = f"nextscale-{__version__}.dist-info"
        metadata = archive.read(f"{info}/METADATA").decode()
        assert "nextscale = nextscale.cli.program:run" in archive.read(f"{info}/entry_points.txt").decode()
        assert [name for name in archive.namelist() if "LICENSE" in name] == [f"{info}/licenses/LICENSE"]
    assert [line for line in metadata.splitlines() if line.startswith("License")] == [
        "License-Expression: MIT",
        "License-File: LICENSE",
    ]
    base = [line for line in metadata.splitlines() if line.startswith("Requires-Dist:") and "extra" not in line]
    names = {re.match(r"[\w-]+", line.split()[1])[0] for line in base}
    assert names == {"numpy", "onnxruntime", "click", "rich", "pillow"}


def test_generate_without_torch_or_onnx(unpacked: Path, int8_bundle: Path, tmp_path: Path) -> None:
    out = tmp_path / "sheet.png"
    done = run(unpacked, "generate", int8_bundle, "--class", "class 3", "--out", out, "--threads", 1)
    assert (done.returncode, without_warning(done.stderr)) == (0, "")
    assert done.stdout == f"{out}\n"
    assert out.read_bytes().startswith(b"\x89PNG")


def test_verify_without_torch_or_onnx(unpacked: Path, int8_bundle: Path) -> None:
    done = run(unpacked, "verify", int8_bundle, "--threads", 1, "--ops", "stock")
    assert (done.returncode, without_warning(done.stderr)) == (0, "")
    checks = [line.split(":")[0].split() for line in done.stdout.splitlines()]
    assert checks == [["ok", name] for name in ("files", "contract", "logits", "tokens", "encoder", "streaming")], (
        done.stdout
    )


def test_inspect_without_torch_or_onnx(unpacked: Path, int8_bundle: Path) -> None:
    done = run(unpacked, "inspect", int8_bundle, "--json")
    assert (done.returncode, without_warning(done.stderr)) == (0, "")
    assert json.loads(done.stdout)["name"] == "tiny"


def test_pip_installs_it_into_a_clean_environment(wheel: Path, fake_bundle: Path, tmp_path: Path) -> None:
    """As README says, but with the dependencies of this environment."""
    environment, out = tmp_path / "environment", tmp_path / "penguin.png"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", environment], check=True)
    pip = [sys.executable, "-m", "pip", "--python", environment / "bin" / "python", "install", "--quiet"]
    subprocess.run([*pip, "--no-deps", "--no-index", wheel], check=True)
    variables = {"PYTHONPATH": sysconfig.get_path("purelib")}  # whose .pth of an editable install counts for nothing
    command = [environment / "bin" / "nextscale", "generate", fake_bundle, "--class", "goldfish", "--out", out]
    done = subprocess.run(command, cwd=tmp_path, env=variables, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, f"{out}\n"), done.stderr
    where = "import nextscale.runtime; print(nextscale.runtime.__file__)"
    python = [environment / "bin" / "python", "-c", where]
    found = subprocess.run(python, cwd=tmp_path, env=variables, capture_output=True, text=True, check=True)
    assert Path(found.stdout).is_relative_to(environment)


def test_build_without_the_extra_says_what_to_install(unpacked: Path, tmp_path: Path) -> None:
    done = run(unpacked, "build", "demo", "--out", tmp_path / "bundle")
    assert done.returncode == 2
    assert done.stderr.startswith("error: this command needs ")
    assert done.stderr.endswith('which is not installed: pip install "nextscale[export]"\n')
    assert not list(tmp_path.iterdir())
