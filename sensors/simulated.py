"""Simulated sensors: an electrocardiogram and the traffic of a town, live or as a recording."""

import asyncio
import heapq
import math
from collections.abc import AsyncIterator
from dataclasses import dataclass

import numpy as np

from sensors.ecg import LEADS, EcgSignal
from sensors.sample import Feedback, Item, Sample, Stream
from sensors.traffic import TrafficSignal
from sensors.truth import Recording, record

BREATH = 64  # [samples] after which a source that never sleeps lets others run


@dataclass(frozen=True, kw_only=True)
class SimulatedEcg(EcgSignal):
    """A patient on a monitor.

    Yields each sample when it is due, and what the operator says, see `EcgSignal`, the delay
    after the end of the event: no label is known before the event is over. Labels that would come
    after the last sample do not come.

    Args:
        stream: Name of the stream.
        duration_s: How long it lasts; endless if left out.
        speed: Times real time; 0 is as fast as possible.
        label_delay_s: From the end of an event to its feedback, on the clock of the samples.

    Raises:
        ValueError: An option is out of range.
    """

    stream: str = "ecg"
    duration_s: float | None = None
    speed: float = 1.0
    label_delay_s: float = 5.0

    def __post_init__(self):
        super().__post_init__()
        check(self.duration_s, self.speed, self.label_delay_s)

    @property
    def streams(self) -> tuple[Stream, ...]:
        """The one stream, a channel for each lead."""
        names = tuple(LEADS)[: self.leads]
        return (Stream(self.stream, names, ("mV",) * self.leads, self.sampling_rate_hz),)

    def record(self, samples: int | None = None) -> Recording:
        """Return the first samples of what iterating yields, and the truth, at once.

        Args:
            samples: How many; the whole duration if left out.

        Raises:
            ValueError: It has neither `samples` nor a duration.
        """
        length = whole(self.duration_s, self.sampling_rate_hz, samples)
        return record(self.blocks(), self.times, length)

    def __aiter__(self) -> AsyncIterator[Item]:
        """Yield samples and feedback when they are due."""
        length = whole(self.duration_s, self.sampling_rate_hz) if self.duration_s else math.inf
        return deliver(self, length)

    @property
    def waits(self) -> bool:
        """Whether samples come only as fast as they are taken."""
        return self.speed == 0

    def answered(self, sample: Sample) -> None:
        """Do nothing: a simulated sensor waits for no answer."""


@dataclass(frozen=True, kw_only=True)
class SimulatedTraffic(TrafficSignal):
    """The counters of a town.

    Yields each sample when it is due, and what the operator says, see `TrafficSignal`, the delay
    after the end of the event: no label is known before the event is over. Labels that would come
    after the last sample do not come.

    Args:
        stream: Name of the stream.
        duration_s: How long it lasts, of its own time; endless if left out.
        speed: Times real time; 0 is as fast as possible.
        label_delay_s: From the end of an event to its feedback, on the clock of the samples.

    Raises:
        ValueError: An option is out of range.
    """

    stream: str = "traffic"
    duration_s: float | None = None
    speed: float = 1.0
    label_delay_s: float = 3600.0

    def __post_init__(self):
        super().__post_init__()
        check(self.duration_s, self.speed, self.label_delay_s)

    @property
    def streams(self) -> tuple[Stream, ...]:
        """The one stream, a channel for each counter."""
        names = tuple(f"counter-{n + 1}" for n in range(self.counters))
        units = ("vehicles",) * self.counters
        return (Stream(self.stream, names, units, 1 / self.interval_s),)

    def record(self, samples: int | None = None) -> Recording:
        """Return the first samples of what iterating yields, and the truth, at once.

        Args:
            samples: How many; the whole duration if left out.

        Raises:
            ValueError: It has neither `samples` nor a duration.
        """
        length = whole(self.duration_s, 1 / self.interval_s, samples)
        return record(self.blocks(), self.times, length)

    def __aiter__(self) -> AsyncIterator[Item]:
        """Yield samples and feedback when they are due."""
        length = whole(self.duration_s, 1 / self.interval_s) if self.duration_s else math.inf
        return deliver(self, length)

    @property
    def waits(self) -> bool:
        """Whether samples come only as fast as they are taken."""
        return self.speed == 0

    def answered(self, sample: Sample) -> None:
        """Do nothing: a simulated sensor waits for no answer."""


def check(duration: float | None, speed: float, delay: float) -> None:
    """Check what all simulated sources have in common.

    Raises:
        ValueError: An option is out of range.
    """
    if duration is not None and not duration > 0:
        raise ValueError(
            f"duration_s must be positive, got {duration}. Leave it out for a stream without end."
        )
    if not speed >= 0:
        raise ValueError(f"speed must be 0, as fast as possible, or more, got {speed}")
    if not delay >= 0:
        raise ValueError(f"label_delay_s must be 0 or more, got {delay}: nobody knows the future")


def whole(duration: float | None, rate: float, samples: int | None = None) -> int:
    """Return how many samples are wanted.

    Args:
        duration: Of the source [s].
        rate: Sampling rate [Hz].
        samples: How many are asked for; the whole duration if None.

    Raises:
        ValueError: Neither is known.
    """
    if duration is None:
        if samples is None:
            raise ValueError("the source has no end: set duration_s, or say how many samples")
        return samples
    # The tolerance keeps a whole number of intervals from becoming one more by rounding.
    length = math.ceil(duration * rate * (1 - 1e-12))
    return length if samples is None else min(samples, length)


async def deliver(source: SimulatedEcg | SimulatedTraffic, length: float) -> AsyncIterator[Item]:
    """Yield a signal sample by sample, each when it is due, and the feedback about it.

    Due times are counted from the first sample, on the clock of the event loop: what one sample
    is late does not delay the next.

    Args:
        source: Its signal, its speed and its delay of labels.
        length: How many samples, maybe infinitely many [samples].

    Yields:
        Samples, and feedback right before the first sample that is not earlier.
    """
    clock = asyncio.get_running_loop().time
    begin, origin = clock(), float(source.times(np.zeros(1))[0])
    waiting: list[tuple[float, Feedback]] = []  # a heap, by the time at which it becomes known
    number = 0
    for block in source.blocks():
        for start, end, _, label, _ in block.events:
            if label is not None:
                known = end + source.label_delay_s
                feedback = Feedback(source.stream, start, label, end - start)
                heapq.heappush(waiting, (known, feedback))
        numbers = np.arange(number, number + len(block.values))
        for number, time, values in zip(
            numbers.tolist(), source.times(numbers).tolist(), block.values, strict=True
        ):
            if number >= length:
                return
            ahead = begin + (time - origin) / source.speed - clock() if source.speed else 0.0
            if ahead > 0:
                await asyncio.sleep(ahead)
            elif number % BREATH == 0:
                await asyncio.sleep(0)
            while waiting and waiting[0][0] <= time:
                yield heapq.heappop(waiting)[1]
            yield Sample(source.stream, number, time, values)
        number += 1
