"""How much CPU time the processes of an agent have taken, to the microsecond."""

import time
from collections.abc import Callable, Iterable


def process_clock(process: int) -> int:
    """The number of the clock that counts the CPU time of all threads of a process, on Linux."""
    return (~process << 3) | 2


class CpuMeter:
    """Adds up what this process and others have taken; others may end, and others come."""

    def __init__(self, others: Callable[[], Iterable[int]] = tuple):
        """Begin to count.

        Args:
            others: Says which processes count, by their ids.
        """
        self.others, self._gone, self._seen = others, 0.0, {}
        self()

    def __call__(self) -> float:
        """CPU time since the beginning of each [s]."""
        seen: dict[int, float] = {}
        for process in self.others():
            try:
                seen[process] = time.clock_gettime(process_clock(process))
            except OSError:  # it has ended
                continue
        # What has ended has taken what it had when it was last looked at.
        self._gone += sum(taken for process, taken in self._seen.items() if process not in seen)
        self._seen = seen
        return time.process_time() + self._gone + sum(seen.values())
