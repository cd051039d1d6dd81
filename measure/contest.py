"""Contenders, each in a process of its own, that generate in turns."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from types import TracebackType

from nextscale.measure.contender import Contender, Reply, Worker
from nextscale.measure.interleaved import Log, interleave
from nextscale.measure.speed import Speed, speed_of
from nextscale.runtime._errors import NextscaleError

MINIMUM_ROUNDS = 8  # of fewer an interval may be narrow by chance


class Contest:
    """The processes of contenders, running inside a `with` block; however the block ends, they are gone after it.

    Attributes:
        workers: of the contenders that have not failed, in their order.
        failures: by name why optional ones failed.

    Raises (as do its methods):
        NextscaleError: a contender that is not optional failed, or a setting is out of range.
    """

    def __init__(
        self, contenders: Sequence[Contender], *, optional: Sequence[Contender] = (), log: Log = lambda line: None
    ) -> None:
        """
        Args:
            contenders: if one fails, so does the measurement.
            optional: more of them, whose failures are reported while the rest goes on.
            log: called with a line of progress.
        """
        self._contenders, self._optional, self._log = contenders, optional, log
        self._workers: dict[int, Worker] = {}
        self.failures: dict[str, str] = {}

    @property
    def workers(self) -> list[Worker]:
        return list(self._workers.values())

    def __enter__(self) -> Contest:
        with ExitStack() as stack:
            for place, contender in enumerate((*self._contenders, *self._optional)):
                self._log(f"loading {contender.name}")
                try:
                    self._workers[place] = stack.enter_context(Worker(contender))
                except NextscaleError as error:
                    if place < len(self._contenders):
                        raise
                    self._failed(contender, error)
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._stack.__exit__(kind, error, traceback)

    def speeds(
        self,
        batch: int | Mapping[str, int] = 1,
        *,
        repetitions: int = 8,
        warmup: int = 1,
        seed: int = 0,
        reference: str | None = None,
        half_width: float | None = None,
        minutes: float | None = None,
    ) -> list[Speed]:
        """Ask every contender once a round for a batch of random classes or texts.

        Args:
            batch: images at a time, of all or by name. Peaks of memory are of the largest batch so far: ask for
                smaller ones first.
            repetitions: timed rounds; with half_width or minutes, at most.
            warmup: rounds before them.
            seed: of labels and images in the first round, the same for all in a round.
            reference: the name of the one that ratios refer to.
            half_width: end once every ratio's logarithm is known so well, though not before MINIMUM_ROUNDS.
            minutes: after which no round begins.
        Returns:
            one speed each, in the contenders' order, without those that failed.
        """
        sizes = {
            place: batch if isinstance(batch, int) else batch[worker.contender.name]
            for place, worker in self._workers.items()
        }
        if sizes:
            require_batches(sorted(set(sizes.values())))
        shown = " or ".join(map(str, sorted(set(sizes.values()))))
        first: dict[int, float] = {}

        def turn(place: int) -> Callable[[int], Reply]:
            def ask(done: int) -> Reply:
                reply = self._workers[place].request(sizes[place], seed + done)
                first.setdefault(place, reply.seconds)
                return reply

            return ask

        def left_out(place: int, error: NextscaleError) -> None:
            self._failed(self._workers.pop(place).contender, error)

        def enough(replies: Mapping[int, Sequence[Reply]]) -> bool:
            if half_width is None or len(next(iter(replies.values()), ())) < MINIMUM_ROUNDS:
                return False
            ratios = [speed.ratio for speed in self._speeds(replies, sizes, first, reference)]
            return all(ratio is not None and ratio.log_half_width <= half_width for ratio in ratios)

        replies = interleave(
            {place: turn(place) for place in self._workers},
            repetitions=repetitions,
            warmup=warmup,
            enough=enough,
            minutes=minutes,
            optional=range(len(self._contenders), len(self._contenders) + len(self._optional)),
            on_failure=left_out,
            log=lambda line: self._log(f"batch {shown}: {line}"),
        )
        return self._speeds(replies, sizes, first, reference)

    def _speeds(
        self,
        replies: Mapping[int, Sequence[Reply]],
        sizes: Mapping[int, int],
        first: Mapping[int, float],
        reference: str | None,
    ) -> list[Speed]:
        speeds = [speed_of(self._workers[place], sizes[place], first[place], found) for place, found in replies.items()]
        base = next((speed for speed in speeds if speed.name == reference), None)
        return speeds if base is None else [replace(speed, ratio=speed.ratio_to(base)) for speed in speeds]

    def _failed(self, contender: Contender, error: NextscaleError) -> None:
        self.failures[contender.name] = str(error)
        self._log(f"leaving out {error}")


def require_batches(batches: Sequence[int]) -> None:
    """Raises NextscaleError where such batch sizes cannot be measured."""
    if not batches or min(batches) < 1:
        raise NextscaleError(f"batch sizes {list(batches)}: expected at least one, each 1 or more")
