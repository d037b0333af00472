"""Samples that wait for the model, by stream, and which of them go first.

Those of one stream are taken in their order, also when they have been answered meanwhile: the
model's memory wants them. Of several streams, while there is time for all, the one goes first whose
answer is due first. When there is not, critical streams do, then those that may not miss one more
answer, then those that had the smallest share of theirs refined, for their weight and for what it
takes to refine the next. So the ones that keep up go on to do so, and the others do not keep them
from it; what lags too far behind is given up at once (`adaptive.loop`), and the stream keeps up for
a while.

References:
    Hamdaoui and Ramanathan, A dynamic priority assignment technique for streams with (m,k)-firm
    deadlines, 1995. Shreedhar and Varghese, Efficient fair queueing using deficit round robin,
    1995: here of shares, so that streams of different rates can be compared.
"""

from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from heapq import heappop, heappush
from itertools import chain, count
from math import inf
from typing import Generic, Protocol, TypeVar, runtime_checkable

from adaptive.demand import CRITICAL, EVERYONE, Group, Whom

# Samples of a bank that wait for the model until it is ready, of each stream at least so many;
# twice as many afterwards. Older ones are left out of its memory.
QUEUE, QUEUE_LEAST = 4096, 32
RECENT = 0.02  # weight of the newest answer in the share of those that were refined
FIRM_MOST = 1024  # answers in a row that a promise may be about
HOPE, HOPE_RATE = 0.5, 0.1  # the model is waited for while so many of its estimates are in time


@dataclass(frozen=True)
class Rank:
    """What a stream is promised, beside its deadline.

    Attributes:
        critical: In need the others go without, so that its answers are as good as they can be.
        firm: [m, k]: of any k of its answers in a row m are refined, where that is possible at
            all; [0, 1] for no such promise.
        weight: Where not all can be refined, the shares of streams are as their weights.
    """

    critical: bool = False
    firm: tuple[int, int] = (0, 1)
    weight: float = 1.0

    @property
    def special(self) -> bool:
        """Whether it is more than a weight."""
        return self.critical or self.firm[0] > 0

    def __post_init__(self) -> None:
        least, of = self.firm
        if not (0 <= least <= of and 1 <= of <= FIRM_MOST):
            raise ValueError(
                f"firm must be [m, k] with 0 <= m <= k and k from 1 to {FIRM_MOST}: of any k "
                f"answers in a row at least m are refined; got {list(self.firm)}"
            )
        if not 0.0 < self.weight < inf:
            raise ValueError(f"weight must be above 0, got {self.weight}")


class Line:
    """One stream's samples that wait, and how its newest answers came out."""

    __slots__ = (
        "_all",
        "broken",
        "hope",
        "queue",
        "rank",
        "recent",
        "share",
        "taken",
        "unanswered",
    )

    def __init__(self, rank: Rank | None = None):
        """Begin with nothing waiting, and nothing missed."""
        self.rank = rank or Rank()
        self.queue: deque = deque()  # of samples
        self.unanswered = 0  # of them: the newest
        self.taken = 0  # out of the queue and not answered: older ones
        self._all = self.recent = (1 << self.rank.firm[1]) - 1  # a bit an answer: refined or not
        self.share = 1.0  # running share of refined answers
        self.hope = 1.0  # share of the model's newest estimates that came in time
        self.broken = 0  # answers after which of the k newest fewer than m were refined

    def answered(self, refined: bool) -> None:
        """Take note of an answer, in the order of the samples."""
        if self.taken:
            self.taken -= 1
        else:
            self.unanswered -= 1
        self.share += RECENT * (refined - self.share)
        self.recent = (self.recent << 1 | refined) & self._all
        self.broken += self.recent.bit_count() < self.rank.firm[0]

    def estimated(self, in_time: bool) -> None:
        """Take note of an estimate of the model's, wanted or not."""
        self.hope += HOPE_RATE * (in_time - self.hope)

    def hopeful(self) -> bool:
        """Whether its samples are to wait for the model; where something is promised, always."""
        return self.hope >= HOPE or self.rank.special

    def pressed(self) -> bool:
        """Whether its promise breaks if none of those that wait is refined."""
        least, of = self.rank.firm
        known = (1 << max(of - self.unanswered, 0)) - 1
        return self.unanswered > 0 and (self.recent & known).bit_count() < least

    def take(self, most: int) -> list:
        """Take the oldest samples out."""
        queue = self.queue
        many = min(most, len(queue))
        new = max(0, many - len(queue) + self.unanswered)  # of them not answered
        self.unanswered, self.taken = self.unanswered - new, self.taken + new
        return [queue.popleft() for _ in range(many)]

    def due(self) -> float:
        """When its next answer is due [s]; never if all that wait have theirs."""
        left = self.unanswered
        return self.queue[-left].due if left else inf


