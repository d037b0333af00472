"""A governor's day in virtual time: what the loop does with its decisions, without loop or model.

One process runs the model; samples wait by stream (`adaptive.backlog`), and each has a mandatory
answer that is published when its time is up (`adaptive.loop`). What is counted is which answers
were in time and how good they were. Nothing here looks at a clock: the same world and policy give
the same outcome on any machine.
"""

from collections.abc import Sequence
from itertools import islice
from math import exp, inf
from typing import NamedTuple

import numpy as np

from adaptive.backlog import QUEUE, QUEUE_LEAST, Backlog, Line, Rank
from adaptive.budget import MANDATORY, SKIP, WAIT
from adaptive.decision import Decision
from adaptive.demand import CRITICAL, EVERYONE, PRESSED, Needs, Whom
from adaptive.ladder import Row, between
from adaptive.machine import Gaps, Machine, granted
from adaptive.policy import Ahead, Knowing, Learning, Looking, Paying, Policy, Ranking
from adaptive.scenarios import TICK, World, coldness
from adaptive.steps import Call, Followed, followed

MOST = 128  # samples that are taken at once
# Of the time to the deadline, kept free for publishing, as in the loop on a machine whose timers
# are not late.
SPARE, SPARE_LEAST, SPARE_MOST = 0.1, 2e-3, 0.6
LEARN_EVERY, OVERDUE = 32, 2  # samples of a stream: between steps; then so many, and it presses
RELIEF = 0.5  # [s] for which others are kept low after critical streams had not the highest level


class Profile(NamedTuple):
    """What a policy is told of the levels beforehand."""

    sizes: tuple[int, ...]  # of batches, ascending
    costs: tuple[tuple[float, ...], ...]  # [levels][sizes] s, when nothing slows them down
    learn_cost: float  # [s] of a gradient step

    def measured(self, slower: float = 1.0) -> list[dict[int, float]]:
        """For each level [s] by batch size, on a machine that is so many times as slow."""
        return [
            {size: slower * cost for size, cost in zip(self.sizes, row, strict=True)}
            for row in self.costs
        ]

    def every(self, slower: float = 1.0) -> list[Row]:
        """[levels][samples in a batch - 1] s, on a machine that is so many times as slow."""
        return [between(self.sizes, [slower * cost for cost in row]) for row in self.costs]


class Outcome(NamedTuple):
    """What became of all samples of a world."""

    samples: int
    refined: tuple[int, ...]  # answers in time, by level
    late: int  # that the model was to give in time, but for the accepted share, and did not
    missed: int  # answers of any kind after the deadline
    learned: int  # gradient steps
    owed: int  # gradient steps that were due
    switches: int  # calls at another level than the last one
    calls: int
    backlog: int  # the longest queue
    skipped: int = 0  # left out of the model's memory
    spent: float = 0.0  # [CPU-s] by all of the agent
    granted: float = 0.0  # [CPU-s]; 0 where there is no budget
    critical: int = 0  # samples of critical streams
    best: int = 0  # of these: answered at the highest level
    broken: int = 0  # times that a stream's promise was broken
    tried: int = 0  # late ones of calls that were not as sure as that
    load: float = 0.0  # of its world, see `load`
    followed: tuple[Followed, ...] = ()  # each step of the world

    def quality(self, mandatory: float, levels: Sequence[float]) -> float:
        """Mean quality of an answer; one after its deadline has none."""
        total = sum(many * each for many, each in zip(self.refined, levels, strict=True))
        simple = self.samples - sum(self.refined) - self.missed
        return (total + mandatory * simple) / self.samples


def patience(deadline: float) -> float:
    """How long a sample waits for the model [s]."""
    return deadline - min(max(SPARE * deadline, SPARE_LEAST), SPARE_MOST * deadline)


def load(world: World, profile: Profile) -> float:
    """What the highest level would take for all samples, as a share of the time that there is.

    In calls for a sample of each stream, or for `MOST`, and without what a pause before a call
    adds. There is no time while the model's process is stopped or away, nor more than a quota or
    budgets, from the first one on, allow beside what else the agent does; infinite: there is none.
    """
    streams = 1 if world.streams is None else int(world.streams.max()) + 1
    many = min(streams, MOST)
    slow = world.slow[np.minimum((world.arrivals / TICK).astype(int), len(world.slow) - 1)]
    alone = profile.every(world.slower)[-1][many - 1] * np.exp(slow + world.noise[:, -1])
    work = float((alone + world.stalls[:, -1]).sum()) / many
    length, gaps = world.length, Gaps((*world.pauses, *world.crashes))
    away = (max(min(e, length) - s, 0.0) for s, e in zip(gaps.starts, gaps.ends, strict=True))
    there = length - sum(away)
    if world.budgets:
        there = min(there, granted(world, length) - world.base * length)
    if world.quota is not None:
        share = world.quota.cpu / world.quota.period
        there = min(there, (share - world.base) * length)
    return work / there if there > 0.0 else inf


