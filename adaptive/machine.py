"""A machine in virtual time: when what is begun is over, what stops it, and what it has used."""

from bisect import bisect_right
from collections.abc import Sequence
from itertools import pairwise
from math import inf

from adaptive.scenarios import World


class Gaps:
    """Times when nothing runs."""

    def __init__(self, spans: Sequence[tuple[float, float]]):
        """Take spans [s], in any order; they may overlap."""
        merged: list[tuple[float, float]] = []
        for start, end in sorted(spans):
            if merged and start <= merged[-1][1]:
                merged[-1] = merged[-1][0], max(end, merged[-1][1])
            else:
                merged.append((start, end))
        self.starts, self.ends = [s for s, _ in merged], [e for _, e in merged]

    def after(self, time: float) -> float:
        """The first time from then on that something runs [s]."""
        k = bisect_right(self.starts, time) - 1
        return self.ends[k] if k >= 0 and time < self.ends[k] else time

    def through(self, time: float, work: float) -> float:
        """When work [s] ends that begins then [s]."""
        k = bisect_right(self.starts, time) - 1
        if k >= 0 and time < self.ends[k]:
            time = self.ends[k]
        k += 1
        while k < len(self.starts) and time + work > self.starts[k]:
            work -= self.starts[k] - time
            time = self.ends[k]
            k += 1
        return time + work


class Machine:
    """Says when what is begun is over, and counts what is used of a quota."""

    def __init__(self, world: World):
        """Have used nothing.

        Args:
            world: Of which the pauses of the model's process, and the quota, count.
        """
        self.pauses, self.quota, self.base = Gaps(world.pauses), world.quota, world.base
        self.period, self.used = -1, 0.0  # the newest one that the model ran in, what it took of it
        self.starts: list[float] = []  # [s] from when all was stopped
        self.ends: list[float] = []
        self.model = 0.0  # [CPU-s] in all

    def spent(self, now: float) -> float:
        """What all of the agent has used [CPU-s]; a call counts when it is over."""
        return self.model + self.base * now

    def after(self, time: float) -> float:
        """The first time from then on that something runs [s]."""
        k = bisect_right(self.starts, time) - 1
        return self.ends[k] if k >= 0 and time < self.ends[k] else time

    def through(self, time: float, work: float) -> float:
        """When work [CPU-s] of the model ends that begins then [s]."""
        return self._run(time, work)[0] if self.quota else self.pauses.through(time, work)

    def run(self, time: float, work: float) -> float:
        """The same, and it is done."""
        self.model += work
        if not self.quota:
            return self.pauses.through(time, work)
        end, self.period, self.used, stops = self._run(time, work)
        for start, stop in stops:
            self.starts.append(start)
            self.ends.append(stop)
        return end

    def _run(self, time: float, work: float) -> tuple[float, int, float, list]:
        """When it ends, in which period, what was used of that, and the stops on the way.

        A moment into the period the load beside the model has used its share of that moment; the
        model may run until both together have used all.
        """
        cpu, period = self.quota or (inf, inf)
        stops = []
        time = self.after(time)
        number = int(time / period + 1e-9)
        used = self.used if number == self.period else 0.0
        while True:
            begun = number * period
            free = (cpu - used - self.base * (time - begun)) / (1.0 + self.base)
            runs = max(min(free, begun + period - time), 0.0)
            if work <= runs + 1e-9:  # they are the same, but for rounding
                return time + work, number, used + work, stops
            if time + runs < begun + period - 1e-9:
                stops.append((time + runs, begun + period))
            number, used, work = number + 1, 0.0, work - runs
            time = number * period


def granted(world: World, until: float) -> float:
    """What the budgets of a world allow in all [CPU-s]."""
    steps = [*world.budgets, (until, 0.0)]
    return sum(share * (end - start) for (start, share), (end, _) in pairwise(steps))
