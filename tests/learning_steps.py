"""The steps of learning that every family has, and Ctrl-C at a chosen one."""

from __future__ import annotations

FIRST, SAMPLING, THETA = "writing the full-precision model", "sampling", "observing attention"
PREPARING, BUILDING = "observing what is to be learned from", "building graphs"


class Interrupter:
    """Ctrl-C once a step has begun, or is at its second report; and which steps there were."""

    def __init__(self, step: str | None = None, at: int = 1) -> None:
        self.step, self.at, self.seen, self.reports = step, at, list[str](), 0

    def __call__(self, step: str, done: int = 0, total: int = 0) -> None:
        if step not in self.seen:
            self.seen.append(step)
        if step == self.step:
            self.reports += 1
            if self.reports == self.at:
                raise KeyboardInterrupt
