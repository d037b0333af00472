"""A recording replayed as a source, at the pace of its time stamps or as fast as it goes."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from sensors.recordings import Recording, read
from sensors.sample import Feedback, Item, Sample, Stream


@dataclass(frozen=True)
class FileSource:
    """Replays a file.

    Each sample comes when its time stamp says, seen from the first one and divided by `speed`;
    late ones do not delay those after them. One whose time repeats or goes back comes right after
    the one before it. Rows that had to be rejected come first, for the file is read as a whole.

    Attributes:
        path: Of a file or record that `sensors.recordings.read` knows.
        stream: The name of the stream; empty for the file's name.
        speed: How many times faster than it was recorded; 0 for as fast as possible.
        columns: The channels to take; none for all.
        time_column: Of a table: the column that is the time; empty to judge by the first.
        arrays: Of an `.npz`: the arrays to replay one after another; none for `values`.
        sampling_rate_hz: What the file does not state; 0 if it does, or if it is not known.
        label_symbols: Annotations that become feedback with label 1.
        quiet_symbols: Annotations that become feedback with label 0. All others are left out.
        label_delay_s: How long after its moment feedback comes, on the recording's clock.
        loop: Start again at the end, for ever; time goes on. Feedback that is due after the end
            of the last sample comes with the next round.
    """

    path: str
    stream: str = ""
    speed: float = 1.0
    columns: tuple[str, ...] = ()
    time_column: str = ""
    arrays: tuple[str, ...] = ()
    sampling_rate_hz: float = 0.0
    label_symbols: tuple[str, ...] = ("V",)
    quiet_symbols: tuple[str, ...] = ("N",)
    label_delay_s: float = 0.0
    loop: bool = False

    def __post_init__(self) -> None:
        """Check what can be checked without the file.

        Raises:
            ValueError: A number is out of range.
        """
        for name in ("speed", "label_delay_s", "sampling_rate_hz"):
            value = getattr(self, name)
            if not 0 <= value < float("inf"):
                raise ValueError(
                    f"{self.path}: {name} must not be negative and must be finite, got {value}."
                )

    @cached_property
    def recording(self) -> Recording:
        """The contents of the file, read when first asked for."""
        return read(
            self.path,
            columns=self.columns or None,
            time_column=self.time_column or None,
            arrays=self.arrays or None,
            sampling_rate=self.sampling_rate_hz or None,
        )

    @property
    def streams(self) -> tuple[Stream, ...]:
        """The stream; reads the file."""
        recording = self.recording
        name = self.stream or recording.name
        return (Stream(name, recording.channels, recording.units, recording.sampling_rate),)

    @property
    def waits(self) -> bool:
        """Whether samples come only as fast as they are taken."""
        return self.speed == 0

    def answered(self, sample: Sample) -> None:
        """Do nothing: a file waits for no acknowledgement."""

    async def __aiter__(self) -> AsyncIterator[Item]:
        """Yield samples and feedback when they are due."""
        (stream,) = self.streams
        for reject in self.recording.rejected:
            yield reject._replace(stream=stream.name)
        clock = asyncio.get_running_loop().time
        start, origin = clock(), None
        for due, item in self._schedule(stream.name):
            origin = due if origin is None else origin
            wait = 0.0
            if self.speed:
                # Against the intended moment, not the last one: delays do not add up.
                wait = start + (due - origin) / self.speed - clock()
            await asyncio.sleep(max(wait, 0.0))  # lets others run, even if it is late
            yield item

    def _schedule(self, name: str) -> Iterator[tuple[float, Sample | Feedback]]:
        """Order everything by when it is due [s], on the recording's clock."""
        time, values = self.recording.time, self.recording.values
        if not len(time):
            return
        due = np.maximum.accumulate(time)
        steps = np.diff(time[:1000])
        step = float(np.median(steps[steps > 0])) if (steps > 0).any() else 1.0
        lap = float(due[-1] - due[0]) + step
        # Feedback about one lap that is due in the next is carried over.
        waiting: list[tuple[float, Feedback]] = []
        sequence, offset = 0, 0.0
        while True:
            said = [self._feedback(name, offset, *event) for event in self.recording.events]
            waiting += [(item.time + self.label_delay_s, item) for item in said if item]
            waiting.sort(key=lambda pair: pair[0])
            passed = 0
            for moment, at, row in zip(due + offset, time + offset, values, strict=True):
                while passed < len(waiting) and waiting[passed][0] < moment:
                    yield waiting[passed]
                    passed += 1
                yield float(moment), Sample(name, sequence, float(at), row)
                sequence += 1
            waiting = waiting[passed:]
            if not self.loop:
                yield from waiting
                return
            offset += lap

    def _feedback(
        self, name: str, offset: float, time: float, label: str | int, duration: float
    ) -> Feedback | None:
        if label in self.label_symbols or label == 1:
            return Feedback(name, time + offset, 1, duration)
        if label in self.quiet_symbols or label == 0:
            return Feedback(name, time + offset, 0, duration)
        return None