class Waiting:
    """A sample of a world, on its way to its answer."""

    __slots__ = ("answered", "deadline", "due", "line", "number")

    def __init__(self, number: int, line: Line, due: float, deadline: float):
        """Wait.

        Args:
            number: Of the sample.
            line: Of its stream.
            due: When its answer must be on its way [s].
            deadline: When it must be there [s].
        """
        self.number, self.line, self.due, self.deadline = number, line, due, deadline
        self.answered = False


class Day:
    """A world, a policy that lives through it, and what has become of its samples so far."""

    def __init__(self, world: World, profile: Profile, policy: Policy):
        """See `simulate`."""
        self.world, self.profile, self.policy, self.machine = world, profile, policy, Machine(world)
        self.samples, self.levels = len(world.arrivals), len(profile.costs)
        self.nominal = profile.every(world.slower)
        self.arrivals, self.slow = world.arrivals.tolist(), world.slow.tolist()
        self.noise, self.stalls = world.noise.tolist(), world.stalls.tolist()
        deadlines = world.deadlines.tolist()
        streams = [0] * self.samples if world.streams is None else world.streams.tolist()
        ranks = world.ranks or (Rank(),) * (max(streams) + 1)
        self.lines = [Line(rank) for rank in ranks]
        self.coming = [
            Waiting(number, self.lines[stream], arrival + patience(deadline), arrival + deadline)
            for number, (arrival, deadline, stream) in enumerate(
                zip(self.arrivals, deadlines, streams, strict=True)
            )
        ]
        self.backlog: Backlog[Waiting] = Backlog()
        self.most = 2 * max(QUEUE // len(self.lines), QUEUE_LEAST)
        special = [d for d, k in zip(deadlines, streams, strict=True) if ranks[k].special]
        self.special, self.shortest = min(special, default=inf), patience(min(deadlines))
        critical = sum(rank.critical for rank in ranks)
        promised = sum(rank.firm[0] > 0 for rank in ranks)
        self.needs = Needs(self.levels - 1, RELIEF, critical, promised)
        self.now, self.seen = self.arrivals[0], 0
        self.refined, self.best = [0] * self.levels, 0
        self.late = self.tried = self.missed = self.learned = self.taken = self.skipped = (
            self.longest
        ) = 0
        self.switches, self.calls, self.last = 0, 0, SKIP
        self.log: list[Call] = []  # where the world has steps
        self.ended = -inf  # [s] when the last call did
        self.learn_cost = profile.learn_cost * world.slower
        self.learner = policy if isinstance(policy, Learning) else None
        self.payer = policy if isinstance(policy, Paying) and policy.budget else None
        self.budgets, self.crashes = sorted(world.budgets, reverse=True), sorted(world.crashes)
        if self.payer and self.payer.budget:
            self.payer.budget.meter = lambda: self.machine.spent(self.now)
        if isinstance(policy, Looking):
            policy.dues = self.backlog.dues
        if isinstance(policy, Knowing):
            policy.attach(Ahead(self.takes, self.slow_now, self.chill, self.due))

    # --- what an oracle may look up -------------------------------------------------------------

    def slow_now(self) -> float:
        """How slow all is [nats]."""
        return self.slow[min(int(self.now / TICK), len(self.slow) - 1)]

    def chill(self) -> float:
        """What a call made now takes longer for the pause before it [nats]."""
        return self.world.cold * coldness(self.now - self.ended)

    def cost(self, level: int, batch: int) -> float:
        """What a call made now takes [s]."""
        nominal = self.nominal[level][min(batch, MOST) - 1]
        newest = self.seen - 1
        slow = self.slow_now() + self.noise[newest][level] + self.chill()
        return nominal * exp(slow) + self.stalls[newest][level]

    def takes(self, level: int, batch: int) -> float:
        """How long until it would end [s]."""
        return self.machine.through(self.now, self.cost(level, batch)) - self.now

    def due(self, place: int) -> float:
        """When the answer to what waits at a place is due [s]."""
        item = next(islice(self.backlog, place, None), None)
        return item.due if item else inf

    # --- the day --------------------------------------------------------------------------------

    def live(self) -> None:
        """Go on until nothing waits any more."""
        while self.seen < self.samples or self.backlog:
            self.now = self.machine.after(self.now)
            while self.payer and self.payer.budget and self.budgets:
                if self.budgets[-1][0] > self.now:
                    break
                self.payer.budget.limit("cpu", self.budgets.pop()[1])
            while self.seen < self.samples and self.arrivals[self.seen] <= self.now:
                self.take_in(self.coming[self.seen], self.arrivals[self.seen])
                self.seen += 1
            while (head := self.backlog.head()) and head.due <= self.now:
                self.simple(head, head.due)
            if self.learns():
                continue
            if self.backlog:
                self.step()
            else:
                self.now = self.arrivals[self.seen]

    def take_in(self, item: Waiting, now: float) -> None:
        """Queue a sample."""
        line, backlog = item.line, self.backlog
        backlog.add(item)
        if not line.hopeful():
            for waits in list(line.queue)[len(line.queue) - line.unanswered :]:
                self.simple(waits, now)
        if len(line.queue) > self.most:
            self.leave_out([backlog.drop(line) for _ in range(len(line.queue) - 1)], now)

    def simple(self, item: Waiting, time: float) -> None:
        """Publish the mandatory answer."""
        item.answered = True
        item.line.answered(False)
        self.missed += self.machine.after(time) > item.deadline

    def leave_out(self, items: list[Waiting], now: float) -> None:
        """Have the model never see some samples."""
        self.skipped += len(items)
        for item in items:
            if not item.answered:
                self.simple(item, now)

    def learns(self) -> bool:
        """Take a gradient step if one is due and there is time; see `adaptive.loop`."""
        learner, queue = self.learner, len(self.backlog)
        owed = self.taken - LEARN_EVERY * self.learned
        slack, head = self.shortest, self.backlog.head()
        if queue:
            owed -= OVERDUE * len(self.lines)
            slack = min(slack, head.due - self.now if head else -inf)
        if not learner or owed < LEARN_EVERY:
            return False
        if not learner.may_learn(slack, queue, self.learn_cost):
            return False
        work = self.profile.learn_cost * self.world.slower * exp(self.slow_now())
        end = self.machine.run(self.now, work)
        self.learn_cost = learner.step_cost(self.learn_cost, end - self.now)
        self.learned, self.now = self.learned + 1, end
        return True

    def decide(self) -> tuple[Decision, Whom]:
        """As the loop does."""
        head, queue, now, policy = self.backlog.head(), len(self.backlog), self.now, self.policy
        slack = min(head.due - now if head else inf, self.shortest)
        if self.special == inf or not isinstance(policy, Ranking):
            return policy.decide(slack, queue, now), EVERYONE
        critical, pressed = (self.backlog.group(whom, now) for whom in (CRITICAL, PRESSED))
        room = patience(self.special)
        demand = self.needs.demand(critical, pressed, room, policy.at_most, now)
        decision, whom = policy.decide_among(slack, queue, now, demand)
        self.needs.decided(demand, decision.level, now)
        return decision, whom

    def step(self) -> None:
        """Take what is first through the model."""
        now, backlog, waited = self.now, self.backlog, self.backlog.head() is not None
        (level, batch, sure, after), whom = self.decide()
        if level == WAIT and self.payer:
            self.now += self.payer.wait
            return
        if level == SKIP:
            return self.leave_out(backlog.take(batch, whom, short=True), now)
        while (head := backlog.head()) and head.due < after:
            self.simple(head, now)
        wanted = level
        if level == MANDATORY:
            level = 0
            if whom == EVERYONE and head:
                self.simple(head, now)
        if not waited:
            level = 0
        self.longest = max(self.longest, len(backlog))
        batch = min(batch, len(backlog), MOST)
        work = self.cost(level, batch)
        taken = backlog.take(batch, whom, short=level == 0, after=after)
        end = self.machine.run(now, work)
        self.switches, self.calls = self.switches + (level != self.last), self.calls + 1
        self.last = level
        while self.crashes and self.crashes[0][1] <= now:
            self.crashes.pop(0)
        if self.crashes and self.crashes[0][0] < end:
            # What waits then gets no better answer than the one it has.
            self.policy.failed("worker", max(now, self.crashes[0][0]))
            for item in (*taken, *backlog):
                if not item.answered:
                    self.simple(item, min(max(now, self.crashes[0][0]), item.due))
            self.now = max(now, self.crashes[0][1])
            return
        late = self.late
        for item in taken:
            item.line.estimated(end <= item.due)
            if item.answered:
                continue
            if end <= item.due:
                item.answered = True
                item.line.answered(True)
                self.refined[level] += 1
                self.best += item.line.rank.critical and level == self.levels - 1
            else:
                self.simple(item, item.due)
                self.late += wanted >= 0 and sure
                self.tried += wanted >= 0 and not sure
        if self.world.steps:
            self.log.append(Call(now, end, level, self.late > late))
        self.policy.observe(level, len(taken), end - now, end)
        self.now, self.ended, self.taken = end, end, self.taken + len(taken)


def simulate(world: World, profile: Profile, policy: Policy) -> Outcome:
    """Let a policy live through a world.

    One that is `Knowing` is given an `Ahead`; one that is `Learning` takes gradient steps; one that
    is `Paying` is told of budgets, and what was spent; one that is `Ranking` of streams that are
    critical or have a promise.

    Args:
        world: What happens.
        profile: Of the levels on the machine where nothing is slower.
        policy: Fresh.
    """
    day = Day(world, profile, policy)
    day.live()
    until = max(day.now, world.length)
    return Outcome(
        day.samples,
        tuple(day.refined),
        day.late,
        day.missed,
        day.learned,
        day.taken // LEARN_EVERY,
        day.switches,
        day.calls,
        day.longest,
        day.skipped,
        day.machine.spent(until),
        granted(world, until),
        sum(item.line.rank.critical for item in day.coming),
        day.best,
        sum(line.broken for line in day.lines),
        day.tried,
        load(world, profile),
        followed(world.steps, day.log),
    )
