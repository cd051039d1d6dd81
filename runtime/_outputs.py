"""How a command's outputs are written: files and folders complete or not at all, devices and pipes directly."""

import contextlib
import errno
import io
import os
import re
import stat
import sys
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from nextscale.runtime._errors import OutputError
from nextscale.runtime._interrupts import when_interrupted
from nextscale.runtime._scratch import scratch_folder

Writer = Callable[[BinaryIO], object]
_MAX_LINKS = 40
_OPEN_FILE = re.compile(r"/proc/(\d+)(?:/task/\d+)?/fd/(\d+)")
_REFUSED_KINDS = {stat.S_IFDIR: "a folder", stat.S_IFBLK: "a disk", stat.S_IFSOCK: "a socket"}


def require_writable(paths: Iterable[Path], inputs: Iterable[Path] = ()) -> None:
    """Find out before a long computation whether files can be written.

    Args:
        paths: of the files.
        inputs: files that are read meanwhile and must stay as they are; a folder stands for all that is in it.
    Raises:
        OutputError: a folder is missing or read-only, a path is a folder, a disk or a socket, two paths name one file,
            or a path names an input.
    """
    with _outputs(paths) as outputs:
        read = _files_read(inputs) if outputs else {}
        for output in outputs:
            found = read.get(_file_number(output.place)) if output.place.exists() else None
            if found is not None:
                raise OutputError(f"cannot write {output.path}: it is {found}, which is read; give another name")


def require_absent(folder: Path) -> None:
    """Find out before a long computation whether a folder may be made.

    Raises:
        OutputError: there is something already.
    """
    if os.path.lexists(folder):
        raise OutputError(f"{folder}: exists already; choose another --out or remove it first")


def make_folder(folder: Path) -> None:
    """Make a folder that is kept and gone on with, and those above it, unless it is there.

    Raises:
        OutputError: it cannot be made.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"cannot make {folder}: {error.strerror}") from None


def write_files(writers: Mapping[Path, Writer]) -> None:
    """Write several files, all or none: each beside its place first, then moved there.

    A link is written through, and a file keeps its permissions. A device or a pipe, such as /dev/stdout, gets its
    content before any file is moved.

    Raises:
        OutputError: as `require_writable`, or a disk is full.
    """
    with _outputs(writers) as outputs:
        contents = {}
        for output in outputs:
            with _told(output.path):
                if output.temporary is None:
                    contents[output] = io.BytesIO()
                    writers[output.path](contents[output])
                else:
                    _write(output.temporary, writers[output.path])
        for output, content in contents.items():
            with _told(output.path):
                _write_directly(output.place, content.getbuffer())
        for output in outputs:
            if output.temporary is not None:
                with _told(output.path):
                    if output.place.exists():
                        output.temporary.chmod(stat.S_IMODE(output.place.stat().st_mode))
                    os.replace(output.temporary, output.place)


def is_stdout(path: Path) -> bool:
    """Whether what is written to the path goes to this process's stdout."""
    return _own_handle(_place(path)) == 1


def is_open_file(path: Path) -> bool:
    """Whether the path stands for what a process has open, such as /dev/stdin or a shell's <(command)."""
    try:
        return _OPEN_FILE.fullmatch(str(_place(path))) is not None
    except (OSError, ValueError):  # a circle of links, or no path at all
        return False


@contextmanager
def atomic_folder(target: Path) -> Iterator[Path]:
    """A temporary folder that becomes `target` when the block ends well and vanishes otherwise.

    Whatever else the block leaves in the temporary folder's parent vanishes as well.

    Raises:
        OutputError: target exists already, or its parent is no folder that can be written.
    """
    require_absent(target)
    made = [parent for parent in target.parents if not parent.exists()]

    def remove_parents() -> None:
        with contextlib.suppress(OSError):  # that a folder is not empty
            for parent in made:
                parent.rmdir()

    with when_interrupted(remove_parents), ExitStack() as stack:
        stack.callback(remove_parents)
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            scratch = stack.enter_context(scratch_folder(target.parent))
        except OSError as error:
            raise OutputError(f"{target.parent}: cannot write there ({error.strerror}); choose another --out") from None
        partial = scratch / target.name
        try:
            partial.mkdir()
            yield partial
            partial.rename(target)
        except OSError as error:
            if error.filename is not None and not str(error.filename).startswith(str(scratch)):
                raise
            raise OutputError(f"{target}: cannot be written ({error.strerror}); nothing was left there") from None


