"""The CPUs that this process may use: its affinity, its cores, and the quota of CPU time of its control groups.

Everything is read from Linux's files below a root folder, which a test may make. nextscale.hpp and NextScale.cs read
the same files in the same way.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

ROOT = Path("/")


def default_threads(root: Path = ROOT) -> int:
    """Threads of one operator where the user names no number: one for each physical core that this process may run on,
    and no more than the quota of CPU time, rounded up; 0, ONNX Runtime's own choice, where no file tells.

    Args:
        root: holds proc/ and sys/.
    """
    cores = len(physical_cpus(root))
    quota = cpu_quota(root)
    return cores if quota is None else min(cores, quota)


def logical_cpus(root: Path = ROOT) -> int:
    """CPUs whose time this process may use: those that it may run on, and no more than its quota, rounded up."""
    cpus = len(allowed_cpus(root)) or os.cpu_count() or 1
    quota = cpu_quota(root)
    return cpus if quota is None else min(cpus, quota)


def physical_cpus(root: Path = ROOT) -> list[int]:
    """One logical CPU of each core that this process may run on, in order; empty where no file tells."""
    found: dict[str, int] = {}
    for cpu in allowed_cpus(root):
        siblings = _text(root / f"sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list")
        found.setdefault(siblings.strip() or str(cpu), cpu)
    return list(found.values())


def allowed_cpus(root: Path = ROOT) -> list[int]:
    """The logical CPUs that the calling thread may run on, in order; empty where no file tells."""
    for line in _text(root / "proc/thread-self/status").splitlines():
        key, _, value = line.partition(":")
        if key == "Cpus_allowed_list":
            ranges = re.findall(r"(\d+)(?:-(\d+))?", value)
            return [cpu for first, last in ranges for cpu in range(int(first), int(last or first) + 1)]
    return []


def cpu_quota(root: Path = ROOT) -> int | None:
    """CPUs' worth of time that the control groups of this process allow it, rounded up, at least 1; None: no limit."""
    limits = [limit for folder in _cpu_groups(root) if (limit := _limit(folder)) is not None]
    return min(limits, default=None)


def _cpu_groups(root: Path) -> Iterator[Path]:
    """The folders of this process's groups, and of the groups around them, that may have a quota (cgroup v1 and v2).

    A mount shows a hierarchy from one of its groups on: in a container mostly from the container's own.
    """
    groups = {}
    for line in _text(root / "proc/thread-self/cgroup").splitlines():
        hierarchy, _, rest = line.partition(":")
        controllers, _, group = rest.partition(":")
        if hierarchy == "0" or "cpu" in controllers.split(","):
            groups["cgroup2" if hierarchy == "0" else "cgroup"] = PurePosixPath(group)
    for line in _text(root / "proc/thread-self/mountinfo").splitlines():
        mount, _, system = line.partition(" - ")
        kind, _, options = system.partition(" ")
        fields = mount.split(" ")
        if kind not in groups or (kind == "cgroup" and "cpu" not in options.split(" ")[-1].split(",")):
            continue
        top, point = PurePosixPath(fields[3]), root / fields[4].lstrip("/")
        if groups[kind].is_relative_to(top) and ".." not in groups[kind].parts:
            below = groups[kind].relative_to(top)
            yield from (point / folder for folder in (below, *below.parents))


def _limit(group: Path) -> int | None:
    """The quota of one group in whole CPUs, rounded up."""
    words = _text(group / "cpu.max").split()
    words = words or [*_text(group / "cpu.cfs_quota_us").split(), *_text(group / "cpu.cfs_period_us").split()]
    if len(words) != 2 or not all(word.isdecimal() for word in words) or not int(words[1]):
        return None  # no such file, "max", or -1
    return max(-(-int(words[0]) // int(words[1])), 1)


def _text(path: Path) -> str:
    """The file's text; empty where there is none to read."""
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
