from __future__ import annotations

import math
from collections.abc import Sequence

import pytest
from fake_contenders import fake_contender as fake

from nextscale.measure.contender import Contender
from nextscale.measure.machine_speed import measure_processes
from nextscale.runtime._errors import NextscaleError


def test_processes_share_the_cpus_and_add_up() -> None:
    shares: list[list[int]] = []

    def contender(cpus: Sequence[int]) -> Contender:
        shares.append(list(cpus))
        return fake("pinned", seconds=[9, 2.0 / len(cpus)], sleep=0.01)

    found = measure_processes(contender, [3, 5, 7], counts=[1, 2], batches=[1, 4], repetitions=4)
    assert shares == [[3, 5, 7], [3], [5], [3], [5], [3, 5, 7]]
    assert [(speed.processes, speed.threads, speed.batch) for speed in found] == [
        (1, 3, 1),
        (1, 3, 4),
        (2, 1, 1),
        (2, 1, 4),
    ]
    assert [speed.images_per_second.mean for speed in found] == pytest.approx([1.5, 6, 1, 4])
    assert all(math.isfinite(speed.images_per_second.low) for speed in found)


def test_more_processes_than_cores_are_refused() -> None:
    with pytest.raises(NextscaleError, match="processes 3: expected 1 to 2"):
        measure_processes(lambda cpus: fake("one"), [0, 1], [1, 3], [1], 2)


@pytest.mark.parametrize("replies", [0, 1, 2])
def test_a_process_that_fails_ends_the_others(replies: int) -> None:
    def contender(cpus: Sequence[int]) -> Contender:
        return fake("sound") if cpus[0] else fake("late", die=1, replies=replies, stderr="no memory")

    with pytest.raises(NextscaleError, match="late: no memory"):
        measure_processes(contender, [0, 1], [2], [1], 4)
