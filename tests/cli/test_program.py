"""The program ends at once by a signal, wherever it stands, says one line and leaves nothing half-written."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

RUN = """
import sys
sys.path[:] = {path!r}
sys.argv[1:] = {arguments!r}
from nextscale.cli.program import run
{before}
sys.exit(run())
"""
LINE = "error: interrupted; nothing half-written was left\n"
BOUND = 10  # seconds, of a machine that is busy with much else
LASTING = ("--repetitions", 1_000_000, "--quiet")
DEAF = {
    "in a library": """
import hashlib
main.main = lambda: hashlib.pbkdf2_hmac("sha256", b"", b"", 2**31 - 1)
""",
    "in code that catches everything": """
import time
def catch():
    while True:
        try:
            time.sleep(0.01)
        except BaseException:
            pass
main.main = catch
""",
    "while other threads work": """
import threading
def spin():
    while True:
        pass
def both():
    threading.Thread(target=spin).start()
    spin()
main.main = both
""",
}
UNFINISHED = """
import time
from pathlib import Path
from nextscale.measure.contender import Contender, Worker
from nextscale.runtime._outputs import atomic_folder, write_files
folder = Path({folder!r})
WORKER = "import os, time; print('{{\\"ready\\": true, \\"load_seconds\\": 1}}', flush=True); time.sleep(100)"
def wait(file):
    file.write(b"half")
    file.flush()
    time.sleep(100)
def work():
    contender = Contender("", (sys.executable, "-c", WORKER))
    with atomic_folder(folder / "parent" / "bundle") as bundle, Worker(contender) as worker:
        (bundle / "half").touch()
        (folder / "worker").write_text(str(worker._process.pid))
        write_files({{folder / "file": wait}})
main.main = work
"""


def started(*arguments: object, before: str = "") -> subprocess.Popen[str]:
    """The program as a process that has taken its signals, which is the first thing it does."""
    before = f"import nextscale.cli.main as main\n{before}" if before else ""
    code = RUN.format(path=sys.path, arguments=[str(item) for item in arguments], before=before)
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    wait_until(lambda: process.poll() is not None or catches(process.pid, signal.SIGTERM))
    return process


def wait_until(condition: object) -> None:
    deadline = time.monotonic() + 60
    while not condition():  # type: ignore[operator]
        assert time.monotonic() < deadline
        time.sleep(0.001)


def catches(pid: int, number: int) -> bool:
    found = re.search(r"^SigCgt:\s*([0-9a-f]+)$", Path(f"/proc/{pid}/status").read_text(), re.MULTILINE)
    return found is not None and bool(int(found[1], 16) >> (number - 1) & 1)


def end(process: subprocess.Popen[str], number: int) -> tuple[int, str, str]:
    """Exit code, stdout and stderr after the signal."""
    began = time.monotonic()
    process.send_signal(number)
    try:
        out, error = process.communicate(timeout=60)
    finally:
        process.kill()
    assert time.monotonic() - began < BOUND
    return process.returncode, out, error


@pytest.mark.parametrize(
    ("milliseconds", "number"),
    [(0, signal.SIGINT), (0, signal.SIGTERM), (50, signal.SIGINT), (100, signal.SIGTERM), (200, signal.SIGINT),
     (400, signal.SIGTERM), (400, signal.SIGINT)],
)  # fmt: skip
def test_a_signal_at_any_moment(fake_bundle: Path, milliseconds: int, number: signal.Signals) -> None:
    process = started("bench", fake_bundle, *LASTING)
    time.sleep(milliseconds / 1000)
    assert end(process, number) == (130, "", LINE)


@pytest.mark.parametrize("where", DEAF)
def test_a_signal_where_python_cannot_raise(where: str) -> None:
    process = started(before=DEAF[where])
    time.sleep(0.1)
    assert end(process, signal.SIGINT) == (130, "", LINE)


def test_what_is_unfinished_is_gone(tmp_path: Path) -> None:
    process = started(before=UNFINISHED.format(folder=str(tmp_path)))
    wait_until(lambda: process.poll() is not None or [*tmp_path.glob(".nextscale-*/*")])
    assert end(process, signal.SIGTERM) == (130, "", LINE)
    assert [path.name for path in tmp_path.iterdir()] == ["worker"]
    state = Path(f"/proc/{(tmp_path / 'worker').read_text()}/status")
    wait_until(lambda: not state.exists() or "State:\tZ" in state.read_text())


def test_a_signal_that_is_ignored_stays_so(fake_bundle: Path) -> None:
    """As Ctrl-C is for what a shell's script starts in the background."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        process = started("bench", fake_bundle, *LASTING)
    finally:
        signal.signal(signal.SIGINT, before)
    process.send_signal(signal.SIGINT)
    time.sleep(0.1)
    assert process.poll() is None
    assert end(process, signal.SIGTERM) == (130, "", LINE)


