"""How fast one contender is at one batch size."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from nextscale.measure.contender import Reply, Worker
from nextscale.measure.statistics import Interval, mean_interval, ratio_interval


@dataclass(frozen=True)
class Speed:
    """One contender at one batch size; intervals are 95% ones over rounds.

    Attributes:
        name: the contender's.
        batch: images at a time.
        images_per_second: from the mean time of a batch.
        ratio: of images per second to the reference's, paired by round; None without a reference.
        load_seconds: what the process took until it could generate.
        first_seconds: of the first batch of this size, warm-up included.
        peak_memory_bytes: of the process, once it has generated this batch size and smaller ones.
        versions: of what it runs on.
        samples: seconds of each round, of the whole batch.
        stage_seconds: of an image's stages, where the contender tells them.
        decoder_seconds: of an image's decoder, where the contender tells it.
    """

    name: str
    batch: int
    images_per_second: Interval
    ratio: Interval | None
    load_seconds: float
    first_seconds: float
    peak_memory_bytes: int
    versions: Mapping[str, str]
    samples: tuple[float, ...]
    stage_seconds: tuple[Interval, ...] = ()
    decoder_seconds: Interval | None = None

    @property
    def image_seconds(self) -> Interval:
        """Seconds per image."""
        return mean_interval(self.samples).scaled(1 / self.batch)

    def ratio_to(self, reference: Speed) -> Interval:
        """Images per second over the reference's, of the same rounds."""
        theirs, own = ([s / speed.batch for s in speed.samples] for speed in (reference, self))
        return ratio_interval(theirs, own)


def speed_of(worker: Worker, batch: int, first_seconds: float, replies: Sequence[Reply]) -> Speed:
    """Of a contender's replies, one each round; without a ratio."""
    decoder = [reply.decoder_seconds for reply in replies if reply.decoder_seconds is not None]
    samples = tuple(reply.seconds for reply in replies)
    return Speed(
        name=worker.contender.name,
        batch=batch,
        images_per_second=mean_interval(samples).scaled(1 / batch).inverted(),
        ratio=None,
        load_seconds=worker.load_seconds,
        first_seconds=first_seconds,
        peak_memory_bytes=replies[-1].peak_memory_bytes,
        versions=worker.versions,
        samples=samples,
        stage_seconds=tuple(
            mean_interval(stage).scaled(1 / batch)
            for stage in zip(*(reply.stage_seconds for reply in replies), strict=True)
        ),
        decoder_seconds=mean_interval(decoder).scaled(1 / batch) if decoder else None,
    )
