"""A governor's day in virtual time: what the loop does with its decisions, without loop or model.

One process runs the model; samples wait in the order of their arrival, and each has a mandatory
answer that is published when its time is up (`adaptive.loop`). What is counted is which answers
were in time and how good they were. Nothing here looks at a clock: the same world and policy give
the same outcome on any machine.
"""

from bisect import bisect_left, bisect_right
from collections.abc import Callable, Sequence
from heapq import heappop, heappush
from itertools import pairwise
from math import exp, inf
from typing import NamedTuple, Protocol, runtime_checkable

from adaptive.budget import MANDATORY, SKIP, WAIT, Budget
from adaptive.decision import Decision
from adaptive.scenarios import TICK, World

MOST = 128  # samples that are taken at once
# Of the time to the deadline, kept free for publishing, as in the loop on a machine whose timers
# are not late.
SPARE, SPARE_LEAST, SPARE_MOST = 0.1, 2e-3, 0.6
LEARN_EVERY = 32  # samples


@runtime_checkable
class Policy(Protocol):
    """What decides. `adaptive.governor.Governor` is one."""

    def decide(self, slack: float, queue: int, now: float) -> Decision:
        """Pick level and batch for the head of the queue, which is due in `slack` [s]."""
        ...

    def observe(self, level: int, batch: int, cost: float, now: float) -> None:
        """Learn from what a call cost [s]; `now` is its end."""
        ...

    def failed(self, cause: str, now: float) -> None:
        """Take note that a call gave nothing."""
        ...


@runtime_checkable
class Learning(Protocol):
    """A policy that finds time for gradient steps, as `adaptive.governor.Governor` does."""

    def may_learn(self, idle: float, cost: float) -> bool:
        """Say whether a step of such a cost fits [s]."""
        ...

    def predict(self, level: int, batch: int) -> tuple[float, float]:
        """Say what a call usually costs, and at most [s]."""
        ...


@runtime_checkable
class Paying(Protocol):
    """A policy that has budgets, as `adaptive.governor.Governor` may have."""

    budget: Budget | None
    wait: float  # [s] for which nothing is to be run, where it has decided to wait


@runtime_checkable
class Knowing(Protocol):
    """A policy that is told of the world: an oracle."""

    def attach(self, ahead: "Ahead") -> None:
        """Get to know it."""
        ...


class Profile(NamedTuple):
    """What a policy is told of the levels beforehand."""

    sizes: tuple[int, ...]  # of batches, ascending
    costs: tuple[tuple[float, ...], ...]  # [levels][sizes] s, when nothing slows them down
    learn_cost: float  # [s] of a gradient step

    def of(self, batch: int) -> int:
        """The place among the sizes of the one that holds a batch."""
        return min(bisect_left(self.sizes, batch), len(self.sizes) - 1)


class Outcome(NamedTuple):
    """What became of all samples of a world."""

    samples: int
    refined: tuple[int, ...]  # answers in time, by level
    late: int  # that the model was meant to give in time, and did not
    missed: int  # answers of any kind after the deadline
    learned: int  # gradient steps
    owed: int  # gradient steps that were due
    switches: int  # calls at another level than the last one
    calls: int
    backlog: int  # the longest queue
    skipped: int = 0  # left out of the model's memory
    spent: float = 0.0  # [CPU-s] by all of the agent
    granted: float = 0.0  # [CPU-s]; 0 where there is no budget

    def quality(self, mandatory: float, levels: Sequence[float]) -> float:
        """Mean quality of an answer; one after its deadline has none."""
        total = sum(many * each for many, each in zip(self.refined, levels, strict=True))
        simple = self.samples - sum(self.refined) - self.missed
        return (total + mandatory * simple) / self.samples

    @property
    def late_share(self) -> float:
        """Of the answers that the model was meant to give in time."""
        return self.late / max(self.late + sum(self.refined), 1)


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
            if work <= runs:
                return time + work, number, used + work, stops
            if time + runs < begun + period - 1e-9:
                stops.append((time + runs, begun + period))
            number, used, work = number + 1, 0.0, work - runs
            time = number * period


class Ahead(NamedTuple):
    """What an oracle may look up, at the moment of a decision."""

    finish: Callable[[int, int], float]  # [s] when a call at a level, for so many, would end
    slow: Callable[[], float]  # [nats] of all levels, now
    due: Callable[[int], float]  # [s] when the answer to a sample in the queue is due, by its place


def patience(deadline: float) -> float:
    """How long a sample waits for the model [s]."""
    return deadline - min(max(SPARE * deadline, SPARE_LEAST), SPARE_MOST * deadline)


