"""Pairs late feedback with the samples it is about, however late or early it comes."""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from sensors.sample import Feedback

EARLY = 256  # feedback about the future that is held; the oldest gives way
REMEMBERED = 1024  # feedback that is recognised when it comes again


class Matches(NamedTuple):
    """Samples that feedback is about."""

    indices: np.ndarray  # [matches] int64, as given to `seen`, in the order seen
    label: int  # 1: an event; 0: looked at, nothing


class Held(NamedTuple):
    """Feedback of which something is yet to come."""

    time: float  # [s]
    label: int
    duration: float  # [s]
    matched: bool  # some sample was found already
    after: int  # samples that had been seen when it was last looked at


class Pending:
    """The moments of one stream that feedback may still be about, and feedback that waits.

    A stretch (`duration > 0`) matches all samples in [time, time + duration]; what of it is yet
    to come is held and matched as it comes, each sample once. A moment (`duration == 0`) waits
    until a sample at or past it is seen, and matches the nearest one within half the typical
    interval: the median of those between the samples in the ring, in the order of their times;
    with fewer than two samples only the same time matches. Samples need not come in that order.

    What became of feedback is counted:

        received = paired + late + unmatched + duplicates + dropped + early

    Attributes:
        received: Feedback that was given to `pair`.
        paired: Some sample was found, if only for a part of the stretch.
        late: It is about a time before the oldest sample in the ring.
        unmatched: No sample was taken at that time, or time or duration are not possible.
        duplicates: The same was the last that had come about it.
        dropped: It was about the future, and more than `EARLY` were held after it.
    """

    def __init__(self, capacity: int):
        if capacity < 1:
            raise ValueError(
                f"feedback: capacity must be 1 sample or more, got {capacity!r}. It is how far "
                "back feedback may reach; as long as the memory of the model is usual."
            )
        # Rings, written in place; zeros take no memory before they are written.
        self._times = np.zeros(capacity)  # [capacity] [s]
        self._indices = np.zeros(capacity, np.int64)  # [capacity]
        self._count = 0  # samples ever seen
        self._newest = -np.inf  # [s] the latest time seen
        self._held: list[Held] = []
        # The last label of each time and duration, in the order they came.
        self._known: dict[tuple[float, float], int] = {}
        self.received = self.paired = self.late = 0
        self.unmatched = self.duplicates = self.dropped = 0

    @property
    def early(self) -> int:
        """How much feedback is held of which nothing was found so far."""
        return sum(not held.matched for held in self._held)

    def seen(self, index: int, time: float) -> None:
        """Take note of a sample, just after it was seen.

        Args:
            index: By which the caller will find it again, such as its place in the stream.
            time: [s] on the clock of the samples.
        """
        place = self._count % len(self._times)
        self._times[place], self._indices[place] = time, index
        self._count += 1
        if time > self._newest:
            self._newest = time

    def pair(self, feedback: Feedback) -> Matches:
        """Find the samples that feedback is about; what is yet to come, `due` will return.

        The same feedback a second time matches nothing. One that says otherwise than the last one
        about the same moment is no duplicate: people change their minds, and the last word counts.
        """
        _, time, label, duration = feedback
        none = np.empty(0, np.int64)
        self.received += 1
        if not (np.isfinite(time) and 0.0 <= duration < np.inf):
            self.unmatched += 1
            return Matches(none, label)
        key = (time, duration)
        if self._known.pop(key, None) == label:
            self._known[key] = label
            self.duplicates += 1
            return Matches(none, label)
        self._known[key] = label
        if len(self._known) > REMEMBERED:
            del self._known[next(iter(self._known))]

        open_end = time + duration > self._newest
        indices = none if open_end and duration == 0.0 else self._find(time, duration, 0)
        matched = len(indices) > 0
        self.paired += matched
        if open_end:
            self._held.append(Held(time, label, duration, matched, self._count))
            if len(self._held) > EARLY:
                self.dropped += not self._held.pop(0).matched
        elif not matched:
            size = min(self._count, len(self._times))
            late = bool(time + duration < self._times[:size].min())
            self.late += late
            self.unmatched += not late
        return Matches(indices, label)

    def due(self) -> list[Matches]:
        """Return what the samples seen since the last call match of the feedback held.

        To be called after each `seen`, or after a few, fewer than `capacity`.
        """
        if not self._held:
            return []
        found, kept = [], []
        for time, label, duration, matched, after in self._held:
            open_end = time + duration > self._newest
            if duration > 0.0 or not open_end:
                indices = self._find(time, duration, after if duration > 0.0 else 0)
                if len(indices):
                    found.append(Matches(indices, label))
                    self.paired += not matched
                    matched = True
            if open_end:
                kept.append(Held(time, label, duration, matched, self._count))
            elif not matched:
                self.unmatched += 1
        self._held = kept
        return found

    def _find(self, time: float, duration: float, after: int) -> np.ndarray:
        """Return the indices [matches] that match, of samples still in the ring.

        Args:
            time: [s].
            duration: [s].
            after: Leave out as many of the samples ever seen.
        """
        capacity = len(self._times)
        places = np.arange(max(after, self._count - capacity), self._count) % capacity
        times = self._times[places]
        if duration > 0.0:
            return self._indices[places[(times >= time) & (times <= time + duration)]]
        distances = np.abs(times - time)
        nearest = int(np.argmin(distances))
        # Times since the epoch are rounded to 0.2 us, so half an interval is not quite half.
        tolerance = 2.0 * np.spacing(abs(time))
        if len(times) > 1:
            tolerance += 0.5 * np.median(np.diff(np.sort(times)))
        return self._indices[places[[nearest] if distances[nearest] <= tolerance else []]]

    def snapshot(self) -> dict[str, np.ndarray]:
        """Return everything as arrays, for a checkpoint."""
        capacity = len(self._times)
        places = np.arange(max(0, self._count - capacity), self._count) % capacity
        numbers = [self._count, self.received, self.paired, self.late]
        numbers += [self.unmatched, self.duplicates, self.dropped]
        return {
            "times": self._times[places],
            "indices": self._indices[places],
            "newest": np.array(self._newest),
            "held": np.array(self._held, np.float64).reshape(-1, 5),
            "known": np.array(
                [(time, label, duration) for (time, duration), label in self._known.items()]
            ).reshape(-1, 3),
            "counts": np.array(numbers, np.int64),
        }

    def restore(self, snapshot: Mapping[str, np.ndarray]) -> None:
        """Go on from a snapshot; of a longer ring the newest samples are kept."""
        capacity, size = len(self._times), len(snapshot["times"])
        numbers = [int(number) for number in snapshot["counts"]]
        self._count, self.received, self.paired, self.late = numbers[:4]
        self.unmatched, self.duplicates, self.dropped = numbers[4:]
        keep = min(size, capacity)
        # A shorter ring that goes over into a longer one has no more past than it had.
        self._count, gone = keep, self._count - keep
        self._times[:keep] = snapshot["times"][size - keep :]
        self._indices[:keep] = snapshot["indices"][size - keep :]
        self._newest = float(snapshot["newest"])
        self._held = [
            Held(time, int(label), duration, bool(matched), max(0, int(after) - gone))
            for time, label, duration, matched, after in snapshot["held"].tolist()
        ]
        self._known = {
            (time, duration): int(label) for time, label, duration in snapshot["known"].tolist()
        }
