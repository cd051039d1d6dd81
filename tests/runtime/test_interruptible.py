"""Calls that last end at once by Ctrl-C in the main thread, and by a cancel flag in any."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
from onnx import TensorProto, helper

from nextscale.runtime import Cancelled, Generator, NextscaleError
from nextscale.runtime._interruptible import call_interruptibly
from nextscale.runtime._session import ort_value, run_session

MOMENT = 0.2


class LastingCall:
    """Lasts until it is stopped."""

    def __init__(self) -> None:
        self.stopped = threading.Event()

    def __call__(self) -> str:
        assert self.stopped.wait(60)
        return "stopped"


def soon(act: Callable[[], object]) -> None:
    threading.Timer(MOMENT, act).start()


def interrupt() -> None:
    signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)


def test_results_and_errors_come_back() -> None:
    assert call_interruptibly(lambda: [3], lambda: None) == [3]
    with pytest.raises(KeyError):
        call_interruptibly(lambda: {}[0], lambda: None)


def test_ctrl_c_stops_the_call() -> None:
    call = LastingCall()
    soon(interrupt)
    with pytest.raises(KeyboardInterrupt):
        call_interruptibly(call, call.stopped.set)
    assert call.stopped.is_set()


@pytest.mark.parametrize("thread", ["main thread", "another"])
def test_a_cancel_flag_stops_the_call(thread: str) -> None:
    call, cancel = LastingCall(), threading.Event()
    soon(cancel.set)
    with ThreadPoolExecutor(1) as pool:
        make = (lambda f, *args: pool.submit(f, *args).result()) if thread == "another" else (lambda f, *args: f(*args))
        with pytest.raises(Cancelled):
            make(call_interruptibly, call, call.stopped.set, cancel)
    assert call.stopped.is_set()


@pytest.fixture(scope="module")
def endless() -> onnxruntime.InferenceSession:
    """A session that adds 1 to 1 as often as it is told."""

    def value(name: str, kind: int) -> object:
        return helper.make_tensor_value_info(name, kind, [])

    body = helper.make_graph(
        [helper.make_node("Identity", ["go"], ["go_on"]), helper.make_node("Add", ["x", "one"], ["y"])],
        "body",
        [value("i", TensorProto.INT64), value("go", TensorProto.BOOL), value("x", TensorProto.FLOAT)],
        [value("go_on", TensorProto.BOOL), value("y", TensorProto.FLOAT)],
    )
    graph = helper.make_graph(
        [helper.make_node("Loop", ["times", "", "one"], ["sum"], body=body)],
        "endless",
        [value("times", TensorProto.INT64)],
        [value("sum", TensorProto.FLOAT)],
        [helper.make_tensor("one", TensorProto.FLOAT, [], [1.0])],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    settings = onnxruntime.SessionOptions()
    settings.log_severity_level = 4
    return onnxruntime.InferenceSession(model.SerializeToString(), settings, providers=["CPUExecutionProvider"])


@pytest.mark.parametrize("how", ["Ctrl-C", "cancel"])
def test_onnxruntime_ends_its_run(endless: onnxruntime.InferenceSession, how: str) -> None:
    cancel = threading.Event()
    soon(interrupt if how == "Ctrl-C" else cancel.set)
    began = time.monotonic()
    with pytest.raises(KeyboardInterrupt if how == "Ctrl-C" else Cancelled):
        run_session(endless, ["sum"], {"times": ort_value(np.array(2**62))}, "endless", cancel)
    assert time.monotonic() - began < 10
    [found] = run_session(endless, ["sum"], {"times": ort_value(np.array(3))}, "endless").values()
    assert found.numpy() == 4


def test_another_failure_is_no_cancel(endless: onnxruntime.InferenceSession) -> None:
    with pytest.raises(NextscaleError, match="endless: onnxruntime failed: "):
        run_session(endless, ["sum"], {}, "endless", threading.Event())


def test_ctrl_c_ends_the_one_call_of_a_generation(fake_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = onnxruntime.InferenceSession.run_with_ort_values

    def interrupted(self: onnxruntime.InferenceSession, names: list, feeds: dict, options: object) -> object:
        interrupt()
        while not options.terminate:  # type: ignore[attr-defined]
            time.sleep(0.01)
        return run(self, names, feeds, options)

    monkeypatch.setattr(onnxruntime.InferenceSession, "run_with_ort_values", interrupted)
    with pytest.raises(KeyboardInterrupt):
        Generator(fake_bundle).generate([1])


def test_ctrl_c_ends_the_loading_of_a_graph(fake_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    created, ended = onnxruntime.InferenceSession, []

    def interrupted(*arguments: object, **options: object) -> onnxruntime.InferenceSession:
        interrupt()
        time.sleep(MOMENT)
        try:
            return created(*arguments, **options)
        except Exception as error:
            ended.append(str(error))
            raise

    monkeypatch.setattr(onnxruntime, "InferenceSession", interrupted)
    with pytest.raises(KeyboardInterrupt):
        Generator(fake_bundle).load("generate")
    assert "cancel" in ended[0].lower()
