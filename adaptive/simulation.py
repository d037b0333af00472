"""A governor's day in virtual time: what the loop does with its decisions, without loop or model.

One process runs the model; samples wait in the order of their arrival, and each has a mandatory
answer that is published when its time is up (`adaptive.loop`). What is counted is which answers
were in time and how good they were. Nothing here looks at a clock: the same world and policy give
the same outcome on any machine.
"""

from bisect import bisect_left, bisect_right
from collections.abc import Callable, Sequence
from heapq import heappop, heappush
from math import exp, inf
from typing import NamedTuple, Protocol, runtime_checkable

from adaptive.governor import Decision
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

    One that is `Knowing` is given an `Ahead`; one that is `Learning` takes gradient steps.

    Args:
        world: What happens.
        profile: Of the levels on the machine where nothing is slower.
        policy: Fresh.
    """
    arrivals, deadlines = world.arrivals.tolist(), world.deadlines.tolist()
    due = [t + patience(d) for t, d in zip(arrivals, deadlines, strict=True)]
    slow, noise = world.slow.tolist(), world.noise.tolist()
    machine, process = Gaps(world.stalls), Gaps((*world.stalls, *world.pauses))
    crashes, samples, levels = sorted(world.crashes), len(arrivals), len(profile.costs)
    answered, urgent = bytearray(samples), []
    refined, late, missed, learned, taken = [0] * levels, 0, 0, 0, 0
    switches, calls, backlog, last = 0, 0, 0, -2
    shortest, learn_cost = patience(min(deadlines)), profile.learn_cost * world.slower
    learner = policy if isinstance(policy, Learning) else None
    first = seen = 0  # of the queue, and behind it
    now = arrivals[0]

    def slow_now() -> float:
        return slow[min(int(now / TICK), len(slow) - 1)]

    def cost(level: int, batch: int) -> float:
        nominal = profile.costs[level][profile.of(batch)] * world.slower
        return nominal * exp(slow_now() + noise[first][level])

    def finish(level: int, batch: int) -> float:
        return process.through(now, cost(level, batch))

    def due_at(place: int) -> float:
        return due[first + place] if first + place < seen else inf

    def simple(sample: int, time: float) -> None:
        """Publish the mandatory answer."""
        nonlocal missed
        answered[sample] = 1
        missed += machine.after(time) > arrivals[sample] + deadlines[sample]

    if isinstance(policy, Knowing):
        policy.attach(Ahead(finish, slow_now, due_at))
    while first < samples:
        now = machine.after(now)
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
                end = process.through(now, profile.learn_cost * world.slower * exp(slow_now()))
                learn_cost += 0.1 * (end - now - learn_cost)
                learned, now = learned + 1, end
            else:
                now = arrivals[seen]
            continue
        queue = seen - first
        backlog = max(backlog, queue)
        slack = min(urgent[0][0] - now if urgent else inf, shortest)
        level, batch, sure = policy.decide(slack, queue, now)
        meant = level >= 0 and sure
        if level < 0:
            level, batch = 0, queue
            if urgent:
                simple(heappop(urgent)[1], now)
        batch = min(batch, queue, MOST)
        end = finish(level, batch)
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
    owed = taken // LEARN_EVERY
    return Outcome(samples, tuple(refined), late, missed, learned, owed, switches, calls, backlog)
