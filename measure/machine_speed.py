"""Images per second of a whole machine: several processes of one contender at the same time, each on its own cores."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass

from nextscale.measure.contender import Contender, Worker
from nextscale.measure.interleaved import Log
from nextscale.measure.statistics import Interval, mean_interval
from nextscale.runtime._errors import NextscaleError


@dataclass(frozen=True)
class MachineSpeed:
    """Images per second of the whole machine.

    Attributes:
        processes: generating at the same time, each on cores of its own.
        threads: of each.
        batch: images at a time in each.
        images_per_second: of all together.
    """

    processes: int
    threads: int
    batch: int
    images_per_second: Interval


def measure_processes(
    contender: Callable[[Sequence[int]], Contender],
    cpus: Sequence[int],
    counts: Sequence[int],
    batches: Sequence[int],
    repetitions: int,
    log: Log = lambda line: None,
) -> list[MachineSpeed]:
    """Images per second of P processes at the same time, for each P and batch size.

    Each P twice, the second time in the opposite order, since a machine's speed drifts.

    Args:
        contender: makes one that runs on the given CPUs alone, with a thread for each.
        cpus: shared out evenly among the processes; what is left over idles.
        counts: of processes.
        batches: images at a time.
        repetitions: batches of each process that count, half of them each time; all go on until the last has done
            them.
        log: called with a line of progress.
    Raises:
        NextscaleError: more processes than CPUs, or a process failed.
    """
    require_cores(counts, cpus)
    rates = {(count, batch): list[float]() for count in counts for batch in sorted(set(batches))}
    half = -(-repetitions // 2)
    for count in (*counts, *reversed(counts)):
        each = len(cpus) // count
        shares = [cpus[first * each : (first + 1) * each] for first in range(count)]
        # The pool ends last: its threads wait for the processes.
        with ThreadPoolExecutor(count) as pool, ExitStack() as stack:
            log(f"processes {count}, threads {each}: loading")
            workers = [stack.enter_context(Worker(contender(share))) for share in shares]
            for batch in sorted(set(batches)):
                log(f"processes {count}, threads {each}, batch {batch}: {half} rounds")
                try:
                    samples = _at_the_same_time(pool, workers, batch, half)
                except BaseException:
                    for worker in workers:
                        worker.kill()
                    raise
                rates[count, batch] += [
                    sum(batch / seconds for seconds in together) for together in zip(*samples, strict=True)
                ]
    return [
        MachineSpeed(count, len(cpus) // count, batch, mean_interval(found)) for (count, batch), found in rates.items()
    ]


def require_cores(counts: Sequence[int], cpus: Sequence[int]) -> None:
    """Raises NextscaleError where a number of processes is not between 1 and the number of CPUs."""
    for count in counts:
        if not 1 <= count <= len(cpus):
            raise NextscaleError(f"processes {count}: expected 1 to {len(cpus)}, the cores of this machine")


def _at_the_same_time(
    pool: ThreadPoolExecutor, workers: Sequence[Worker], batch: int, repetitions: int
) -> list[list[float]]:
    """Seconds of each worker's batches while all others work too."""
    start, lock = threading.Barrier(len(workers)), threading.Lock()
    busy = len(workers)

    def drive(worker: Worker) -> list[float]:
        nonlocal busy
        try:
            worker.request(batch, 0)
            start.wait()
            seconds = [worker.request(batch, seed).seconds for seed in range(repetitions)]
        except BaseException:
            start.abort()
            raise
        finally:
            with lock:
                busy -= 1
        while busy:
            worker.request(batch, 0)
        return seconds

    futures = [pool.submit(drive, worker) for worker in workers]
    errors = [error for future in futures if (error := future.exception()) is not None]
    for error in sorted(errors, key=lambda error: isinstance(error, threading.BrokenBarrierError)):
        raise error  # the cause before its consequences
    return [future.result() for future in futures]
