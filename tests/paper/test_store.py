"""The store: entries are there completely or not at all, are made once, and go when there is no room and no use."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from nextscale.paper import store as store_module
from nextscale.paper.store import Entry, Key, Store
from nextscale.runtime._errors import NextscaleError, OutputError

ONE, TWO, THREE = (Key("bundle", {"model": name}, name) for name in ("one", "two", "three"))
SMALL = Key("maps", {"model": "one"}, "one")
SIZE = 10_000
BEGIN = (
    f"import os, signal, sys, time; sys.path[:] = {sys.path!r}; from pathlib import Path\n"
    "from nextscale.paper.store import Key, Store\n"
    "store, key = Store(Path(sys.argv[1])), Key('bundle', {'model': 'one'}, 'one')\n"
)


def of(size: int) -> Callable[[Path], object]:
    """What makes a file of a size."""
    return lambda target: target.write_bytes(bytes(size))


def never(target: Path) -> None:
    raise AssertionError("made again")


def process(code: str, folder: Path) -> subprocess.Popen[str]:
    """Another one, with that store and the first key."""
    pipe = subprocess.PIPE
    return subprocess.Popen([sys.executable, "-c", BEGIN + code, str(folder)], stdin=pipe, stdout=pipe, text=True)


@contextmanager
def another_user(folder: Path) -> Iterator[None]:
    """Meanwhile another process uses the first entry."""
    with process("store.find(key); print('found', flush=True); sys.stdin.read()", folder) as other:
        assert other.stdout is not None
        assert other.stdin is not None
        assert other.stdout.readline() == "found\n"
        yield
        other.stdin.close()


def filled(folder: Path, *keys: Key, limit: int = 10**9) -> None:
    """A store with these entries, used one day after the other."""
    for day, key in enumerate(keys, 1):
        with Store(folder, limit) as store:
            path = store.made(key, of(SIZE))
        os.utime(path.parent / "key.json", times=(0, 86400 * day))


def labels(entries: list[Entry]) -> list[str]:
    return [f"{entry.kind} {entry.label}" for entry in entries]


def test_an_entry_is_made_once(tmp_path: Path) -> None:
    folder = tmp_path / "store"
    with Store(folder) as store:
        assert store.find(ONE) is None
        assert not folder.exists()
        path = store.made(ONE, of(3))
        assert path.read_bytes() == bytes(3)
    with Store(folder) as store:
        assert store.find(ONE) == store.made(ONE, never) == path
        assert store.find(TWO) is None
        (entry,) = store.entries()
    assert (entry.kind, entry.label, entry.complete, entry.path) == ("bundle", "one", True, path.parent)
    assert entry.bytes == sum(file.stat().st_size for file in path.parent.iterdir())
    told = json.loads((path.parent / "key.json").read_text())
    assert (told["kind"], told["values"], told["label"]) == ("bundle", {"model": "one"}, "one")
    assert set(told["versions"]) >= {"nextscale", "onnxruntime"}


def test_content_decides_and_the_label_does_not(tmp_path: Path) -> None:
    assert Key("bundle", {"a": 1, "b": (2,)}).digest == Key("bundle", {"b": [2], "a": 1}, "label").digest
    assert len({key.digest for key in (ONE, TWO, SMALL, Key("maps", {"model": "one", "images": 2}))}) == 4
    with Store(tmp_path) as store:
        path = store.made(ONE, of(3))
        assert store.made(Key("bundle", ONE.values, "another label"), never) == path


def test_names_stay_within_the_folder(tmp_path: Path) -> None:
    key = Key("bundle", {}, "../../etc/\x1b[2J\nrecipe" + 500 * "ü")
    with Store(tmp_path / "store") as store:
        path = store.made(key, of(3))
        assert path.parent.parent == tmp_path / "store" / "entries"
        assert store.find(key) == path
        assert store.partial(Key("bundle", {"other": 1}, key.label)).parent == tmp_path / "store" / "work"
        assert all(entry.label.isascii() and entry.label.isprintable() for entry in store.entries())
    assert [path.name for path in tmp_path.iterdir()] == ["store"]


def test_what_fails_leaves_what_is_finished(tmp_path: Path) -> None:
    def fail(target: Path) -> None:
        target.write_bytes(b"half")
        (store.partial(ONE) / "first").write_text("finished")
        raise NextscaleError("failed")

    def go_on(target: Path) -> None:
        shutil.copy(store.partial(ONE) / "first", target)

    with Store(tmp_path) as store:
        with pytest.raises(NextscaleError, match="failed"):
            store.made(ONE, fail)
        assert store.find(ONE) is None
        (entry,) = store.entries()
        assert (entry.label, entry.complete) == ("one", False)
        assert store.made(ONE, go_on).read_text() == "finished"
        assert [entry.complete for entry in store.entries()] == [True]
        assert not [*(tmp_path / "work").iterdir()]


@pytest.mark.skipif(sys.platform == "win32", reason="no such signal")
def test_a_killed_run_is_gone_on_with(tmp_path: Path) -> None:
    code = (
        "def make(target):\n"
        "    (store.partial(key) / 'first').write_text('finished')\n"
        "    target.mkdir(); (target / 'half').write_text('half')\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
        "store.made(key, make)\n"
    )
    with process(code, tmp_path) as killed:
        assert killed.wait() == -signal.SIGKILL
    with Store(tmp_path) as store:
        assert store.find(ONE) is None
        path = store.made(ONE, lambda target: shutil.copy(store.partial(ONE) / "first", target))
        assert path.read_text() == "finished"
        assert os.listdir(tmp_path / "entries") == [path.parent.name]
        assert os.listdir(tmp_path / "work") == []


@pytest.mark.skipif(sys.platform == "win32", reason="without locks")
def test_of_two_processes_one_makes_an_entry(tmp_path: Path) -> None:
    code = (
        "def make(target):\n"
        "    with open(Path(sys.argv[1]).with_name('log'), 'a') as log: log.write('made\\n')\n"
        "    time.sleep(0.5); target.write_text('whole')\n"
        "print(store.made(key, make, waiting=lambda: print('waiting')).read_text())\n"
    )
    others = [process(code, tmp_path / "store") for _ in range(3)]
    told = [other.communicate()[0].split() for other in others]
    assert sorted(told) == [["waiting", "whole"], ["waiting", "whole"], ["whole"]]
    assert (tmp_path / "log").read_text() == "made\n"


def test_two_may_begin_a_store_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, listed, begun = tmp_path / "store", store_module._listed, list[Path]()

    def meanwhile(path: Path) -> list[Path]:
        if not begun:
            begun.append(path)
            Store(folder).hold(TWO)
        return listed(path)

    monkeypatch.setattr(store_module, "_listed", meanwhile)
    with Store(folder) as store:
        store.hold(ONE)
    assert begun == [folder]


def test_what_was_used_longest_ago_goes_first(tmp_path: Path) -> None:
    filled(tmp_path, SMALL, ONE, TWO, THREE)
    with Store(tmp_path) as store:
        store.find(ONE)  # is used now
    with Store(tmp_path, limit=3 * SIZE + 3000) as store:
        assert labels(store.evict()) == ["bundle two"]
        assert labels(store.evict()) == []
        assert labels(store.entries()) == ["maps one", "bundle three", "bundle one"]
        assert labels(store.evict(2 * SIZE)) == ["bundle three", "bundle one"]
        assert labels(store.evict(3 * SIZE)) == ["maps one"]  # small, so that it goes last


def test_what_the_command_needs_stays(tmp_path: Path) -> None:
    filled(tmp_path, ONE, TWO, THREE)
    with Store(tmp_path, limit=2 * SIZE + 2000) as store:
        store.hold(ONE)
        store.find(TWO)
        assert labels(store.evict()) == ["bundle three"]
        with pytest.raises(OutputError, match=r"0\.0 MB are in use, and 0\.0 MB more are needed, beyond the limit of"):
            store.made(THREE, never, needed=SIZE)
        assert labels(store.entries()) == ["bundle one", "bundle two"]
    with Store(tmp_path, limit=2 * SIZE + 2000) as store:
        store.made(THREE, of(SIZE))
        assert labels(store.entries()) == ["bundle two", "bundle three"]


@pytest.mark.skipif(sys.platform == "win32", reason="without locks")
def test_what_another_process_uses_stays(tmp_path: Path) -> None:
    filled(tmp_path, ONE, TWO)
    with Store(tmp_path, limit=0) as store:
        with another_user(tmp_path):
            assert labels(store.evict()) == ["bundle two"]
            assert [labels(found) for found in store.clean()] == [[], ["bundle one"]]
            with pytest.raises(NextscaleError, match="another command uses it"):
                store.remove(ONE)
        assert labels(store.evict()) == ["bundle one"]


@pytest.mark.skipif(sys.platform == "win32", reason="without locks")
def test_what_is_being_made_is_not_cleaned(tmp_path: Path) -> None:
    code = (
        "def make(target):\n"
        "    (store.partial(key) / 'first').write_text('finished'); print('begun', flush=True)\n"
        "    sys.stdin.read(); (store.partial(key) / 'first').rename(target)\n"
        "store.made(key, make)\n"
    )
    with Store(tmp_path) as store, process(code, tmp_path) as other:
        assert other.stdout is not None
        assert other.stdin is not None
        assert other.stdout.readline() == "begun\n"
        assert [labels(found) for found in store.clean()] == [[], ["bundle one"]]
        other.stdin.close()
        assert other.wait() == 0
        path = store.find(ONE)
        assert path is not None
        assert path.read_text() == "finished"


def test_a_full_disk_is_told_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    filled(tmp_path, ONE)
    usage = shutil.disk_usage(tmp_path)._replace(free=5 * 10**8)
    monkeypatch.setattr("nextscale.paper.store.shutil.disk_usage", lambda folder: usage)
    with (
        Store(tmp_path) as store,
        pytest.raises(OutputError, match=r"2\.0 GB are needed, and its disk has 0\.5 GB left"),
    ):
        store.made(TWO, never, needed=2 * 10**9)


DAMAGES = {
    "no JSON": lambda entry: (entry / "key.json").write_text("{"),
    "another key": lambda entry: (entry / "key.json").write_text('{"digest": "0123456789abcdef"}'),
    "a list": lambda entry: (entry / "key.json").write_text("[1]"),
    "no key": lambda entry: (entry / "key.json").unlink(),
    "no data": lambda entry: (entry / "data").unlink(),
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES.keys())
def test_a_damaged_entry_is_one_line(tmp_path: Path, damage: Callable[[Path], object]) -> None:
    filled(tmp_path, ONE)
    with Store(tmp_path) as store:
        (entry,) = store.entries()
        damage(entry.path)
        for call in (store.find, lambda key: store.made(key, never)):
            with pytest.raises(NextscaleError, match=r"bundle-one-\w+: damaged; remove this folder to make it") as told:
                call(ONE)
            assert "\n" not in str(told.value)
        store.remove(ONE)
        assert store.made(ONE, of(3)).exists()


def test_damaged_work_is_one_line(tmp_path: Path) -> None:
    with Store(tmp_path) as store:
        (store.partial(ONE) / "settings.json").write_text("{")
        with pytest.raises(
            NextscaleError, match=r"work/bundle-one-\w+: damaged; remove this folder to begin that again"
        ):
            store.partial(ONE)


def test_another_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(NextscaleError, match=r"holds other files, and no store\.json; choose another --store"):
        Store(tmp_path)
    for content in ("{", "[]", '{"schema": 2}', "{}"):
        (tmp_path / "store.json").write_text(content)
        with pytest.raises(NextscaleError, match=r"store\.json: damaged, or of another version of nextscale"):
            Store(tmp_path)
    with pytest.raises(OutputError, match="cannot make"):
        Store(Path("/proc/store")).hold(ONE)
    assert (tmp_path / "mine.txt").read_text() == "mine"


def test_cleaning_takes_what_is_asked_for(tmp_path: Path) -> None:
    filled(tmp_path, ONE, SMALL)
    with Store(tmp_path) as store:
        store.made(TWO, of(SIZE))
        store.partial(THREE)
        (store.figures / "figures.npz").write_bytes(bytes(3))
        (store.figures / "drawn").mkdir()
    (tmp_path / "entries" / "notes.txt").write_text("mine")
    with Store(tmp_path) as store:
        old, _ = store.clean(older_than=86400, dry_run=True)
        assert labels(old) == ["bundle one", "maps one"]
        assert len(store.entries()) == 6
        assert store.clean(["bundle"], older_than=86400)[0] == old[:1]
        assert labels(store.clean(["maps"])[0]) == ["maps one"]
        (store.figures / "figures.npz").write_bytes(bytes(3))  # in use from here on
        assert {entry.label for entry in store.clean(["figures"])[1]} == {"figures.npz", "drawn"}
    with Store(tmp_path) as store:
        assert len(store.clean()[0]) == 4
        assert store.entries() == []
    assert (tmp_path / "entries" / "notes.txt").exists()


def test_a_dry_run_only_looks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a folder that is only read, where root, as whom tests may run, could write all the same."""
    filled(tmp_path, ONE, TWO, SMALL)
    with Store(tmp_path) as store:
        store.partial(THREE)
    for lock in (tmp_path / "locks").glob("*.make"):
        lock.unlink()
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    opened = os.open

    def only_read(path: object, flags: int, *more: int) -> int:
        assert not flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
        return opened(path, flags, *more)  # type: ignore[call-overload, no-any-return]

    with another_user(tmp_path), monkeypatch.context() as patch:
        patch.setattr("os.open", only_read)
        would_go, left = Store(tmp_path).clean(dry_run=True)
    assert labels(left) == ["bundle one"]
    assert sorted(labels(would_go)) == ["bundle three", "bundle two", "maps one"]
    used = tmp_path / "entries" / ONE.name / "key.json"  # by the other process
    assert {path for path in before if path.stat().st_mtime_ns != before[path]} <= {used, tmp_path / "locks"}
    shutil.rmtree(tmp_path / "locks")
    assert len(Store(tmp_path).clean(dry_run=True)[0]) == 4
    assert not (tmp_path / "locks").exists()


def test_links_are_not_followed(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "mine").write_bytes(bytes(SIZE))
    filled(tmp_path / "store", ONE)
    link = tmp_path / "store" / "entries" / "bundle-link-0123456789abcdef"
    link.symlink_to(outside)
    with Store(tmp_path / "store") as store:
        (linked,) = [entry for entry in store.entries() if entry.label == "link"]
        assert linked.bytes < SIZE
        assert len(store.clean()[0]) == 2
    assert (outside / "mine").exists()
    assert not link.is_symlink()


def test_removing_makes_room_for_another(tmp_path: Path) -> None:
    with Store(tmp_path) as store:
        first = store.made(ONE, of(1))
        store.remove(ONE)
        assert store.find(ONE) is None
        store.remove(ONE)
        assert store.made(ONE, of(2)) == first
        assert first.read_bytes() == bytes(2)


def test_when_it_was_used_is_known(tmp_path: Path) -> None:
    filled(tmp_path, ONE)
    before = time.time() - 5
    with Store(tmp_path) as store:
        assert store.entries()[0].used == 86400
        store.find(ONE)
        assert store.entries()[0].used > before
