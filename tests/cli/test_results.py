"""A command whose file goes to stdout shows its tables on stderr, so that a pipe gets the file alone."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from nextscale.cli.main import main

COMMANDS = {
    "evaluate": ("{bundle}", "--images", 2),
    "bench": ("--repetitions", 2, "--form", "generate"),
    "theta": ("--images", 2),
}


@pytest.mark.parametrize("command", COMMANDS)
def test_figures_through_a_pipe(fp32_bundle: Path, capfd: pytest.CaptureFixture[str], command: str) -> None:
    words = [str(word).format(bundle=fp32_bundle) for word in COMMANDS[command]]
    assert main([command, str(fp32_bundle), *words, "--threads", "1", "--json", "/dev/stdout"]) == 0
    captured = capfd.readouterr()
    assert isinstance(json.loads(captured.out), dict)
    assert "tiny" in captured.err or "bundle" in captured.err
