from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

import pytest

from nextscale.demo.emoji import packages
from nextscale.demo.emoji.packages import Package, fetch, files, json_files
from nextscale.runtime._errors import NextscaleError

Archive = Callable[[dict[str, object]], Path]


@pytest.fixture
def package(archive: Archive) -> Package:
    """Its archive lies in the folder `cache` of the test's."""
    path = archive({"a.json": [1], "b.txt": b"text"})
    found = Package("@some/thing", "1.2.3", hashlib.sha256(path.read_bytes()).hexdigest())
    (path.parent / "cache").mkdir()
    path.rename(path.parent / "cache" / "some-thing-1.2.3.tgz")
    return found


def test_an_archive_that_is_there_is_not_fetched(
    package: Package, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(packages.shutil, "which", lambda name: None)
    path = fetch(package, tmp_path / "cache")
    assert dict(files(path, lambda name: True)) == {"a.json": b"[1]", "b.txt": b"text"}
    assert json_files(path, {"a.json"}) == {"a.json": [1]}


def test_another_archive_of_that_name_is_refused(package: Package, tmp_path: Path) -> None:
    path = tmp_path / "cache" / package.archive
    path.write_bytes(path.read_bytes() + b"\0")
    with pytest.raises(NextscaleError, match=f"sha256 [0-9a-f]{{64}}, expected {package.sha256} of @some/thing@1.2.3"):
        fetch(package, tmp_path / "cache")


def test_without_npm_one_line_says_so(package: Package, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packages.shutil, "which", lambda name: None)
    with pytest.raises(NextscaleError, match=r"npm is needed to fetch @some/thing@1.2.3; install it"):
        fetch(package, tmp_path / "elsewhere")


@pytest.mark.parametrize(("script", "reason"), [("echo no such >&2; exit 1", "no such"), ("exit 0", "no package came")])
def test_what_npm_says_is_passed_on(
    script: str, reason: str, package: Package, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    npm = tmp_path / "npm"
    npm.write_text(f"#!/bin/sh\n{script}\n")
    npm.chmod(0o755)
    monkeypatch.setattr(packages.shutil, "which", lambda name: str(npm))
    with pytest.raises(NextscaleError, match=f"npm pack @some/thing@1.2.3 failed: {reason}"):
        fetch(package, tmp_path / "elsewhere")
    assert list((tmp_path / "elsewhere").iterdir()) == []


def test_npm_puts_the_archive_into_the_cache(package: Package, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    packed, npm = tmp_path / "cache" / package.archive, tmp_path / "npm"
    npm.write_text(f'#!/bin/sh\nwhile [ "$1" != --pack-destination ]; do shift; done\ncp {packed} "$2"\n')
    npm.chmod(0o755)
    monkeypatch.setattr(packages.shutil, "which", lambda name: str(npm))
    assert fetch(package, tmp_path / "elsewhere").read_bytes() == packed.read_bytes()
    assert [path.name for path in (tmp_path / "elsewhere").iterdir()] == [package.archive]


def test_a_file_that_a_package_lacks_is_named(archive: Archive) -> None:
    with pytest.raises(NextscaleError, match=r"package.tgz has no b.json"):
        json_files(archive({"a.json": 1}), {"a.json", "b.json"})
