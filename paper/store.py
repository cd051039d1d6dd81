"""What the paper's commands build, kept in one folder by its content within a limit, and gone on with there.

store.json                        which says that it is one
entries/{kind}-{label}-{digest}/  key.json, and `data`, a file or a folder; there completely or not at all
work/{kind}-{label}-{digest}/     what is finished of an entry that is not complete
figures/                          what is measured, in files named by their bundles' content
locks/                            {digest}.use: who uses an entry shares it; {digest}.make: who makes it has it
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nextscale.calib_data._work_folder import open_work
from nextscale.evaluate._kept_figures import reading
from nextscale.measure.provenance import versions
from nextscale.paper._locks import is_locked, lock, locked_alone
from nextscale.runtime._errors import NextscaleError, OutputError
from nextscale.runtime._machine import describe_machine
from nextscale.runtime._outputs import atomic_folder, make_folder, write_files
from nextscale.runtime._regular_file import read_regular
from nextscale.runtime._scratch import remove_folder

if TYPE_CHECKING:
    from typing_extensions import Self

SCHEMA = 1
# What there is, and a number to count up when what is made of the same values changes.
KINDS = {"bundle": 1, "model": 1, "maps": 1, "rounding": 1, "facts": 1}
LARGE = ("bundle", "model")  # which are evicted before the others
FIGURES = "figures"  # the kind of what is in the folder of that name
DEFAULT_LIMIT = 40 * 10**9
MANIFEST, KEY, DATA = "store.json", "key.json", "data"
MARK = "nextscale paper"
MOST_READ = 16 * 2**20  # bytes of a key
SCRATCH = ".nextscale-"  # how names of temporary folders begin
_NAME = re.compile(r"([a-z]+)-([A-Za-z0-9.+_-]*)-([0-9a-f]{16})")


@dataclass(frozen=True)
class Key:
    """What decides an entry.

    Attributes:
        kind: one of KINDS.
        values: plain JSON values; digests of what the entry is made from among them.
        label: for people; not a part of what decides.
    """

    kind: str
    values: Mapping[str, Any]
    label: str = field(default="", compare=False)

    @cached_property
    def digest(self) -> str:
        """Equal for equal kinds and values."""
        told = json.dumps([SCHEMA, self.kind, KINDS[self.kind], self.values], sort_keys=True)
        return hashlib.sha256(told.encode()).hexdigest()[:16]

    @property
    def name(self) -> str:
        """Of a folder."""
        return f"{self.kind}-{re.sub(r'[^A-Za-z0-9.+_-]+', '_', self.label)[:60]}-{self.digest}"


@dataclass(frozen=True)
class Entry:
    """What the store has.

    Attributes:
        path: the folder, or of figures perhaps a file.
        kind: one of KINDS, or FIGURES.
        label: for people.
        digest: of its key; empty for figures.
        bytes: of all its files.
        used: seconds since 1970, when it was last found or written.
        complete: or it is begun.
    """

    path: Path
    kind: str
    label: str
    digest: str
    bytes: int
    used: float
    complete: bool


class Store:
    """The folder. What a call finds or makes stays in use, and is there, until the store is closed.

    Args:
        folder: made when something is put into it.
        limit: bytes; entries that nobody uses go to keep within it, those used longest ago first.
    Raises:
        NextscaleError: the folder holds something else, or a store of another version.
    """

    def __init__(self, folder: Path, limit: int = DEFAULT_LIMIT) -> None:
        self.folder, self.limit = folder, limit
        self._entries, self._work, self._locks = (folder / name for name in ("entries", "work", "locks"))
        self._used = dict[str, int | None]()
        self._require_store()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """Let go of all that is in use."""
        for handle in self._used.values():
            if handle is not None:
                os.close(handle)
        self._used.clear()

    @property
    def figures(self) -> Path:
        """The folder of what is measured; its files go by `clean` alone, when no store that asked for it is open."""
        self._use(FIGURES)
        make_folder(self.folder / FIGURES)
        return self.folder / FIGURES

    def hold(self, *keys: Key) -> None:
        """Keep the entries, also those that are yet to be made, from being evicted while this store is open."""
        for key in keys:
            self._use(key.digest)

    def find(self, key: Key) -> Path | None:
        """The entry's file or folder; None: it is not there.

        Raises:
            NextscaleError: it is damaged.
        """
        if _existing(self._entries, key) is None:
            return None
        self._use(key.digest)
        entry = _existing(self._entries, key)  # another process may have evicted it before it was in use
        if entry is None:
            return None
        with reading_entry(entry / DATA):
            found = json.loads(read_regular(entry / KEY, MOST_READ, ""))
            if found["digest"] != key.digest or not (entry / DATA).exists():
                raise ValueError(f"{KEY} is of another, or there is no {DATA}")
        with suppress(OSError):  # in a folder that is only read
            os.utime(entry / KEY)
        return entry / DATA

    def made(
        self,
        key: Key,
        make: Callable[[Path], object],
        *,
        needed: int = 0,
        waiting: Callable[[], object] = lambda: None,
    ) -> Path:
        """The entry, which is made unless it is there; of several processes one makes it, and the others wait.

        Args:
            key: of the entry.
            make: makes the file or the folder of the path that it is given. What `partial` has for it is kept until
                the entry is complete.
            needed: bytes that it takes, about.
            waiting: called where another process makes it.
        Raises:
            NextscaleError: it is damaged.
            OutputError: there is no room, or the folder cannot be written.
        """
        self._use(key.digest)
        there = self.find(key)
        if there is not None:
            return there
        with self._making(key, waiting):
            found = self.find(key)
            if found is not None:
                return found
            self.require_room(needed)
            began, target = time.monotonic(), self._entries / key.name
            with atomic_folder(target) as folder:
                make(folder / DATA)
                document = {
                    "schema": SCHEMA,
                    "digest": key.digest,
                    "kind": key.kind,
                    "label": key.label,
                    "values": key.values,
                    "seconds": round(time.monotonic() - began, 1),
                    "machine": describe_machine().cpu,
                    "versions": versions(),
                }
                _write_json(folder / KEY, document)
            begun = _existing(self._work, key)
            if begun is not None:
                remove_folder(begun)
        self.evict()
        return target / DATA

    def partial(self, key: Key) -> Path:
        """A folder for what is finished of an entry while it is made; a killed run's is gone on with.

        Raises:
            NextscaleError: it is damaged.
        """
        folder = _existing(self._work, key) or self._work / key.name
        try:
            open_work(folder, {"kind": key.kind, "values": key.values})
        except OutputError:
            raise
        except NextscaleError:
            raise NextscaleError(f"{folder}: damaged; remove this folder to begin that again") from None
        return folder

    def remove(self, key: Key) -> None:
        """Remove an entry, if it is there, so that it is made anew.

        Raises:
            NextscaleError: another process uses it.
        """
        entry = _existing(self._entries, key)
        if entry is None:
            return
        handle = self._used.pop(key.digest, None)
        if handle is not None:
            os.close(handle)
        with self._alone(key.digest) as alone:
            if not alone:
                raise NextscaleError(f"{entry}: another command uses it; wait for it, or choose another --store")
            remove_folder(entry)

    def entries(self) -> list[Entry]:
        """All that there is, what was used last at the end."""
        found = []
        for folder, complete in ((self._entries, True), (self._work, False)):
            for path in _listed(folder):
                match = _NAME.fullmatch(path.name)
                if match is not None:
                    kind, label, digest = match.groups()
                    found.append(Entry(path, kind, label, digest, _bytes(path), _used(path, complete), complete))
        for path in _listed(self.folder / FIGURES):
            found.append(Entry(path, FIGURES, path.name, "", _bytes(path), _used(path, False), True))
        return sorted(found, key=lambda entry: entry.used)

    def require_room(self, needed: int) -> None:
        """Evict until so many bytes fit within the limit and on the disk.

        Raises:
            OutputError: they do not.
        """
        self.evict(needed)
        used, free = sum(entry.bytes for entry in self.entries()), self._free()
        if used + needed > self.limit:
            raise OutputError(
                f"{self.folder}: {in_gigabytes(used)} are in use, and {in_gigabytes(needed)} more are needed, beyond "
                f"the limit of {in_gigabytes(self.limit)}; give a larger --store-limit, or see `nextscale paper clean`"
            )
        if needed > free:
            raise OutputError(
                f"{self.folder}: {in_gigabytes(needed)} are needed, and its disk has {in_gigabytes(free)} left; make "
                "room, or choose another --store"
            )

    def evict(self, needed: int = 0) -> list[Entry]:
        """Remove entries that nobody uses until so many bytes fit within the limit and on the disk.

        Large ones go before those that are small for the time that they took, and of each those used longest ago.

        Returns:
            What was removed.
        """
        entries = self.entries()
        excess = sum(entry.bytes for entry in entries) + needed - self.limit
        excess = max(excess, needed - self._free() if needed else 0)
        removed = list[Entry]()
        for entry in sorted(entries, key=lambda entry: entry.kind not in LARGE):
            if excess <= 0:
                break
            if entry.complete and entry.kind != FIGURES and self._removed(entry):
                removed.append(entry)
                excess -= entry.bytes
        return removed

    def clean(
        self, kinds: Collection[str] = (), older_than: float | None = None, *, dry_run: bool = False
    ) -> tuple[list[Entry], list[Entry]]:
        """Remove what nobody uses.

        Args:
            kinds: these alone; none: all.
            older_than: seconds since it was used; None: whenever that was.
            dry_run: remove nothing; the folder is only read.
        Returns:
            What was removed, or would be; and what is left because it is in use.
        """
        latest = None if older_than is None else time.time() - older_than
        removed, left = list[Entry](), list[Entry]()
        for entry in self.entries():
            if (latest is None or entry.used <= latest) and (not kinds or entry.kind in kinds):
                gone = not self._is_used(entry) if dry_run else self._removed(entry)
                (removed if gone else left).append(entry)
        return removed, left

    def _require_store(self) -> None:
        path = self.folder / MANIFEST
        others = _listed(self.folder)  # before it is looked for: another process may begin the store meanwhile
        if not path.exists():
            if others:
                raise NextscaleError(f"{self.folder}: holds other files, and no {MANIFEST}; choose another --store")
            return
        try:
            told = json.loads(read_regular(path, MOST_READ, ""))
            schema = told["schema"] if told["of"] == MARK else None
        except (NextscaleError, ValueError, KeyError, TypeError, RecursionError):
            schema = None
        if schema != SCHEMA:
            raise NextscaleError(
                f"{path}: damaged, or of another version of nextscale; choose another --store, or remove {self.folder}"
            )
        for folder in (self._entries, self._work, self._locks, self.folder / FIGURES):
            if folder.is_symlink():
                raise NextscaleError(f"{folder}: a link, which no store has; remove it, or choose another --store")

    def _begin(self) -> None:
        self._require_store()
        make_folder(self.folder)
        if not (self.folder / MANIFEST).exists():
            _write_json(self.folder / MANIFEST, {"of": MARK, "schema": SCHEMA})
        for folder in (self._entries, self._work, self._locks):
            make_folder(folder)

    def _use(self, digest: str) -> None:
        if digest not in self._used:
            self._begin()
            with suppress(OSError):  # in a folder that is only read, where nothing can be evicted
                self._used[digest] = lock(self._locks / f"{digest}.use", shared=True)

    @contextmanager
    def _making(self, key: Key, waiting: Callable[[], object]) -> Iterator[None]:
        """Meanwhile this process alone makes the entry."""
        path = self._locks / f"{key.digest}.make"
        try:
            handle = lock(path, shared=False, wait=False)
            if handle is None:
                waiting()
                handle = lock(path, shared=False)
        except OSError as error:
            raise OutputError(f"cannot write {path}: {error.strerror}") from None
        try:
            yield
        finally:
            if handle is not None:
                os.close(handle)

    @contextmanager
    def _alone(self, digest: str) -> Iterator[bool]:
        """Whether nobody, this store included, uses or makes an entry; then nobody does meanwhile."""
        make_folder(self._locks)
        with locked_alone(*self._locks_of(digest)) as alone:
            yield alone

    def _locks_of(self, digest: str) -> list[Path]:
        return [self._locks / f"{digest}.{form}" for form in ("use", "make")]

    def _is_used(self, entry: Entry) -> bool:
        """Whether somebody, this store included, uses or makes an entry."""
        return any(map(is_locked, self._locks_of(entry.digest or FIGURES)))

    def _removed(self, entry: Entry) -> bool:
        """Remove an entry unless it is in use."""
        with self._alone(entry.digest or FIGURES) as alone:
            if alone and entry.path.exists():
                if entry.path.is_dir():
                    remove_folder(entry.path)
                else:
                    entry.path.unlink()
            return alone

    def _free(self) -> int:
        self._begin()
        return shutil.disk_usage(self.folder).free


def reading_entry(data: Path) -> AbstractContextManager[None]:
    """`reading` an entry's file or folder, as `find` and `made` give it."""
    return reading(data, f"{data.parent}: damaged; remove this folder to make it again")


