"""Files and folders are there complete or not at all; links, devices and pipes are written as their users mean them."""

from __future__ import annotations

import errno
import os
import socket
import stat
import subprocess
import sys
import threading
from pathlib import Path
from typing import BinaryIO

import pytest

from nextscale.runtime import OutputError
from nextscale.runtime._outputs import atomic_folder, is_stdout, require_writable, write_files

WRITE = """
import sys; sys.path[:] = {path!r}
from pathlib import Path
from nextscale.runtime._outputs import require_writable, write_files
require_writable([Path(name) for name in {names!r}])
print("before")
write_files({{Path(name): lambda file: file.write(b"content\\n") for name in {names!r}}})
print("after")
"""


def refuse(message: str) -> pytest.RaisesExc[OutputError]:
    return pytest.raises(OutputError, match=message)


def content(file: BinaryIO) -> None:
    file.write(b"content\n")


def writing(*names: str) -> list[str]:
    """A program that prints "before", writes content to the files, and prints "after"."""
    return [sys.executable, "-c", WRITE.format(path=sys.path, names=names)]


# write_files and require_writable


def test_files_get_ordinary_permissions(tmp_path: Path) -> None:
    (tmp_path / "ordinary").touch()
    write_files({tmp_path / "a.txt": lambda file: file.write(b"a")})
    assert stat.S_IMODE((tmp_path / "a.txt").stat().st_mode) == stat.S_IMODE((tmp_path / "ordinary").stat().st_mode)


def full(file: BinaryIO) -> None:
    file.write(b"half")
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def interrupted(file: BinaryIO) -> None:
    file.write(b"half")
    raise KeyboardInterrupt


@pytest.mark.parametrize(("failing", "error"), [(full, OutputError), (interrupted, KeyboardInterrupt)])
def test_all_files_are_written_or_none(tmp_path: Path, failing: object, error: type[BaseException]) -> None:
    (tmp_path / "first").write_text("old")
    with pytest.raises(error) as caught:
        write_files({tmp_path / "first": lambda file: file.write(b"new"), tmp_path / "second": failing})  # type: ignore[dict-item]
    assert os.listdir(tmp_path) == ["first"]
    assert (tmp_path / "first").read_text() == "old"
    if error is OutputError:
        assert str(caught.value) == f"cannot write {tmp_path / 'second'}: No space left on device"


