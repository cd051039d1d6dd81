"""Images a second of several contenders on this machine, in turns, and of several processes of one at the same time."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass

from nextscale.measure.contender import Contender, Reply, Worker
from nextscale.measure.statistics import Interval, mean_interval, ratio_interval
from nextscale.runtime.errors import NextscaleError

Log = Callable[[str], object]
# Seconds between turns: idle threads of some runtimes spin on for tens of milliseconds after a reply.
PAUSE = 0.1


@dataclass(frozen=True)
class Speed:
    """One contender at one batch size.

    Attributes:
        name: the contender's.
        batch: images at a time.
        images_per_second: from the mean time of a batch.
        ratio: of images a second to the reference's, paired by round; None without a reference.
        load_seconds: what the process took until it could generate.
        peak_memory_bytes: of the process, once it has generated this batch size and smaller ones.
        versions: of what it runs on.
        samples: seconds of each round, of the whole batch.
    """

    name: str
    batch: int
    images_per_second: Interval
    ratio: Interval | None
    load_seconds: float
    peak_memory_bytes: int
    versions: Mapping[str, str]
    samples: tuple[float, ...]


@dataclass(frozen=True)
class MachineSpeed:
    """Images a second of the whole machine.

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


def measure(
    contenders: Sequence[Contender],
    *,
    optional: Sequence[Contender] = (),
    reference: str | None = None,
    batches: Sequence[int] = (1,),
    repetitions: int = 8,
    warmup: int = 1,
    seed: int = 0,
    log: Log = lambda line: None,
) -> tuple[list[Speed], dict[str, str]]:
    """Let contenders generate in turns; the order rotates from round to round.

    In turns because a machine's speed drifts: a slow minute then slows all alike. Rotated because one that runs after a
    hungry one may find the caches and clocks worse than others do.

    Args:
        contenders: with names of their own; if one fails, so does the measurement.
        optional: more of them, whose failures are reported while the rest goes on.
        reference: the name of the one that ratios refer to.
        batches: images at a time, each measured on its own, in ascending order.
        repetitions: timed rounds.
        warmup: rounds before them, at each batch size.
        seed: of labels and images, the same for all in a round.
        log: called with a line of progress.
    Returns:
        speeds, and by name why optional contenders failed.
    Raises:
        NextscaleError: a contender that is not optional failed, or a setting is out of range.
    """
    _require(bool(batches) and min(batches) >= 1, f"batch sizes {list(batches)}: expected at least one, each 1 or more")
    _require(repetitions >= 2, f"repetitions {repetitions}: expected at least 2, for a confidence interval")
    speeds, failures = list[Speed](), dict[str, str]()

    def failed(contender: Contender, error: NextscaleError) -> None:
        if contender not in optional:
            raise error
        failures[contender.name] = str(error)
        log(f"leaving out {error}")

    with ExitStack() as stack:
        workers = dict[str, Worker]()
        for contender in (*contenders, *optional):
            log(f"loading {contender.name}")
            try:
                workers[contender.name] = stack.enter_context(Worker(contender))
            except NextscaleError as error:
                failed(contender, error)
        for batch in sorted(set(batches)):
            replies: dict[str, list[Reply]] = {name: [] for name in workers}
            for repetition in range(-warmup, repetitions):
                known = repetition >= 0
                log(f"batch {batch}: " + (f"round {repetition + 1} of {repetitions}" if known else "warming up"))
                for name in _rotated(list(workers), repetition):
                    time.sleep(PAUSE)
                    try:
                        reply = workers[name].request(batch, seed + max(repetition, 0))
                    except NextscaleError as error:
                        failed(workers[name].contender, error)
                        del workers[name], replies[name]
                        continue
                    if known:
                        replies[name].append(reply)
            base = [reply.seconds for reply in replies[reference]] if reference in replies else None
            speeds += [_speed(workers[name], batch, found, base) for name, found in replies.items()]
    return speeds, failures


def measure_processes(
    contender: Callable[[Sequence[int]], Contender],
    cpus: Sequence[int],
    counts: Sequence[int],
    batches: Sequence[int],
    repetitions: int,
    log: Log = lambda line: None,
) -> list[MachineSpeed]:
    """Images a second of P processes at the same time, for each P and batch size.

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
    for count in counts:
        _require(1 <= count <= len(cpus), f"processes {count}: expected 1 to {len(cpus)}, the cores of this machine")
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


def _rotated(names: list[str], by: int) -> list[str]:
    first = by % len(names) if names else 0
    return names[first:] + names[:first]


def _speed(worker: Worker, batch: int, replies: Sequence[Reply], base: Sequence[float] | None) -> Speed:
    seconds = [reply.seconds for reply in replies]
    return Speed(
        name=worker.contender.name,
        batch=batch,
        images_per_second=mean_interval(seconds).scaled(1 / batch).inverted(),
        ratio=None if base is None else ratio_interval(base, seconds),
        load_seconds=worker.load_seconds,
        peak_memory_bytes=replies[-1].peak_memory_bytes,
        versions=worker.versions,
        samples=tuple(seconds),
    )


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise NextscaleError(message)