@dataclass(frozen=True)
class _Output:
    """One file that a command writes.

    Attributes:
        path: as the user named it.
        place: behind all links.
        temporary: where it is written first; None: it is written directly.
    """

    path: Path
    place: Path
    temporary: Path | None


@contextmanager
def _outputs(paths: Iterable[Path]) -> Iterator[list[_Output]]:
    """The outputs of a command, each of which can be written."""
    scratches: dict[Path, Path] = {}
    known: dict[tuple[object, ...], Path] = {}
    outputs: list[_Output] = []
    with ExitStack() as stack:
        for path in paths:
            with _told(path):
                place = _place(path)
                direct = _is_direct(place)
                _require_kind(place)
                if not direct and place.parent not in scratches:
                    scratches[place.parent] = stack.enter_context(scratch_folder(place.parent))
                identity = _identity(place, scratches.get(place.parent))
            if identity is not None and known.setdefault(identity, path) is not path:
                raise OutputError(f"{known[identity]} and {path} are one file; give each output a name of its own")
            temporary = None if direct else scratches[place.parent] / f"{len(outputs)}"
            outputs.append(_Output(path, place, temporary))
        yield outputs


def _place(path: Path) -> Path:
    """The path behind all links; of what stands for an open file of a process, such as /dev/stdout, its path in /proc.

    Raises:
        OSError: links lead in a circle.
    """
    place = path
    for _ in range(_MAX_LINKS):
        place = Path(os.path.realpath(place.parent), place.name)
        if _OPEN_FILE.fullmatch(str(place)) or not place.is_symlink():
            return place
        place = place.parent / os.readlink(place)
    raise OSError(errno.ELOOP, os.strerror(errno.ELOOP))


def _is_direct(place: Path) -> bool:
    return _OPEN_FILE.fullmatch(str(place)) is not None or (place.exists() and not place.is_file())


def _require_kind(place: Path) -> None:
    """Raise OSError unless it is a file, device or pipe that may be written, or none yet in a folder."""
    own = _own_handle(place)
    if own is not None:
        os.write(own, b"")  # refused where it is not open, or for reading alone
        return
    if not place.exists():
        if not place.parent.is_dir():
            raise OSError(errno.ENOENT, f"there is no folder {place.parent}")
        return
    kind = stat.S_IFMT(place.stat().st_mode)
    if kind in _REFUSED_KINDS:
        raise OSError(errno.EINVAL, f"it is {_REFUSED_KINDS[kind]}")
    if not os.access(place, os.W_OK):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))


def _identity(place: Path, scratch: Path | None) -> tuple[object, ...] | None:
    """Equal for places that are one file; None for a device, which takes several outputs."""
    if place.exists():
        return None if stat.S_ISCHR(place.stat().st_mode) else _file_number(place)
    assert scratch is not None
    folder = place.parent.stat()
    return folder.st_dev, folder.st_ino, _as_compared(place.name, scratch)


def _as_compared(name: str, scratch: Path) -> str:
    """Equal for names that the file system of the folder `scratch` takes for one."""
    probe = scratch / "probe"
    probe.touch()
    ignores_case = probe.with_name("PROBE").exists()
    return unicodedata.normalize("NFC", name).casefold() if ignores_case else name


def _files_read(inputs: Iterable[Path]) -> dict[tuple[int, int], Path]:
    """The files that are inputs, or in one."""
    files = [file for path in inputs for file in (path.rglob("*") if path.is_dir() else [path]) if file.is_file()]
    return {_file_number(file): file for file in files}


def _file_number(place: Path) -> tuple[int, int]:
    """Equal for paths of one file, whether by links or by several names."""
    found = place.stat()
    return found.st_dev, found.st_ino


def _own_handle(place: Path) -> int | None:
    match = _OPEN_FILE.fullmatch(str(place))
    return int(match[2]) if match and int(match[1]) == os.getpid() else None


def _write(temporary: Path, write: Writer) -> None:
    with open(temporary, "wb") as file:
        write(file)
        file.flush()
        os.fsync(file.fileno())


def _write_directly(place: Path, content: memoryview) -> None:
    own = _own_handle(place)
    if own is not None and sys.stdout is not None:
        sys.stdout.flush()  # what was printed before stands before
    with open(os.dup(own) if own is not None else place, "wb") as file:
        file.write(content)


@contextmanager
def _told(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise OutputError(f"cannot write {path}: {error.strerror or error}") from None