def test_writable_paths_leave_no_trace(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_text("old")
    require_writable([tmp_path / "a.png", tmp_path / "b.png"])
    assert os.listdir(tmp_path) == ["a.png"]
    assert (tmp_path / "a.png").read_text() == "old"


@pytest.mark.parametrize("inputs", ["folder", "folder/weights"], ids=["a folder", "a file"])
def test_a_file_that_is_read_is_refused_by_whatever_name(tmp_path: Path, inputs: str) -> None:
    weights = tmp_path / "folder" / "weights"
    weights.parent.mkdir()
    weights.write_text("old")
    (tmp_path / "link").symlink_to("folder/weights")
    (tmp_path / "name").hardlink_to(weights)
    for name in ("folder/weights", "folder/../folder/weights", "link", "name"):
        message = f"cannot write {tmp_path / name}: it is {weights}, which is read; give another name"
        with refuse(f"^{message}$"):
            require_writable([tmp_path / name], [tmp_path / inputs])
    require_writable([weights.with_name("other"), tmp_path / "other"], [tmp_path / inputs, tmp_path / "none"])


def test_unwritable_paths_are_refused(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match=f"cannot write {tmp_path}: it is a folder"):
        require_writable([tmp_path])
    with pytest.raises(OutputError, match=f"there is no folder {tmp_path / 'none'}"):
        require_writable([tmp_path / "none" / "a.png"])
    with pytest.raises(OutputError, match=r"cannot write /proc/a\.png: "):  # read-only for root too
        require_writable([Path("/proc/a.png")])


@pytest.mark.skipif(os.geteuid() == 0, reason="root writes to read-only folders")
def test_a_read_only_folder_is_refused(tmp_path: Path) -> None:
    tmp_path.chmod(0o555)
    with pytest.raises(OutputError, match="Permission denied"):
        require_writable([tmp_path / "a.png"])


def test_a_file_keeps_its_permissions(tmp_path: Path) -> None:
    (tmp_path / "secret").touch(0o600)
    write_files({tmp_path / "secret": content})
    assert stat.S_IMODE((tmp_path / "secret").stat().st_mode) == 0o600


@pytest.mark.parametrize("there", [True, False], ids=["link to a file", "link to none yet"])
def test_a_link_is_written_through(tmp_path: Path, there: bool) -> None:
    (tmp_path / "folder").mkdir()
    target, link = tmp_path / "folder" / "file", tmp_path / "link"
    if there:
        target.write_text("old")
    (tmp_path / "step").symlink_to("folder/file")
    link.symlink_to("step")
    require_writable([link])
    write_files({link: content})
    assert link.is_symlink()
    assert target.read_text() == "content\n"
    assert sorted(os.listdir(tmp_path)) == ["folder", "link", "step"]


def test_links_in_a_circle_are_refused(tmp_path: Path) -> None:
    (tmp_path / "a").symlink_to("b")
    (tmp_path / "b").symlink_to("a")
    with refuse(f"cannot write {tmp_path / 'a'}: Too many levels of symbolic links"):
        require_writable([tmp_path / "a"])


@pytest.mark.parametrize("second", ["./a", "b/../a", "link", "hard", "folder/a"])
def test_two_names_of_one_file_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, second: str) -> None:
    monkeypatch.chdir(tmp_path)
    Path("b").mkdir()
    Path("folder").symlink_to(tmp_path)
    Path("link").symlink_to("a")
    if second == "hard":
        Path("a").touch()
        Path("hard").hardlink_to("a")
    before = sorted(tmp_path.iterdir())
    for write in (require_writable, lambda paths: write_files(dict.fromkeys(paths, content))):
        with refuse(f"a and .*{Path(second).name} are one file; give each output a name of its own"):
            write([Path("a"), tmp_path / second])
    assert sorted(tmp_path.iterdir()) == before


def test_names_that_differ_in_case_are_one_file_where_the_folder_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = [tmp_path / "Größe.png", tmp_path / "GRÖSSE.PNG"]
    require_writable(paths)

    def exists(path: Path) -> bool:
        return path.parent.is_dir() and path.name.lower() in {name.lower() for name in os.listdir(path.parent)}

    monkeypatch.setattr(Path, "exists", exists)
    with refuse("are one file"):
        require_writable(paths)


def test_a_named_pipe_gets_the_content_and_stays(tmp_path: Path) -> None:
    pipe, read = tmp_path / "pipe", list[bytes]()
    os.mkfifo(pipe)
    require_writable([pipe])  # does not wait for a reader
    reader = threading.Thread(target=lambda: read.append(pipe.read_bytes()), daemon=True)
    reader.start()
    write_files({pipe: content, tmp_path / "file": content})
    assert pipe.is_fifo()
    reader.join()
    assert read == [b"content\n"]
    assert sorted(os.listdir(tmp_path)) == ["file", "pipe"]


def test_a_device_takes_several_outputs() -> None:
    main, device = os.openpty()
    path = Path(os.ttyname(device))
    require_writable([path, Path("/dev/fd") / str(device)])
    write_files({path: content, Path("/dev/fd") / str(device): content})
    found = b""
    while found.count(b"\n") < 2:
        found += os.read(main, 100)
    assert found == b"content\r\ncontent\r\n"
    assert path.is_char_device()


def test_stdout_as_a_pipe() -> None:
    done = subprocess.run(writing("/dev/stdout"), capture_output=True, text=True, check=False)
    assert (done.stdout, done.stderr) == ("before\ncontent\nafter\n", "")


def test_stdout_as_a_file(tmp_path: Path) -> None:
    with open(tmp_path / "out", "wb") as file:
        done = subprocess.run(writing("/dev/fd/1"), stdout=file, stderr=subprocess.PIPE, text=True, check=False)
        assert done.stderr == ""
    assert (tmp_path / "out").read_text() == "before\ncontent\nafter\n"
    assert os.listdir(tmp_path) == ["out"]


def test_stdin_is_no_output() -> None:
    done = subprocess.run(writing("/dev/stdin"), stdin=subprocess.PIPE, capture_output=True, text=True, check=False)
    assert done.stderr.endswith("OutputError: cannot write /dev/stdin: Bad file descriptor\n")