@runtime_checkable
class Item(Protocol):
    """A sample that waits."""

    due: float  # [s] when its answer must be on its way
    answered: bool

    @property
    def line(self) -> Line:
        """Of its stream."""
        ...


I = TypeVar("I", bound=Item)  # noqa: E741


@dataclass
class Backlog(Generic[I]):
    """All that waits for one bank's model."""

    size: int = 0  # how many wait
    _lines: dict[Line, None] = field(default_factory=dict)  # with samples, as they came first
    _urgent: list[tuple[float, int, I]] = field(default_factory=list)  # a heap
    _numbers: count = field(default_factory=count)  # what is due at once: in order of arrival

    def __len__(self) -> int:
        return self.size

    def __iter__(self) -> Iterator[I]:
        return chain.from_iterable(line.queue for line in self._lines)

    def add(self, item: I) -> None:
        """Put a sample at the end of its stream's."""
        line = item.line
        line.queue.append(item)
        line.unanswered += 1
        self._lines[line] = None
        self.size += 1
        heappush(self._urgent, (item.due, next(self._numbers), item))

    def head(self) -> I | None:
        """The sample whose answer is due first."""
        urgent = self._urgent
        while urgent and urgent[0][-1].answered:
            heappop(urgent)
        return urgent[0][-1] if urgent else None

    def drop(self, line: Line) -> I:
        """Take the oldest sample of a stream away."""
        (item,) = line.take(1)
        self.size -= 1
        if not line.queue:
            del self._lines[line]
        return item

    def group(self, whom: Whom, now: float) -> Group:
        """How many samples have to be taken for some streams' answers, and how soon."""
        lines = self._of(whom)
        due = min((line.due() for line in lines), default=inf)
        return Group(due - now, sum(len(line.queue) for line in lines))

    def dues(self) -> list[float]:
        """When the next answer of each stream that waits for one is due [s], ascending."""
        return sorted([line.queue[-line.unanswered].due for line in self._lines if line.unanswered])

    def take(
        self, most: int, whom: Whom = EVERYONE, short: bool = False, after: float = -inf
    ) -> list[I]:
        """Take samples out.

        Args:
            most: How many.
            whom: Of which streams.
            short: There is not time for all that wait.
            after: Only of streams whose next answer is due then or later [s], in that order.
        """
        lines: Iterable[Line] = self._lines if whom == EVERYONE else self._of(whom)
        if after > -inf:
            lines = sorted((line for line in lines if after <= line.due() < inf), key=Line.due)
        elif whom != EVERYONE or most < self.size:
            lines = sorted(lines, key=_need if short else _urgency)
        taken: list[I] = []
        for line in list(lines):
            taken += line.take(most - len(taken))
            if not line.queue:
                del self._lines[line]
            if len(taken) == most:
                break
        self.size -= len(taken)
        return taken

    def _of(self, whom: Whom) -> list[Line]:
        """Those streams that wait for an answer."""
        if whom == EVERYONE:
            return [line for line in self._lines if line.unanswered]
        if whom == CRITICAL:
            return [line for line in self._lines if line.rank.critical and line.unanswered]
        return [line for line in self._lines if line.pressed()]


def _urgency(line: Line) -> tuple[bool, float]:
    """Who goes first while there is time for all."""
    return not line.rank.critical, line.due()


def _need(line: Line) -> tuple[bool, bool, bool, float]:
    """Who goes first when there is not."""
    rank, effort = line.rank, len(line.queue)
    wanted = effort * line.share / rank.weight
    return not line.unanswered, not rank.critical, not line.pressed(), wanted
