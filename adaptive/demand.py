"""What is asked of the model at a moment, where not all streams are equal.

As long as the highest level fits for all that wait, all are taken. When it does not, critical
streams are taken alone, at the highest level that fits for them, and until that is the highest of
all the others get the cheapest one at most. What must be refined so that of any k answers of a
stream m are, comes before all else that gets the cheapest level.
"""

from enum import IntEnum
from math import inf
from typing import NamedTuple


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