def test_stdout_is_known_by_any_name(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("/dev/stdout")
    known = (Path("/dev/stdout"), Path("/dev/fd/1"), Path("/proc/self/fd/1"), tmp_path / "link")
    assert [path for path in known if not is_stdout(path)] == []
    assert not any(map(is_stdout, (Path("/dev/stderr"), Path("/dev/null"), tmp_path / "stdout")))


def test_a_socket_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with socket.socket(socket.AF_UNIX) as server:
        server.bind("socket")
        with refuse("cannot write socket: it is a socket"):
            require_writable([Path("socket")])


def test_a_device_gets_nothing_of_an_output_that_fails() -> None:
    main, device = os.openpty()
    os.set_blocking(main, False)
    with refuse("No space left on device"):
        write_files({Path(os.ttyname(device)): full})
    with pytest.raises(BlockingIOError):
        os.read(main, 100)


# atomic_folder


def test_a_folder_appears_when_it_is_complete(tmp_path: Path) -> None:
    target = tmp_path / "bundle"
    with atomic_folder(target) as folder:
        (folder / "file").write_text("content")
        assert folder.parent.parent == tmp_path  # on the same disk
        assert not target.exists()
    assert [path.name for path in tmp_path.iterdir()] == ["bundle"]
    assert (target / "file").read_text() == "content"
    assert target.stat().st_mode & 0o777 == 0o755


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit])
def test_a_failure_leaves_nothing(tmp_path: Path, error: type[BaseException]) -> None:
    def fail(folder: Path) -> None:
        (folder / "nested").mkdir()
        (folder / "nested" / "file").write_text("content")
        raise error

    with pytest.raises(error), atomic_folder(tmp_path / "bundle") as folder:
        fail(folder)
    assert not list(tmp_path.iterdir())


def test_a_failure_leaves_no_parents_that_it_made(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), atomic_folder(tmp_path / "a" / "b" / "bundle"):
        raise KeyboardInterrupt
    assert not list(tmp_path.iterdir())


def test_missing_parents_are_made(tmp_path: Path) -> None:
    with atomic_folder(tmp_path / "a" / "b" / "bundle"):
        pass
    assert (tmp_path / "a" / "b" / "bundle").is_dir()


@pytest.mark.parametrize("kind", ["folder", "empty folder", "file", "dangling link"])
def test_what_exists_is_left_alone(tmp_path: Path, kind: str) -> None:
    target = tmp_path / "bundle"
    match kind:
        case "folder":
            target.mkdir()
            (target / "precious").write_text("mine")
        case "empty folder":
            target.mkdir()
        case "file":
            target.write_text("mine")
        case "dangling link":
            target.symlink_to(tmp_path / "nowhere")
    before = sorted(tmp_path.rglob("*"))
    with refuse("exists already; choose another --out"), atomic_folder(target):
        pytest.fail("began")
    assert sorted(tmp_path.rglob("*")) == before


def test_a_target_that_appears_meanwhile_is_left_alone(tmp_path: Path) -> None:
    target = tmp_path / "bundle"
    with refuse("cannot be written"), atomic_folder(target):
        target.mkdir()
        (target / "precious").write_text("mine")
    assert sorted(tmp_path.rglob("*")) == [target, target / "precious"]


@pytest.mark.parametrize("parent", ["file", "file/below", "/proc", "/dev/null"])
def test_a_parent_that_cannot_be_written_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, parent: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("file").write_text("mine")
    with refuse(r"cannot write there \(.+\); choose another --out"), atomic_folder(Path(parent) / "bundle"):
        pytest.fail("began")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_full_disk_leaves_nothing(tmp_path: Path) -> None:
    full = OSError(errno.ENOSPC, "No space left on device")
    message = r"bundle: cannot be written \(No space left on device\); nothing was left there"
    with refuse(message), atomic_folder(tmp_path / "bundle") as folder:
        (folder / "file").write_text("content")
        raise full
    assert not list(tmp_path.iterdir())


def test_an_error_about_another_file_is_not_disguised(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError), atomic_folder(tmp_path / "bundle"):
        (tmp_path / "elsewhere").read_text()
    assert not list(tmp_path.iterdir())
