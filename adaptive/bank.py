"""Streams that one controller scores together, and their samples on the way to an answer."""

from collections import deque
from dataclasses import dataclass, field
from heapq import heappop, heappush
from itertools import count
from math import inf
from typing import Any

import numpy as np

from adaptive.controller import MANDATORY, Controller, Queued
from adaptive.feedback import Matches, Pending
from adaptive.governor import Governor
from adaptive.sinks import Result
from adaptive.telemetry import Counters, Quantiles, Rate
from sensors.sample import Feedback, Sample, Source, Stream
from sensors.transforms import Chain

ALARMS_KEPT = 32


@dataclass
class Track:
    """One stream: where it comes from, what is known of it, what was counted."""

    stream: Stream  # behind the transforms
    bank: "Bank"
    number: int  # in the bank
    deadline: float  # [s] from arrival to answer
    chain: Chain
    state: Any  # of the transforms
    pending: Pending
    raw: Stream | None = None  # before the transforms
    counters: Counters = field(default_factory=Counters)
    latency: Quantiles = field(default_factory=Quantiles)  # [s] from arrival to published
    rate: Rate = field(default_factory=Rate)
    backwards: int = 0
    newest: float = -inf  # [s] time of the newest sample
    alarms: deque[Result] = field(default_factory=lambda: deque(maxlen=ALARMS_KEPT))
    level: int = MANDATORY
    loss: np.ndarray | None = None  # of the model and its parts, as in `settings.KINDS`

    def seen(self, index: int, time: float) -> None:
        """Take note of an answer, and learn the feedback that came before it."""
        before = self.pending.paired
        self.pending.seen(index, time)
        if matches := self.pending.due():
            self._learn(matches, before)

    def feedback(self, item: Feedback) -> None:
        """Pair feedback with the samples that it is about, and learn it."""
        before = self.pending.paired
        self.counters.heard("received")
        self._learn([self.pending.pair(item)], before)

    def _learn(self, matches: list[Matches], before: int) -> None:
        label = self.bank.controller.label
        learned = sum(label(self.number, m.indices, m.label) for m in matches if len(m.indices))
        counts, pending = self.counters.feedback, self.pending
        # A stretch goes on matching sample by sample; as feedback it counts once.
        counts["learned"] += min(learned, pending.paired - before)
        counts["paired"], counts["too_late"] = pending.paired, pending.late
        counts["too_early_pending"] = pending.early


@dataclass
class Bank:
    """A controller, its governor, and the samples it has yet to see, in the controller's order."""

    controller: Controller
    governor: Governor
    learn_cost: float = 0.0  # [s]
    queue: deque["Waiting"] = field(default_factory=deque)  # answered or not
    taken: list["Waiting"] = field(default_factory=list)  # in the model's hands
    unanswered: int = 0
    left_out: int = 0  # of the model's memory, since the start
    hope: float = 1.0  # share of the model's newest estimates that came in time
    _urgent: list[tuple[float, int, "Waiting"]] = field(default_factory=list)  # a heap
    _numbers: count = field(default_factory=count)  # equal deadlines are met in order of arrival

    def add(self, waiting: "Waiting") -> None:
        """Put a sample at the end of the queue."""
        self.queue.append(waiting)
        self.unanswered += 1
        heappush(self._urgent, (waiting.deadline, next(self._numbers), waiting))

    def head(self) -> "Waiting | None":
        """The unanswered sample with the earliest deadline."""
        while self._urgent and self._urgent[0][-1].answered:
            heappop(self._urgent)
        return self._urgent[0][-1] if self._urgent else None

    def leave_out(self) -> "Waiting":
        """Leave the oldest sample out of the model's memory; it is yet to be answered."""
        waiting = self.queue.popleft()
        self.controller.skip()
        waiting.track.counters.left_out += 1
        self.left_out += 1
        return waiting

    def urgency(self) -> float:
        """The earliest deadline [s]; those who only have to catch up come last."""
        head = self.head()
        return head.deadline if head else inf


@dataclass(eq=False, slots=True)
class Origin:
    """A sample as its source gave it, until all that came of it is answered."""

    source: Source
    sample: Sample
    left: int  # of what the transforms made of it

    def leave(self) -> None:
        """Count one of its parts out; with the last one the source may acknowledge it."""
        self.left -= 1
        if self.left == 0:
            self.source.answered(self.sample)


@dataclass(eq=False, slots=True)
class Waiting:
    """A sample on its way."""

    track: Track
    sample: Sample
    origin: Origin
    arrival: float  # [s] on the loop's clock
    deadline: float  # [s] on the loop's clock
    due: float  # [s] when the answer must be on its way; what the model gives later is too late
    queued: Queued  # what the mandatory estimate is made of
    answered: bool = False
    sinks: int = 0  # that have yet to take the answer; negative: it was shed

    def account(self, level: int, now: float) -> None:
        """Count it out as answered.

        Args:
            level: Of the answer.
            now: When the last sink had it [s].
        """
        self.track.counters.answered(level, self.deadline - now)
        self.track.latency.add(max(now - self.arrival, 0.0))
        self.origin.leave()

    def give_up(self, reason: str) -> None:
        """Count it out as shed, by the name of the policy."""
        self.track.counters.give_up(reason)
        self.origin.leave()
