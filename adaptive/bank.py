"""Streams that one controller scores together, and their samples on the way to an answer."""

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from math import inf, nan
from typing import Any

import numpy as np

from adaptive.backlog import Backlog, Line
from adaptive.controller import MANDATORY, Controller, Queued
from adaptive.decision import NORMAL, Mode
from adaptive.feedback import Matches, Pending
from adaptive.governor import Governor
from adaptive.settings import KINDS
from adaptive.sinks import Result
from adaptive.telemetry import Calls, Counters, Quantiles, Rate
from sensors.sample import Feedback, Sample, Source, Stream
from sensors.transforms import Chain

ALARMS_KEPT = CHANGES_KEPT = 32
TRUSTED = 30  # samples before a loss means something
# Weight of the newest call in what is usual beside its work; and what that may be at first [s]: one
# that stood still says nothing.
RECENT, STALL = 0.05, 1e-3


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
    said: dict[int, int] = field(default_factory=dict)  # the last label of each of these, by index
    level: int = MANDATORY  # of the newest answer
    score: float = nan  # of the newest answer
    line: Line = field(default_factory=Line)  # what of it waits for the model
    loss: np.ndarray | None = None  # of the model and its parts, as in `settings.KINDS`
    landed: int = 0  # answers of the model's that are not handed on yet
    onlookers: tuple[Callable[[Result], None], ...] = ()  # are shown each answer

    @property
    def level_name(self) -> str:
        """The level of the newest answer."""
        return "mandatory" if self.level < 0 else self.bank.controller.levels[self.level].name

    @property
    def error_ratio(self) -> float:
        """The squared error of the forecasts, of that of 'it stays as it is'; NaN if unknown."""
        if self.loss is None or self.counters.received < TRUSTED:
            return nan
        of = dict(zip(KINDS, self.loss.tolist(), strict=True))
        return of["served"] / of["persistence"] if of["persistence"] > 0 else nan

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
        for indices, said in matches if self.alarms else ():
            for alarm in self.alarms:
                index = alarm.answer.estimate.index
                if len(indices) and indices[0] <= index <= indices[-1]:
                    self.said[index] = said
        while len(self.said) > ALARMS_KEPT:
            del self.said[next(iter(self.said))]
        counts, pending = self.counters.feedback, self.pending
        # A stretch goes on matching sample by sample; as feedback it counts once.
        counts["learned"] += min(learned, pending.paired - before)
        counts["paired"], counts["too_late"] = pending.paired, pending.late
        counts["too_early_pending"] = pending.early


@dataclass
class Bank:
    """A controller, its governor, and the samples that its model has yet to see."""

    controller: Controller
    governor: Governor
    learn_cost: float = 0.0  # [s] of a gradient step, nominal
    beyond: float = 0.0  # [s] that a call usually takes besides the work of the model
    calls: Calls = field(default_factory=Calls)
    mode: Mode = NORMAL  # of the governor, when it was looked at last
    changes: deque[tuple[float, Mode, str]] = field(  # when [s], to which mode, and why
        default_factory=lambda: deque(maxlen=CHANGES_KEPT)
    )
    backlog: "Backlog[Waiting]" = field(default_factory=lambda: Backlog())  # answered or not
    taken: list["Waiting"] = field(default_factory=list)  # in the model's hands
    left_out: int = 0  # of the model's memory, since the start

    def __post_init__(self) -> None:
        self.governor.dues = self.dues

    def took(self, lap: float, work: float) -> float:
        """What of a call counts as the model's [s]: not what is usual besides its work.

        Args:
            lap: From the decision to the answer [s].
            work: Of the model, in it [s].
        """
        besides = max(lap - work, 0.0)
        self.beyond = self.beyond or min(besides, STALL)
        cost = max(work, lap - self.beyond)
        self.beyond += RECENT * (min(besides, 4 * self.beyond + STALL) - self.beyond)
        return cost

    def dues(self) -> list[float]:
        """By when the model must be done with the next answer of each stream [s], ascending."""
        return [due - self.beyond for due in self.backlog.dues()]

    def urgency(self) -> float:
        """When the first answer is due [s]; those who only have to catch up come last."""
        head = self.backlog.head()
        return head.due if head else inf


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
    published: float = inf  # [s] when it was handed to the sinks
    sinks: int = 0  # that have yet to take the answer; negative: it was shed

    @property
    def line(self) -> Line:
        """Of its stream."""
        return self.track.line

    def account(self, level: int, now: float) -> None:
        """Count it out as answered.

        Args:
            level: Of the answer.
            now: When the last sink had it [s].
        """
        self.track.counters.answered(level, self.deadline - now, self.deadline - self.published)
        self.track.latency.add(max(now - self.arrival, 0.0))
        self.origin.leave()

    def give_up(self, reason: str) -> None:
        """Count it out as shed, by the name of the policy."""
        self.track.counters.give_up(reason)
        self.origin.leave()