def test_a_terminal_gets_its_cursor_back(fake_bundle: Path) -> None:
    main, device = os.openpty()
    code = RUN.format(path=sys.path, arguments=["bench", str(fake_bundle), *map(str, LASTING)], before="")
    process = subprocess.Popen([sys.executable, "-c", code], stderr=device, stdout=subprocess.DEVNULL)
    wait_until(lambda: catches(process.pid, signal.SIGTERM))
    process.send_signal(signal.SIGINT)
    assert process.wait(60) == 130
    assert b"\x1b[?25h" in os.read(main, 10_000)


def test_without_a_signal_the_exit_code_is_the_commands(fake_bundle: Path) -> None:
    for bundle, code in ((fake_bundle, 0), (fake_bundle / "none", 2)):
        process = started("inspect", bundle, "--json")
        process.communicate(timeout=60)
        assert process.returncode == code


CLOSED = {
    "generate": (["generate", "{bundle}", "--quiet", "--class", "0", "--out", "{folder}/a.png"], 0, ""),
    "inspect": (["inspect", "{bundle}"], 0, ""),
    "inspect --json": (["inspect", "{bundle}", "--json"], 0, ""),
    "recipes": (["recipes"], 0, ""),
    "help": (["--help"], 0, ""),
    "an error": (["inspect", "{folder}/none"], 2, "none: no such folder"),
    "an output to it": (
        ["generate", "{bundle}", "--class", "0", "--npz", "/dev/stdout"],
        *(2, "error: cannot write /dev/stdout: Bad file descriptor"),
    ),
}


@pytest.mark.parametrize(("arguments", "code", "message"), CLOSED.values(), ids=CLOSED.keys())
@pytest.mark.parametrize("closed", [">&-", ">&- <&-", ">&- 2>&-"])
def test_a_closed_stdout_is_as_none(
    fake_bundle: Path, tmp_path: Path, arguments: list[str], code: int, message: str, closed: str
) -> None:
    given = [argument.format(bundle=fake_bundle, folder=tmp_path) for argument in arguments]
    program = [sys.executable, "-c", RUN.format(path=sys.path, arguments=given, before="")]
    done = subprocess.run(
        ["sh", "-c", f'exec "$@" {closed}', "sh", *program], capture_output=True, text=True, check=False
    )
    assert done.returncode == code, done.stderr
    assert done.stdout == ""
    assert message in done.stderr or "2>" in closed
    assert "Traceback" not in done.stderr
    assert done.stderr.count("\n") == (1 if message and "2>" not in closed else 0)


def test_without_a_thread_to_spare_the_program_runs(fake_bundle: Path) -> None:
    fail = """
import threading
def start(thread):
    raise RuntimeError("can't start new thread")
threading.Thread.start = start
"""
    process = started("inspect", fake_bundle, "--json", before=fail)
    _, error = process.communicate(timeout=60)
    assert (process.returncode, error) == (0, "")
