from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest
from refusal import assert_refused
from saturating import without_warning

from nextscale.cli.main import main

pytest.importorskip("matplotlib")
FAST = ("--images", "3", "--threads", "1")
RUN = """
import sys
for name in ("torch", "onnx", "onnxscript", "onnx_ir", "safetensors"):
    sys.modules[name] = None
sys.path[:] = {path!r}
from nextscale.cli.main import main
sys.exit(main({arguments!r}))
"""


def run(*arguments: object) -> int:
    return main(["report", *map(str, arguments)])


def test_bundles_and_what_the_other_commands_wrote(
    fp32_bundle: Path, int8_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    evaluate, bench, theta, maps = (tmp_path / name for name in ("e.json", "b.json", "t.json", "maps"))
    pair = [str(fp32_bundle), str(int8_bundle)]
    assert main(["evaluate", *pair, *FAST, "--json", str(evaluate)]) == 0
    assert main(["bench", *pair, "--repetitions", "2", "--quiet", "--json", str(bench)]) == 0
    assert main(["theta", pair[0], "--budget", "20%", *FAST, "--json", str(theta)]) == 0
    assert main(["calibrate", pair[0], "--matching", "stagewise", *FAST, "--out", str(maps)]) == 0
    capsys.readouterr()
    out = tmp_path / "report.html"
    assert run(*pair, evaluate, bench, theta, maps, "--out", out, *FAST, "--title", "Tiny & small") == 0
    captured = capsys.readouterr()
    assert (captured.out, captured.err) == (f"{out}\n", "")
    page = out.read_text()
    assert "<h1>Tiny &amp; small</h1>" in page
    kl = json.loads(evaluate.read_text())["bundles"][pair[1]]["kl"]
    assert f"{kl:.4f}" in page
    assert page.count("data:image/svg+xml") == 5  # KL against speed; KL, top-1, time and attentive tokens by stage
    assert page.count("data:image/png") == 4 + 1  # two sheets of two bundles, and matching
    assert not list(tmp_path.glob(".*"))


def test_classes_and_no_pictures(fp32_bundle: Path, tmp_path: Path) -> None:
    out = tmp_path / "report.html"
    assert run(fp32_bundle, "--out", out, *FAST, "--class", "class 4") == 0
    assert "class 4 · class 4 · class 4" in out.read_text()
    assert run(fp32_bundle, "--out", out, "--images", 0) == 0
    assert "<img" not in out.read_text()


def test_torch_is_not_needed(int8_bundle: Path, tmp_path: Path) -> None:
    arguments = ["report", str(int8_bundle), "--out", str(tmp_path / "r.html"), *FAST]
    code = RUN.format(path=sys.path, arguments=arguments)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, without_warning(done.stderr)) == (0, "")


def test_a_report_needs_matplotlib(
    fake_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert_refused(capsys, run(fake_bundle, "--out", tmp_path / "r.html"), 'pip install "nextscale[eval]"')


BAD_USAGE = {
    "no inputs": ([], "Missing argument 'DIR|FILE...'"),
    "missing": (["/none"], "/none: no such file or folder"),
    "a folder of nothing": (["{tmp}"], "manifest.json: the file is missing"),
    "a file of nothing": (["{bundle}/weights.data"], "weights.data: no JSON"),
    "out": (["{bundle}", "--out", "/proc/r.html"], "cannot write /proc/r.html"),
    "out as text": (["{bundle}", "--out", "{tmp}/r.txt"], "r.txt: the page is written as HTML; give a name that"),
    "images": (["{bundle}", "--images", "-1"], "-1 is not in the range"),
    "class": (["{bundle}", "--class", "unicorn"], 'no class is named "unicorn"'),
    "cfg": (["{bundle}", "--cfg-scale", "-1"], "cfg_scale -1 is out of range"),
    "batch": (["{bundle}", "--batch", "0"], "0 is not in the range"),
}


@pytest.mark.parametrize(("usage", "message"), BAD_USAGE.values(), ids=BAD_USAGE.keys())
def test_bad_usage_is_one_line(
    fake_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], usage: list[str], message: str
) -> None:
    arguments = [item.format(bundle=fake_bundle, tmp=tmp_path) for item in usage]
    out = [] if "--out" in usage else ["--out", tmp_path / "r.html"]
    assert_refused(capsys, run(*arguments, *out), message)
    assert not list(tmp_path.iterdir())
