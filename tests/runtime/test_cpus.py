"""tests/conformance has the trees of files, for all languages; here is what Python alone says of CPUs."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from nextscale.runtime._cpus import default_threads, logical_cpus, physical_cpus
from nextscale.runtime._machine import describe_machine
from nextscale.runtime._session import SessionOptions, session_settings

needs_linux = pytest.mark.skipif(sys.platform != "linux", reason="needs Linux")


def tree(root: Path, cpus: str, quota: str = "max") -> Path:
    """A machine whose logical CPUs 0 and 4, 1 and 5, and so on are hyperthreads of one core."""
    files = {
        "proc/thread-self/status": f"Cpus_allowed_list:\t{cpus}\n",
        "proc/thread-self/cgroup": "0::/\n",
        "proc/thread-self/mountinfo": "30 23 0:26 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n",
        "sys/fs/cgroup/cpu.max": f"{quota} 100000\n",
        **{
            f"sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list": f"{cpu % 4},{cpu % 4 + 4}\n"
            for cpu in range(8)
        },
    }
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


@pytest.mark.parametrize(
    ("cpus", "quota", "physical", "logical"),
    [
        ("0-7", "max", [0, 1, 2, 3], 8),
        ("0-2,4-5", "max", [0, 1, 2], 5),
        ("5-7", "max", [5, 6, 7], 3),
        ("0-7", "250000", [0, 1, 2, 3], 3),
    ],
)
def test_cpus_of_a_tree(tmp_path: Path, cpus: str, quota: str, physical: list[int], logical: int) -> None:
    root = tree(tmp_path, cpus, quota)
    assert physical_cpus(root) == physical
    assert logical_cpus(root) == logical


def test_without_files_python_counts_logical_cpus(tmp_path: Path) -> None:
    assert physical_cpus(tmp_path) == []
    assert logical_cpus(tmp_path) == os.cpu_count()


@needs_linux
def test_affinity_is_that_of_the_process() -> None:
    cpu = min(os.sched_getaffinity(0))
    program = f"""
import os
os.sched_setaffinity(0, [{cpu}])
from nextscale.runtime._cpus import default_threads, physical_cpus
from nextscale.runtime._machine import describe_machine
print(default_threads(), physical_cpus(), describe_machine().logical_cpus)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == f"1 [{cpu}] 1\n"


@needs_linux
def test_a_session_takes_the_threads_that_the_process_may_use() -> None:
    assert 1 <= default_threads() <= describe_machine().logical_cpus <= len(os.sched_getaffinity(0))
    assert session_settings(SessionOptions()).intra_op_num_threads == default_threads()
    assert session_settings(SessionOptions(threads=3)).intra_op_num_threads == 3