def simulate(world: World, profile: Profile, policy: Policy) -> Outcome:
    """Let a policy live through a world.

    One that is `Knowing` is given an `Ahead`; one that is `Learning` takes gradient steps; one that
    is `Paying` is told of budgets, and what was spent.

    Args:
        world: What happens.
        profile: Of the levels on the machine where nothing is slower.
        policy: Fresh.
    """
    arrivals, deadlines = world.arrivals.tolist(), world.deadlines.tolist()
    due = [t + patience(d) for t, d in zip(arrivals, deadlines, strict=True)]
    slow, noise = world.slow.tolist(), world.noise.tolist()
    machine, budgets = Machine(world), sorted(world.budgets, reverse=True)
    crashes, samples, levels = sorted(world.crashes), len(arrivals), len(profile.costs)
    answered, urgent = bytearray(samples), []
    refined, late, missed, learned, taken = [0] * levels, 0, 0, 0, 0
    switches, calls, backlog, last, skipped = 0, 0, 0, SKIP, 0
    shortest, learn_cost = patience(min(deadlines)), profile.learn_cost * world.slower
    learner = policy if isinstance(policy, Learning) else None
    payer = policy if isinstance(policy, Paying) and policy.budget else None
    first = seen = 0  # of the queue, and behind it
    now = arrivals[0]

    def slow_now() -> float:
        return slow[min(int(now / TICK), len(slow) - 1)]

    def cost(level: int, batch: int) -> float:
        nominal = profile.costs[level][profile.of(batch)] * world.slower
        return nominal * exp(slow_now() + noise[first][level])

    def finish(level: int, batch: int) -> float:
        return machine.through(now, cost(level, batch))

    def due_at(place: int) -> float:
        return due[first + place] if first + place < seen else inf

    def simple(sample: int, time: float) -> None:
        """Publish the mandatory answer."""
        nonlocal missed
        answered[sample] = 1
        missed += machine.after(time) > arrivals[sample] + deadlines[sample]

    if payer and payer.budget:
        payer.budget.meter = lambda: machine.spent(now)
    if isinstance(policy, Knowing):
        policy.attach(Ahead(finish, slow_now, due_at))
    while first < samples:
        now = machine.after(now)
        while payer and payer.budget and budgets and budgets[-1][0] <= now:
            payer.budget.limit("cpu", budgets.pop()[1])
        while seen < samples and arrivals[seen] <= now:
            heappush(urgent, (due[seen], seen))
            seen += 1
        while urgent and (answered[urgent[0][1]] or urgent[0][0] <= now):
            time, sample = heappop(urgent)
            if not answered[sample]:
                simple(sample, time)
        if first == seen:
            usual = learner.predict(max(last, 0), 1)[1] if learner else inf
            owed = taken // LEARN_EVERY > learned
            if learner and owed and learner.may_learn(shortest - usual, learn_cost):
                end = machine.run(now, profile.learn_cost * world.slower * exp(slow_now()))
                learn_cost += 0.1 * (end - now - learn_cost)
                learned, now = learned + 1, end
            else:
                now = arrivals[seen]
            continue
        queue = seen - first
        backlog = max(backlog, queue)
        slack = min(urgent[0][0] - now if urgent else inf, shortest)
        level, batch, sure = policy.decide(slack, queue, now)
        if level == WAIT and payer:
            now += payer.wait
            continue
        if level == SKIP:
            for sample in range(first, first + batch):
                if not answered[sample]:
                    simple(sample, now)
            first, skipped = first + batch, skipped + batch
            continue
        meant = level >= 0 and sure
        if level == MANDATORY:
            level, batch = 0, queue
            if urgent:
                simple(heappop(urgent)[1], now)
        batch = min(batch, queue, MOST)
        end = machine.run(now, cost(level, batch))
        switches, calls, last = switches + (level != last), calls + 1, level
        while crashes and crashes[0][1] <= now:
            crashes.pop(0)
        if crashes and crashes[0][0] < end:
            # What was in its hands gets no better answer than the one it has.
            policy.failed("worker", max(now, crashes[0][0]))
            now, first = max(now, crashes[0][1]), first + batch
            continue
        for sample in range(first, first + batch):
            if not answered[sample]:
                if end <= due[sample]:
                    answered[sample] = 1
                    refined[level] += 1
                else:
                    simple(sample, due[sample])
                    late += meant
        policy.observe(level, batch, end - now, end)
        now, first, taken = end, first + batch, taken + batch
    while urgent:
        time, sample = heappop(urgent)
        if not answered[sample]:
            simple(sample, time)
    owed, until = taken // LEARN_EVERY, max(now, world.length)
    found = samples, tuple(refined), late, missed, learned, owed, switches, calls, backlog
    return Outcome(*found, skipped, machine.spent(until), granted(world, until))


def granted(world: World, until: float) -> float:
    """What the budgets of a world allow in all [CPU-s]."""
    steps = [*world.budgets, (until, 0.0)]
    return sum(share * (end - start) for (start, share), (end, _) in pairwise(steps))
