"""A generator in more than one process: forked, spawned, pickled."""

from __future__ import annotations

import copy
import multiprocessing
import os
import pickle
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest
from fake_bundle import L, write_fake_bundle

from nextscale.runtime import Bundle, BundleError, Generator, SessionOptions, StageResult

PATIENCE = 60  # seconds until a process is said to hang; each takes about one
ONE_THREAD, TWO_THREADS = SessionOptions(threads=1), SessionOptions(threads=2)

needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")

# What the programs of these tests begin with. A child that fails or hangs makes its parent fail.
PRELUDE = f"""
import os, pickle, signal, sys, threading, time
from nextscale.runtime import Generator, NextscaleError, SessionOptions

generator = Generator(sys.argv[1], SessionOptions(threads=2))

def tokens(seed=3):
    return generator.generate([1, 2], seed=seed).token_maps.tolist()

def join(child):
    deadline = time.monotonic() + {PATIENCE}
    while time.monotonic() < deadline:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.01)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return "hangs"
"""


def run(program: str, bundle: Path) -> str:
    """What a program that begins with the prelude prints; Python 3.12 warns of forks beside threads."""
    quiet = ["-W", "ignore:This process:DeprecationWarning"]
    done = subprocess.run(
        [sys.executable, *quiet, "-c", PRELUDE + textwrap.dedent(program), str(bundle)],
        capture_output=True,
        text=True,
        check=False,
        timeout=2 * PATIENCE,
    )
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


@needs_fork
def test_a_forked_child_generates_and_ends_and_so_does_its_parent(fake_bundle: Path) -> None:
    """The child ends as a Python program does, with all destructors, not with os._exit."""
    out = run(
        """
        before = tokens()
        list(generator.stream([1], seed=1))
        child = os.fork()
        if child == 0:
            assert tokens() == before
            for stage in generator.stream([1, 2], seed=3):
                stage.preview()
            sys.exit(7)
        print(tokens() == before, join(child), tokens() == before)
        """,
        fake_bundle,
    )
    assert out == "True 7 True\n"


def test_a_process_may_change_its_folder(fake_bundle: Path) -> None:
    """Daemons do, after they opened what a relative path names; so may what reads a pickle."""
    out = run(
        """
        os.chdir(os.path.dirname(sys.argv[1]))
        generator = Generator(os.path.basename(sys.argv[1]), SessionOptions(threads=2))
        os.chdir("/")
        before = tokens()
        generator = pickle.loads(pickle.dumps(generator))
        print(tokens() == before)
        """,
        fake_bundle,
    )
    assert out == "True\n"


@needs_fork
def test_a_forked_child_that_generates_nothing_ends(fake_bundle: Path) -> None:
    out = run(
        """
        tokens()
        child = os.fork()
        if child == 0:
            del generator
            sys.exit(7)
        print(join(child))
        """,
        fake_bundle,
    )
    assert out == "7\n"


@needs_fork
def test_a_child_of_a_child_generates(fake_bundle: Path) -> None:
    out = run(
        """
        before = tokens()
        child = os.fork()
        if child == 0:
            assert tokens() == before
            grandchild = os.fork()
            if grandchild == 0:
                sys.exit(0 if tokens() == before else 1)
            sys.exit(join(grandchild) + 7)
        print(join(child))
        """,
        fake_bundle,
    )
    assert out == "7\n"


@needs_fork
def test_forks_while_other_threads_generate_and_load(fake_bundle: Path) -> None:
    """Whatever another thread holds at the fork, the child opens its own sessions."""
    out = run(
        """
        before = tokens()
        stop = threading.Event()

        def work():
            while not stop.is_set():
                tokens()

        def load():
            while not stop.is_set():
                Generator(sys.argv[1], SessionOptions(threads=1)).load("generate", "stage")

        threads = [threading.Thread(target=target) for target in (work, work, load, load)]
        for thread in threads:
            thread.start()
        ends = []
        for _ in range(8):
            child = os.fork()
            if child == 0:
                stop.set()
                os._exit(0 if tokens() == before else 1)
            ends.append(join(child))
        stop.set()
        for thread in threads:
            thread.join()
        print(ends)
        """,
        fake_bundle,
    )
    assert out == f"{[0] * 8}\n"


@needs_fork
def test_a_stream_does_not_go_on_in_the_child(fake_bundle: Path) -> None:
    out = run(
        """
        whole = [stage.preview().tolist() for stage in generator.stream([1], seed=1)]
        stream = generator.stream([1], seed=1)
        first = next(stream)
        child = os.fork()
        if child == 0:
            assert first.preview().tolist() == whole[0]
            try:
                next(stream)
            except NextscaleError as error:
                assert "forked process" in str(error)
                sys.exit(7)
        print(join(child), [stage.preview().tolist() for stage in stream] == whole[1:])
        """,
        fake_bundle,
    )
    assert out == "7 True\n"


@pytest.mark.parametrize("start", ["spawn", "forkserver"])
def test_a_generator_goes_to_other_processes(start: str, fake_bundle: Path) -> None:
    if start not in multiprocessing.get_all_start_methods():
        pytest.skip(f"no {start} here")
    generator = Generator(fake_bundle, TWO_THREADS)
    expected = generator.generate([1, 2], seed=3)
    with multiprocessing.get_context(start).Pool(1) as pool:
        found = pool.apply_async(generator.generate, ([1, 2],), {"seed": 3}).get(PATIENCE)
    assert np.array_equal(found.token_maps, expected.token_maps)
    assert np.array_equal(found.images, expected.images)


def test_a_pickle_is_the_bundles_place_and_the_options(
    fake_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(fake_bundle.parent)
    generator = Generator(fake_bundle.name, ONE_THREAD)
    expected = generator.generate([1], seed=3).token_maps  # with sessions open
    text = pickle.dumps(generator)
    assert len(text) < 1000
    monkeypatch.chdir(tmp_path)
    arrived = pickle.loads(text)
    assert arrived.options == ONE_THREAD
    assert arrived.bundle == Bundle.open(fake_bundle)
    assert np.array_equal(arrived.generate([1], seed=3).token_maps, expected)


def test_a_bundle_is_read_again_where_it_arrives(tmp_path: Path) -> None:
    folder = write_fake_bundle(tmp_path / "bundle")
    text = pickle.dumps(Bundle.open(folder))
    assert pickle.loads(text).manifest == Bundle.open(folder).manifest
    (folder / "weights.data").unlink()
    with pytest.raises(BundleError, match=r"weights\.data: the file is missing"):
        pickle.loads(text)


@pytest.mark.parametrize("copied", [copy.copy, copy.deepcopy])
def test_a_copy_opens_its_own_sessions(generator: Generator, copied: object) -> None:
    expected = generator.generate([1], seed=3).token_maps
    other = copied(generator)  # type: ignore[operator]
    assert other._pool is not generator._pool
    assert np.array_equal(other.generate([1], seed=3).token_maps, expected)


def test_results_travel_but_stage_results_stay(generator: Generator) -> None:
    made = pickle.loads(pickle.dumps(generator.generate([1], seed=3)))
    assert made.token_maps.shape == (1, L)
    *_, last = generator.stream([1], seed=3)
    with pytest.raises(TypeError, match="a StageResult stays in its process"):
        pickle.dumps(last)
    for copied in (copy.copy(last), copy.deepcopy(last)):
        assert isinstance(copied, StageResult)
        assert np.array_equal(copied.preview(), made.images)
