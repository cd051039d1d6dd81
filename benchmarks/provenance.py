"""What every result file says about where it comes from: commit, command, machine, versions."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from nextscale.measure.provenance import versions
from nextscale.runtime._machine import describe_machine

RESULTS = Path(__file__).parent / "results"


def commit() -> str:
    """The checkout's commit, marked if files differ from it; "unknown" outside a checkout or without git."""
    root = Path(__file__).parent
    command = ["git", "describe", "--always", "--dirty", "--exclude", "*"]
    try:
        described = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        return "unknown"
    return described.stdout.strip() or "unknown"


def provenance(threads: int) -> list[str]:
    """Lines of Markdown for the top of a result file."""
    machine = describe_machine()
    command = " ".join(["python", f"benchmarks/{Path(sys.argv[0]).name}", *sys.argv[1:]])
    numbers = ", ".join(f"{name} {version}" for name, version in versions().items())
    return [
        f"- command: `{command}`",
        f"- commit: {commit()}",
        f"- machine: {machine.cpu}, {machine.logical_cpus} logical CPUs, {' '.join(machine.isa)}, {machine.system}",
        f"- threads: {threads}; {numbers}",
    ]


def circumstances(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The same for a JSON file: commit, machine, versions, and the settings of the measurement."""
    return {
        "commit": commit(),
        "machine": asdict(describe_machine()),
        "versions": versions(),
        "settings": dict(settings),
    }


def publish(name: str, lines: list[str]) -> None:
    """Print a report and keep it as results/{name}.md."""
    text = "\n".join(lines) + "\n"
    print(text)
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"{name}.md").write_text(text, encoding="utf-8")
