"""docs/deploy.md: its programs are files that run here as servers run them, and the tests that it names are there."""

from __future__ import annotations

import io
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from nextscale.runtime import Generator

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "deploy.md").read_text(encoding="utf-8")
EXAMPLES = ROOT / "examples" / "deploy"

# As a WSGI server that loads the application before it forks its workers.
PRELOADED = """
import os, sys
import wsgi
def get(path, query):
    status = []
    body = b"".join(wsgi.application({"PATH_INFO": path, "QUERY_STRING": query}, lambda s, headers: status.append(s)))
    return status[0], body
wsgi.GENERATOR.load("generate")
workers = []
for number in range(2):
    worker = os.fork()
    if worker == 0:
        status, body = get("/3", "seed=7")
        assert status == "200 OK", (status, body)
        open(sys.argv[1 + number], "wb").write(body)
        status, body = get("/none", "")
        assert status == "400 Bad Request" and b"none" in body, (status, body)
        sys.exit(0)
    workers.append(worker)
sys.exit(max(os.waitstatus_to_exitcode(os.waitpid(worker, 0)[1]) for worker in workers))
"""

ASYNCHRONOUS = """
import asyncio
import asgi

async def get(path, patience):
    sent = []
    async def send(message):
        if len(sent) == patience:
            raise ConnectionResetError
        sent.append(message)
    try:
        await asgi.application({"type": "http", "path": path}, None, send)
    except ConnectionResetError:
        return None
    return b"".join(message.get("body", b"") for message in sent).decode()

async def main():
    print(await asyncio.gather(get("/3", 99), get("/none", 99), get("/1", 2)))

asyncio.run(main())
"""


def run(program: str, bundle: Path, *arguments: Path) -> str:
    done = subprocess.run(
        [sys.executable, "-c", program, *map(str, arguments)],
        env={**os.environ, "BUNDLE": str(bundle), "PYTHONPATH": str(EXAMPLES)},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


def test_its_programs_are_the_files() -> None:
    shown = re.findall(
        r"^\[examples/deploy/(\S+)\]\(\.\./examples/deploy/\1\):\n\n```\w+\n(.*?)```$", PAGE, re.M | re.S
    )
    assert sorted(name for name, _ in shown) == sorted(path.name for path in EXAMPLES.glob("*.py"))
    for name, text in shown:
        assert text == (EXAMPLES / name).read_text(encoding="utf-8"), f"docs/deploy.md shows another {name}"


def test_its_memory_is_what_was_measured() -> None:
    measured = (ROOT / "benchmarks" / "results" / "memory_returned.md").read_text(encoding="utf-8")
    names = {"generate": "one call", "streaming": "streaming"}
    rows = re.findall(r"^\| (generate|streaming) \| (\S+) \| (.*) \| ([\d.]+) (\[.*\]) \|$", measured, re.M)
    assert len(rows) == 6
    for form, options, memory, ratio, interval in rows:
        shown = ("defaults", ratio) if options == "defaults" else (f"`{options}`", f"{ratio} {interval}")
        assert f"| {names[form]} | {shown[0]} | {memory} | {shown[1]} |" in PAGE


def test_the_tests_that_it_names_are_there() -> None:
    named = re.findall(r"`(tests/\S+\.py)::(\w+)`", PAGE)
    assert len(named) >= 6
    for file, test in named:
        assert f"def {test}(" in (ROOT / file).read_text(encoding="utf-8"), f"{file} has no {test}"


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_wsgi_workers_that_are_forked_from_a_loaded_application(fake_bundle: Path, tmp_path: Path) -> None:
    [expected] = Generator(fake_bundle).generate([3], seed=7).images
    files = [tmp_path / "0.png", tmp_path / "1.png"]
    run(PRELOADED, fake_bundle, *files)
    for file in files:
        assert np.array_equal(np.asarray(Image.open(io.BytesIO(file.read_bytes()))), expected)


def test_asgi_answers_errors_and_clients_that_go(fake_bundle: Path) -> None:
    told, error, gone = eval(run(ASYNCHRONOUS, fake_bundle))
    assert told == "stage 1 of 3\nstage 2 of 3\nstage 3 of 3\n"
    assert error.startswith('error: no class is named "none"')
    assert gone is None
