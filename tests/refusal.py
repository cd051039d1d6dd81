"""What every command does with bad input."""

import pytest


def assert_refused(capsys: pytest.CaptureFixture[str], code: int, message: str) -> None:
    """Exit code 2, and one line that says so."""
    captured = capsys.readouterr()
    assert code == 2
    assert captured.out == ""
    assert captured.err.startswith("error: ")
    assert captured.err.count("\n") == 1
    assert message in captured.err
