"""What is asked of the model at a moment, where not all streams are equal.

As long as the highest level fits for all that wait, all are taken. When it does not, critical
streams are taken alone, at the highest level that fits for them, and until that is the highest of
all the others get the cheapest one at most. What must be refined so that of any k answers of a
stream m are, comes before all else that gets the cheapest level.

How a level is picked for some of them is another's: of the governor (`adaptive.decision`), or of
whoever is compared with it.
"""

from collections.abc import Callable, Sequence
from enum import IntEnum
from math import inf
from typing import NamedTuple

from adaptive.decision import Decision


class Whom(IntEnum):
    """Streams of a bank."""

    EVERYONE = 0
    CRITICAL = 1
    PRESSED = 2  # those that may not miss one more answer, critical or not


EVERYONE, CRITICAL, PRESSED = Whom


class Group(NamedTuple):
    """Samples that wait."""

    slack: float = inf  # [s] until the first answer is due
    size: int = 0  # that have to be taken, with those before them that have their answer


class Demand(NamedTuple):
    """What of the queue is not like the rest."""

    critical: Group = Group()
    pressed: Group = Group()
    room: float = inf  # [s] that a call for others may take: one of these may come meanwhile
    strained: bool = False  # critical streams had less than the highest level just now


class Needs:
    """What calls for special streams take, and whether critical ones had all that they want."""

    def __init__(self, top: int, relief: float, critical: int, promised: int):
        """Know of none yet.

        Args:
            top: The highest level.
            relief: How long the others are kept low after critical streams had less than that [s].
            critical: How many streams are.
            promised: How many streams have a promise.
        """
        self.top, self.relief = top, relief
        self._streams = {CRITICAL: critical, PRESSED: promised}
        # Who said what calls for the last groups take, and how many may come at once again.
        self._last: dict[Whom, tuple[Callable[[int, int], float], int]] = {}
        self._strained = -inf  # [s] until then the others get the cheapest level

    def demand(
        self,
        critical: Group,
        pressed: Group,
        patience: float,
        at_most: Callable[[int, int], float],
        now: float,
    ) -> Demand:
        """Say what of the queue is not like the rest.

        Args:
            critical: Samples of critical streams.
            pressed: Samples of streams that may not miss one more answer.
            patience: How long the most urgent sample of these may wait [s].
            at_most: Says what a call at a level for so many takes now, almost surely [s].
            now: [s].
        """
        room = patience
        for whom, level, group in ((CRITICAL, self.top, critical), (PRESSED, 0, pressed)):
            if group.size:
                self._last[whom] = at_most, min(group.size, self._streams[whom])
            if whom in self._last:  # they may come again, and take what such a call takes now
                takes, size = self._last[whom]
                room = min(room, patience - takes(level, size))
        return Demand(critical, pressed, room, now < self._strained)

    def decided(self, demand: Demand, level: int, now: float) -> None:
        """Take note of what became of it."""
        if demand.critical.size:
            self._strained = now + self.relief if level < self.top else -inf


# From the slack [s] of those that are to be taken, how many these are, the highest level that they
# may have (any if None), and whether, where not all can be had, later ones may be taken instead.
Pick = Callable[[float, int, int | None, bool], Decision]


def decide_among(
    pick: Pick,
    at_most: Callable[[int, int], float],
    top: int,
    sizes: Sequence[int],
    slack: float,
    queue: int,
    demand: Demand,
    *,
    apart: bool = False,
) -> tuple[Decision, Whom]:
    """Decide where some streams are critical, or may not miss one more answer.

    Args:
        pick: Picks for all or some; what it picked last is done.
        at_most: Says what a call at a level for so many takes now, almost surely [s].
        top: The highest level.
        sizes: Of batches, ascending.
        slack: [s] left until the earliest deadline in the queue.
        queue: How many wait, the head included.
        demand: What of the queue is not like the rest.
        apart: Critical streams are not to be taken with others, whose part is not worth its price.

    Returns:
        The decision, and of which streams to take samples.
    """
    critical, pressed, room, strained = demand
    most = None
    if not critical.size:
        if not strained and room < slack:
            found = pick(room, queue, None, False)
            if found.level > 0 and found.sure:
                return found, EVERYONE
        most = 0 if strained or room < slack else None
    found, whom = pick(slack, queue, most, True), EVERYONE
    whole = found.level >= 0 and found.sure and found.batch == queue and found.after == -inf
    if critical.size and (apart or not (whole and found.level == top)):
        left = critical.slack
        if pressed.size:
            left = min(left, pressed.slack - at_most(0, pressed.size))
        found, whom = pick(left, critical.size, None, False), CRITICAL
        whole = found.level >= 0
    if pressed.size and not whole:
        found, whom = pick(pressed.slack, pressed.size, 0, False), PRESSED
    if whom == EVERYONE and found.level < 0:
        fit = [size for size in sizes if at_most(0, size) <= room]
        found = found._replace(batch=min(queue, fit[-1] if fit else 1))
    return found, whom
