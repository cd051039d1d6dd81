"""Contenders of a measurement: programs that generate images when asked, each in a process that idles between turns.

The protocol is one JSON object per line, on the process's stdin and stdout:

    first, unasked   {"ready": true, "load_seconds": 2.1, "versions": {"onnxruntime": "1.31.1"}}
    request          {"batch": 1, "seed": 7}
    reply            {"seconds": 1.04, "peak_memory_bytes": 1084000000}
    on failure       {"error": "one clear line"}, and the process ends with exit code 1

One that generates in stages may add them to its replies: "stage_seconds", a list, and "decoder_seconds". The process
ends when its stdin does.
"""

import contextlib
import json
import os
import signal
import subprocess
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any

from nextscale.runtime._errors import NextscaleError
from nextscale.runtime._interrupts import when_interrupted

_END_SECONDS = 60  # a profile is written when a session ends
_SHOWN = 200


@dataclass(frozen=True)
class Contender:
    """What takes part in a measurement.

    Attributes:
        name: in the results.
        command: starts the process.
        environment: variables beside those of this process.
    """

    name: str
    command: tuple[str, ...]
    environment: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Reply:
    """What a contender says of one batch.

    Attributes:
        seconds: of the whole batch.
        peak_memory_bytes: of the process so far.
        stage_seconds, decoder_seconds: of the parts; empty and None where the contender does not tell them.
    """

    seconds: float
    peak_memory_bytes: int
    stage_seconds: tuple[float, ...] = ()
    decoder_seconds: float | None = None


class Worker:
    """A contender's process, running inside a `with` block; however the block ends, the process is gone after it.

    Attributes:
        contender: what was started.
        load_seconds: what it took until it could generate, as it says itself.
        versions: of what it runs on.

    Raises (as do its methods):
        NextscaleError: the process cannot be started, ends, or says something else than the protocol allows.
    """

    def __init__(self, contender: Contender) -> None:
        self.contender = contender
        self.load_seconds = 0.0
        self.versions: dict[str, str] = {}

    def __enter__(self) -> "Worker":
        self._stderr = tempfile.TemporaryFile()
        try:
            # A session of its own: Ctrl-C reaches only this process, which then ends the other.
            self._process = subprocess.Popen(
                self.contender.command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._stderr,
                env={**os.environ, **self.contender.environment},
                text=True,
                encoding="utf-8",
                errors="replace",
                start_new_session=True,
            )
        except OSError as error:
            self._stderr.close()
            raise NextscaleError(
                f"{self.contender.name}: cannot start {self.contender.command[0]}: {error.strerror}"
            ) from None
        self._interrupt = when_interrupted(self.kill)
        self._interrupt.__enter__()
        try:
            first = self._read()
            if first.get("ready") is not True:
                raise self._unexpected(first)
            self.load_seconds = self._number(first, "load_seconds")
            self.versions = {str(name): str(version) for name, version in dict(first.get("versions") or {}).items()}
        except BaseException:
            self._end(at_once=True)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._end(at_once=kind is not None)

    def request(self, batch: int, seed: int, **more: Any) -> Reply:
        """Generate `batch` images and wait for them; the request holds `more` too, for those that know it."""
        assert self._process.stdin is not None
        with contextlib.suppress(OSError):  # it ended; why is what reading finds
            self._process.stdin.write(json.dumps({"batch": batch, "seed": seed, **more}) + "\n")
            self._process.stdin.flush()
        reply = self._read()
        return Reply(
            self._number(reply, "seconds"),
            int(self._number(reply, "peak_memory_bytes")),
            self._numbers(reply, "stage_seconds"),
            self._number(reply, "decoder_seconds") if "decoder_seconds" in reply else None,
        )

    def kill(self) -> None:
        """End the process at once; a request that waits in another thread then fails."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)

    def _read(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            code = self._process.wait()
            self._stderr.seek(0)
            said = self._stderr.read().decode("utf-8", "replace").strip().splitlines()
            raise NextscaleError(f"{self.contender.name}: {_why_ended(code, said[-1] if said else '')}")
        try:
            reply = json.loads(line)
        except ValueError:
            reply = None
        if not isinstance(reply, dict):
            raise self._unexpected(line)
        if "error" in reply:
            raise NextscaleError(f"{self.contender.name}: {' '.join(str(reply['error']).split())}")
        return reply

    def _number(self, reply: Mapping[str, Any], key: str) -> float:
        value: Any = reply.get(key)
        if not _is_amount(value):
            raise self._unexpected(reply)
        return float(value)

    def _numbers(self, reply: Mapping[str, Any], key: str) -> tuple[float, ...]:
        values = reply.get(key, [])
        if not isinstance(values, list) or not all(map(_is_amount, values)):
            raise self._unexpected(reply)
        return tuple(values)

    def _unexpected(self, said: object) -> NextscaleError:
        text = " ".join(str(said).split())[:_SHOWN]
        return NextscaleError(f"{self.contender.name}: the process does not keep to the protocol; it said: {text}")

    def _end(self, at_once: bool) -> None:
        process = self._process
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            if not at_once:
                with contextlib.suppress(OSError, subprocess.TimeoutExpired):
                    process.stdin.close()
                    process.wait(_END_SECONDS)
        finally:
            self._interrupt.__exit__(None, None, None)
            self.kill()  # with whatever it started itself
            process.wait()
            for stream in (process.stdin, process.stdout, self._stderr):
                with contextlib.suppress(OSError):  # what was left to write to a process that ended
                    stream.close()


def _why_ended(code: int, said: str) -> str:
    """In words; what a process that a signal ended said last need not be about that."""
    if code == -signal.SIGKILL:
        return "killed by signal 9, probably out of memory: fewer images at a time (--batch) need less"
    if code < 0:
        return f"the process ended by signal {-code}" + (f"; it said last: {said}" if said else "")
    return said or f"the process ended with exit code {code}"


def _is_amount(value: Any) -> bool:
    """Whether it is a finite number of at least 0."""
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < float("inf")