def in_gigabytes(count: int) -> str:
    """For people; of less than 0.1 GB, in megabytes."""
    return f"{count / 1e9:.1f} GB" if count >= 10**8 else f"{count / 1e6:.1f} MB"


def _existing(parent: Path, key: Key) -> Path | None:
    """The folder of a key, whatever the label that it was made with."""
    return next(parent.glob(f"{key.kind}-*-{key.digest}"), None)


def _listed(folder: Path) -> list[Path]:
    """What is in a folder, but for what is being written; nothing if there is none."""
    try:
        return sorted(path for path in folder.iterdir() if not path.name.startswith(SCRATCH))
    except FileNotFoundError:
        return []
    except OSError as error:
        raise NextscaleError(f"{folder}: cannot be read ({error.strerror}); choose another --store") from None


def _bytes(path: Path) -> int:
    """Of a file, or of all in a folder; links are not followed."""
    total, is_folder = 0, path.is_dir() and not path.is_symlink()
    for place in (Path(root, name) for root, _, names in os.walk(path) for name in names) if is_folder else [path]:
        with suppress(OSError):  # gone meanwhile
            total += place.lstat().st_size
    return total


def _used(path: Path, complete: bool) -> float:
    for place in (path / KEY, path) if complete else (path,):
        with suppress(OSError):
            return place.lstat().st_mtime
    return 0.0


def _write_json(path: Path, document: Mapping[str, Any]) -> None:
    text = json.dumps(document, indent=1) + "\n"
    write_files({path: lambda file: file.write(text.encode())})
