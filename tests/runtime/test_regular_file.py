"""What is no regular file is refused before anybody waits for it; no file, and a folder, are for whoever opens them."""

import os
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from nextscale.runtime import BundleError, NextscaleError
from nextscale.runtime._regular_file import require_regular


@pytest.mark.parametrize("error", [NextscaleError, BundleError])
def test_pipes_and_devices_are_refused(
    tmp_path: Path, make_fifo: Callable[[Path], Path], error: type[NextscaleError]
) -> None:
    for path in (make_fifo(tmp_path / "fifo"), Path("/dev/zero")):
        for or_open in (False, True):
            with pytest.raises(error, match=f"^{re.escape(str(path))}: not a regular file; give the path of one$"):
                require_regular(path, error, or_open=or_open)


def test_files_folders_and_nothing_pass(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "link").symlink_to("file")
    for path in (tmp_path, *(tmp_path / name for name in ("file", "link", "none")), Path("a\0b")):
        require_regular(path)
        require_regular(path, or_open=True)


def test_a_pipe_that_is_open_passes_on_request() -> None:
    reader, writer = os.pipe()
    try:
        require_regular(Path(f"/dev/fd/{reader}"), or_open=True)
        with pytest.raises(NextscaleError, match="not a regular file"):
            require_regular(Path(f"/dev/fd/{reader}"))
    finally:
        os.close(reader)
        os.close(writer)
