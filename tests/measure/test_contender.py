import os
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from fake_contenders import fake_contender

from nextscale.measure import contender
from nextscale.measure.contender import Contender, Reply, Worker
from nextscale.runtime import NextscaleError


def fake(**settings: Any) -> Contender:
    return fake_contender("fake", **settings)


def is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def test_a_worker_says_what_it_is_and_replies() -> None:
    with Worker(fake(seconds=[0.25, 0.5])) as worker:
        assert (worker.load_seconds, worker.versions["fake"]) == (0.5, "1")
        assert [worker.request(1, seed) for seed in range(3)] == [Reply(0.25, 1000), Reply(0.5, 2000), Reply(0.5, 3000)]
    assert not is_running(int(worker.versions["pid"]))


def test_parts_of_a_batch_may_be_told() -> None:
    reply = '{"seconds": 3, "peak_memory_bytes": 5, "stage_seconds": [0.5, 1.5], "decoder_seconds": 1}'
    with Worker(fake(reply=reply)) as worker:
        assert worker.request(1, 0) == Reply(3, 5, (0.5, 1.5), 1)


def test_its_environment_is_added() -> None:
    program = fake(variable="NEXTSCALE_TEST").command
    with Worker(Contender("fake", program, {"NEXTSCALE_TEST": "set"})) as worker:
        assert worker.versions["variable"] == "set"


BROKEN = {
    "an error of its own": ({"first": '{"error": "no\\nsuch engine"}'}, "fake: no such engine"),
    "no JSON": ({"first": "Welcome!"}, "does not keep to the protocol; it said: Welcome!"),
    "no object": ({"first": "[1]"}, r"it said: \[1\]"),
    "not ready": ({"first": "{}"}, "it said: {}"),
    "no load time": ({"first": '{"ready": true}'}, "does not keep to the protocol"),
    "no seconds": ({"reply": '{"peak_memory_bytes": 1}'}, "does not keep to the protocol"),
    "stages as text": (
        {"reply": '{"seconds": 1, "peak_memory_bytes": 1, "stage_seconds": "1"}'},
        "does not keep to the protocol",
    ),
    "a stage without end": (
        {"reply": '{"seconds": 1, "peak_memory_bytes": 1, "stage_seconds": [1, Infinity]}'},
        "does not keep to the protocol",
    ),
    "a decoder of null": (
        {"reply": '{"seconds": 1, "peak_memory_bytes": 1, "decoder_seconds": null}'},
        "does not keep to the protocol",
    ),
    "negative seconds": ({"reply": '{"seconds": -1, "peak_memory_bytes": 1}'}, "does not keep to the protocol"),
    "death with a word": ({"die": 3, "stderr": "Traceback\nMemoryError"}, "fake: MemoryError"),
    "killed": (
        {"die": -9, "stderr": "a warning"},
        r"^fake: killed by signal 9, probably out of memory: fewer images at a time \(--batch\) need less$",
    ),
    "a crash with a word": (
        {"die": -6, "stderr": "std::bad_alloc"},
        r"^fake: the process ended by signal 6; it said last: std::bad_alloc$",
    ),
    "a silent crash": ({"die": -11}, "^fake: the process ended by signal 11$"),
    "silent death": ({"die": 3}, "fake: the process ended with exit code 3"),
}


@pytest.mark.parametrize(("settings", "message"), BROKEN.values(), ids=BROKEN.keys())
def test_what_a_worker_does_wrong_is_one_line(settings: dict[str, Any], message: str) -> None:
    def one_request() -> None:
        with Worker(fake(**settings)) as worker:
            worker.request(1, 0)

    with pytest.raises(NextscaleError, match=message) as error:
        one_request()
    assert "\n" not in str(error.value)


def test_a_program_that_is_missing_is_named(tmp_path: Path) -> None:
    with (
        pytest.raises(NextscaleError, match=r"^fake: cannot start .*none: No such file"),
        Worker(Contender("fake", (str(tmp_path / "none"),))),
    ):
        pass


def test_an_interruption_ends_the_process_at_once() -> None:
    begin = time.perf_counter()
    with pytest.raises(KeyboardInterrupt), Worker(fake(stay=True)) as worker:
        raise KeyboardInterrupt
    assert not is_running(int(worker.versions["pid"]))
    assert time.perf_counter() - begin < contender._END_SECONDS / 2


def test_a_process_that_stays_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(contender, "_END_SECONDS", 0.2)
    with Worker(fake(stay=True)) as worker:
        pass
    assert not is_running(int(worker.versions["pid"]))


def test_a_request_that_waits_ends_with_the_process() -> None:
    with Worker(fake(sleep=60)) as worker:
        threading.Timer(0.2, worker.kill).start()
        with pytest.raises(NextscaleError, match="killed by signal 9"):
            worker.request(1, 0)
