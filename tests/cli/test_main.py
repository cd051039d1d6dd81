import io
import os
import shutil
import subprocess
import sys
import types
from pathlib import Path

import pytest
from fake_bundle import read_manifest, write_manifest

from nextscale import __version__
from nextscale.cli.main import COMMANDS, main

RUN = "import sys; sys.path[:] = {path!r}; from nextscale.cli.main import main; sys.exit(main({arguments!r}))"


def command_line(*arguments: object) -> list[str]:
    """The command in a process of its own."""
    return [sys.executable, "-c", RUN.format(path=sys.path, arguments=[str(item) for item in arguments])]


def test_help_lists_the_commands_without_importing_them(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    out = capsys.readouterr().out
    assert all(f"  {name}" in out for name in COMMANDS)


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert __version__ in capsys.readouterr().out


def test_no_command_shows_the_help_as_an_error(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "Commands:" in captured.err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["generat"], "No such command 'generat'"),
        (["generate"], "Missing argument 'DIR' (see `nextscale generate --help`)"),
        (["generate", "x", "--sed", "1"], "No such option"),
        (["bench"], "Missing argument 'DIR"),
        (["bench", "x", "--batch", "1,y"], "'1,y' is not a list of integers"),
        (["verify", "x", "--threads", "-1"], "Invalid value for '--threads'"),
        (["edit", "x", "y", "--variation", "nan"], "Invalid value for '--variation': 'nan' is not a finite number"),
        (["reconstruct", "demo", "--theta", "nan"], "Invalid value for '--theta': 'nan' is not a finite number"),
        (["table-c", "--half-width", "nan"], "Invalid value for '--half-width': 'nan' is not a finite number"),
        (["table-c", "--minutes", "inf"], "Invalid value for '--minutes': 'inf' is not a finite number"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_bad_usage_is_one_line(capsys: pytest.CaptureFixture[str], arguments: list[str], message: str) -> None:
    assert main(arguments) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("error: ")
    assert captured.err.count("\n") == 1
    assert message in captured.err


@pytest.mark.parametrize("module", ["torch", "onnx", "onnxscript"])
def test_build_without_the_extra_is_one_line(
    module: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def missing(name: str) -> types.ModuleType:
        raise ModuleNotFoundError(f"No module named {module!r}", name=f"{module}.nn")

    monkeypatch.setattr("nextscale.cli.lazy_group.importlib.import_module", missing)
    assert main(["build", "demo"]) == 2
    assert capsys.readouterr().err == (
        f'error: this command needs {module}, which is not installed: pip install "nextscale[export]"\n'
    )


def test_a_module_that_is_missing_by_mistake_is_no_missing_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> types.ModuleType:
        raise ModuleNotFoundError("No module named 'nextscale.cli.gone'", name="nextscale.cli.gone")

    monkeypatch.setattr("nextscale.cli.lazy_group.importlib.import_module", missing)
    with pytest.raises(ModuleNotFoundError):
        main(["build"])


def test_memory_that_torch_lacks_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import torch

    monkeypatch.setattr("nextscale.cli.lazy_group.importlib.import_module", lambda name: torch.empty(2**48))
    assert main(["build", "demo"]) == 2
    captured = capsys.readouterr().err
    assert captured.startswith("error: out of memory; ")
    assert captured.count("\n") == 1


def test_another_runtime_error_is_a_bug(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(name: str) -> types.ModuleType:
        raise RuntimeError("a bug")

    monkeypatch.setattr("nextscale.cli.lazy_group.importlib.import_module", fail)
    with pytest.raises(RuntimeError, match="a bug"):
        main(["build"])


def test_the_runtime_commands_need_neither_torch_nor_onnx(
    fake_bundle: Path, fake_encoder_bundle: Path, tmp_path: Path
) -> None:
    block = "import sys\nfor name in ('torch', 'onnx', 'onnxscript', 'onnx_ir', 'safetensors', 'matplotlib'):\n"
    block += "    sys.modules[name] = None\n"
    for arguments in (
        ["generate", fake_bundle, "--class", "1", "--out", tmp_path / "a.png"],
        ["edit", fake_encoder_bundle, tmp_path / "a.png", "--variation", "1", "--out", tmp_path / "b.png"],
        ["inspect", fake_bundle],
        ["verify", fake_bundle],
        ["bench", fake_bundle, "--repetitions", "2"],
    ):
        python, option, code = command_line(*arguments)
        done = subprocess.run([python, option, block + code], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr


def test_a_closed_pipe_is_no_traceback(fake_bundle: Path) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run(command_line("inspect", fake_bundle), stdout=writer, stderr=subprocess.PIPE, check=False)
    os.close(writer)
    assert (done.returncode, done.stderr) == (1, b"")


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
def test_a_full_stdout_is_one_line(fake_bundle: Path) -> None:
    with open("/dev/full", "wb") as full:
        done = subprocess.run(command_line("inspect", fake_bundle), stdout=full, stderr=subprocess.PIPE, check=False)
    assert (done.returncode, done.stderr) == (2, b"error: output: No space left on device\n")


def test_text_of_others_is_shown_without_control_characters(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    recipe = tmp_path / "r.toml"
    recipe.write_text('"\\u001b[31mred\\u0007" = 1\n')
    assert main(["build", "demo", "--recipe", str(recipe), "--out", str(tmp_path / "o")]) == 2
    shown = capsys.readouterr().err
    assert "\\x1b[31mred\\x07" in shown
    assert shown.removesuffix("\n").isprintable()


def replace_console(monkeypatch: pytest.MonkeyPatch, encoding: str) -> dict[str, io.BytesIO]:
    """Make stdout and stderr a console's of that encoding; returns what it is sent."""
    sent = {name: io.BytesIO() for name in ("stdout", "stderr")}
    for name, content in sent.items():
        stream = io.TextIOWrapper(content, encoding=encoding, errors="strict", write_through=True)
        monkeypatch.setattr(sys, name, stream)
    return sent


@pytest.mark.parametrize("encoding", ["cp1252", "cp437", "ascii", "utf-8"])
@pytest.mark.parametrize(
    ("command", "code"),
    [
        (["generate", "\u6a21\u578b", "--class", "1", "--out", "\u72d0.png"], 0),
        (["generate", "\u6a21\u578b", "--class", "\u72d0\u72d0", "--out", "a.png"], 2),
        (["generate", "\u6a21\u578b", "--\u72d0"], 2),
        (["inspect", "\u6a21\u578b"], 0),
        (["inspect", "\u6a21\u578b", "--classes"], 0),
        (["verify", "\u6a21\u578b"], 0),
        (["verify", "\u72d0"], 2),
        (["build", "--help"], 0),
    ],
    ids=str,
)
def test_a_console_without_the_characters_shows_escapes(
    fake_bundle: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    encoding: str,
    command: list[str],
    code: int,
) -> None:
    monkeypatch.chdir(tmp_path)
    folder = shutil.copytree(fake_bundle, Path("\u6a21\u578b"))
    manifest = read_manifest(folder)
    manifest["class_names"][2] = manifest["name"] = "\u72d0"
    write_manifest(folder, manifest)
    console = replace_console(monkeypatch, encoding)
    assert main(command) == code
    errors = console["stderr"].getvalue().decode(encoding)
    assert "Traceback" not in errors
    assert errors.startswith("error: ") if code else not errors
    if command[-1] == "\u72d0.png":
        # Click sends UTF-8 to consoles that say ASCII, which mostly are others that do not know their encoding.
        shown = "\u72d0.png".encode("utf-8" if encoding == "ascii" else encoding, "backslashreplace")
        assert console["stdout"].getvalue().split() == [shown]
        assert Path("\u72d0.png").exists()


def test_progress_and_tables_of_rich_show_escapes(monkeypatch: pytest.MonkeyPatch) -> None:
    code = """
import io, sys
from nextscale.cli.main import main
from nextscale.cli import lazy_group as module
from nextscale.cli.progress import show_steps

def run(name):
    import click

    @click.command()
    def demo():
        sys.stderr.isatty = lambda: True
        with show_steps() as steps:
            steps("\u72d0", 1, 2, note="\u6a21")
    return type("Module", (), {"demo": demo})

module.importlib.import_module = run
sys.exit(main(["demo"]))
"""
    environment = {**os.environ, "PYTHONIOENCODING": "cp1252", "TERM": "xterm", "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    assert rb"\u72d0" in done.stderr
    assert done.stderr.isascii()


def test_a_folder_whose_name_is_no_text_is_one_line(
    fake_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = shutil.copytree(fake_bundle, os.fsdecode(os.fsencode(tmp_path) + b"/\xff"))
    assert main(["generate", folder, "--class", "1", "--out", str(tmp_path / "a.png")]) == 2
    error = capsys.readouterr().err
    assert "onnxruntime opens no path that is not UTF-8: rename the folder" in error
    assert error.count("\n") == 1


OVERWRITING = {
    "generate --out": ["generate", "{bundle}", "--class", "0", "--out", "{png}"],
    "generate --npz": ["generate", "{bundle}", "--class", "0", "--npz", "{weights}"],
    "evaluate --json": ["evaluate", "{other}", "{bundle}", "--json", "{weights}"],
    "evaluate --json, of the reference": ["evaluate", "{bundle}", "{other}", "--json", "{weights}"],
    "bench --json": ["bench", "{other}", "{bundle}", "--json", "{weights}"],
    "theta --json": ["theta", "{bundle}", "--json", "{weights}"],
    "theta --plot": ["theta", "{bundle}", "--plot", "{png}"],
    "metrics --json": ["metrics", "{bundle}", "--reference", "none", "--work", "{work}", "--json", "{weights}"],
    "metrics --json, of full precision": [
        *("metrics", "{other}", "--full-precision", "{bundle}", "--reference", "none", "--work", "{work}"),
        *("--json", "{weights}"),
    ],
    "report --out": ["report", "{bundle}", "--images", "0", "--out", "{html}"],
    "demo --json": ["demo", "--out", "{demo}", "--json", "{weights}"],
    "table-c --json": ["table-c", "--store", "{out}", "--json", "{weights}"],
    "table-c --json, of a checkpoint": ["table-c", "--var", "{weights}", "--vae", "{png}", "--json", "{weights}"],
}


@pytest.mark.parametrize("arguments", OVERWRITING.values(), ids=OVERWRITING.keys())
def test_no_command_overwrites_what_it_reads(
    arguments: list[str],
    fake_bundle: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    bundle = shutil.copytree(fake_bundle, tmp_path / "out" / "emoji" / "fp32")
    for suffix in ("png", "html"):
        (tmp_path / f"link.{suffix}").symlink_to(bundle / "weights.data")
    (bundle.parent / "store.json").write_text('{"of": "nextscale paper", "schema": 1}')
    before = (bundle / "weights.data").read_bytes()
    monkeypatch.setattr("nextscale.cli.judging_options.FeatureNetwork", lambda *_: None)
    places = {
        "bundle": bundle,
        "other": fake_bundle,
        "weights": bundle / "weights.data",
        "out": bundle.parent,
        "demo": bundle.parent.parent,
        "work": tmp_path / "work",
        "png": tmp_path / "link.png",
        "html": tmp_path / "link.html",
    }
    assert main([argument.format(**places) for argument in arguments]) == 2
    assert "which is read; give another name" in capsys.readouterr().err
    assert (bundle / "weights.data").read_bytes() == before
