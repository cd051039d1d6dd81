"""Nothing of ours starts ONNX Runtime's telemetry; that of C++ and C# is in conformance/check_programs.py."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from pathlib import Path

import onnxruntime
import pytest
from phones_home import phones_home

from nextscale.runtime._session import release_numbers

ROOT = Path(__file__).parents[1]
VARIABLE = "ORT_DISABLE_TELEMETRY"
COUNT_THREADS = "import os, nextscale.runtime; print(len(os.listdir('/proc/self/task')))"
IN_WORKER = """
import multiprocessing, os
import nextscale
def look(_):
    import onnxruntime
    return len(os.listdir("/proc/self/task"))
if __name__ == "__main__":
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        print(pool.map(look, [0]))
"""
has_telemetry = pytest.mark.skipif(
    release_numbers(onnxruntime.__version__) < (1, 29), reason="ONNX Runtime has telemetry since 1.29"
)


@pytest.fixture
def home(tmp_path: Path) -> Path:
    folder = tmp_path / "home"
    folder.mkdir()
    return folder


def generate(bundle: Path, out: Path) -> list[object]:
    command = "import sys; from nextscale.cli.main import main; sys.exit(main())"
    return [sys.executable, "-c", command, "generate", bundle, "--class", 1, "--out", out]


@pytest.mark.parametrize("variables", [{}, {VARIABLE: ""}], ids=["not set", "empty"])
def test_generate_leaves_nothing_in_the_home_and_opens_no_socket(
    fake_bundle: Path, home: Path, tmp_path: Path, variables: dict[str, str]
) -> None:
    assert phones_home(generate(fake_bundle, tmp_path / "a.png"), home, variables) is None
    assert (tmp_path / "a.png").exists()


@has_telemetry
def test_a_users_own_setting_wins(fake_bundle: Path, home: Path, tmp_path: Path) -> None:
    found = phones_home(generate(fake_bundle, tmp_path / "a.png"), home, {VARIABLE: "0"})
    assert found is not None
    assert "deviceid" in found


def test_what_opens_a_socket_is_found(home: Path) -> None:
    for family in ("AF_INET", "AF_INET6"):
        code = f"import socket; socket.socket(socket.{family}, socket.SOCK_DGRAM)"
        assert phones_home([sys.executable, "-c", code], home) == "it opened an internet socket"
    code = "import socket; socket.socket(socket.AF_UNIX)"
    assert phones_home([sys.executable, "-c", code], home) is None


@pytest.mark.parametrize(("code", "threads"), [(COUNT_THREADS, "1"), (IN_WORKER, "[1]")], ids=["here", "spawned"])
def test_importing_starts_no_thread(code: str, threads: str, home: Path) -> None:
    program = home / "program.py"
    program.write_text(code)
    variables = {"PATH": os.environ["PATH"], "HOME": str(home), "OPENBLAS_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, program], env=variables, capture_output=True, text=True, check=False)
    assert (done.stdout.strip(), done.stderr) == (threads, "")


def test_programs_beside_the_package_turn_it_off_before_they_import_onnxruntime() -> None:
    looked_at = 0
    for folder in ("benchmarks", "examples", "demo", "tests/goldens"):
        for path in (ROOT / folder).rglob("*.py"):
            text = path.read_text(encoding="utf-8")
            for node in ast.parse(text).body:
                if not isinstance(node, ast.Import | ast.ImportFrom):
                    continue
                names = [getattr(node, "module", None) or "", *(alias.name for alias in node.names)]
                if any(name.partition(".")[0] == "onnxruntime" for name in names):
                    before = "\n".join(text.splitlines()[: node.lineno - 1])
                    assert f'os.environ.setdefault("{VARIABLE}", "1")' in before, path
                    looked_at += 1
    assert looked_at > 0
