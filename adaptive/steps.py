"""How a policy follows steps: all calls take longer at once, until they do no more."""

from collections.abc import Sequence
from math import inf
from typing import NamedTuple

SOON = 0.5  # [s] after a step


class Call(NamedTuple):
    """One call of the model."""

    start: float  # [s]
    end: float  # [s]
    level: int
    late: bool  # it was to be in time


class Followed(NamedTuple):
    """How a policy followed a step of the slowdown, and its end."""

    late: int  # calls that were late of those under way or begun within `SOON` after the step
    calls: int  # completed after the step until the level was the right one: that used most in
    # the second half of it
    back: float  # [s] from its end until the level was that used most before it; infinite: never


def followed(steps: Sequence[tuple[float, float]], calls: Sequence[Call]) -> tuple[Followed, ...]:
    """How each step was followed.

    Args:
        steps: When each begins and ends [s].
        calls: All, in their order.
    """

    def usual(start: float, end: float) -> int:
        levels = [call.level for call in calls if start <= call.start < end]
        return max(sorted(set(levels)), key=levels.count, default=0)

    found, last = [], 0.0
    for begin, end in steps:
        right, top = usual((begin + end) / 2, end), usual((last + begin) / 2, begin)
        during = [call for call in calls if call.end >= begin and call.start < end]
        late = sum(call.late for call in during if call.start < begin + SOON)
        first = (n for n, call in enumerate(during) if call.level <= right)
        back = (call.start - end for call in calls if call.start >= end and call.level >= top)
        found.append(Followed(late, next(first, len(during)), next(back, inf)))
        last = end
    return tuple(found)
