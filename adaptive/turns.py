"""Policies that govern in turns, one after the other in one run, and what became of the samples.

What a policy answers for is what was due in its turns; it hears of its own calls only.
"""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from adaptive.backlog import Line
from adaptive.bank import Bank, Waiting
from adaptive.budget import Budget
from adaptive.contest import MISS, OURS, QUALITY, SMALL
from adaptive.decision import Decision
from adaptive.governor import Governor
from adaptive.ladder import Row
from adaptive.policies import Alert, Margin, Static
from adaptive.policy import Looking, Paying, Policy
from adaptive.simulation import Profile
from adaptive.sinks import Result


class Schedule(NamedTuple):
    """Whose turn it is when."""

    begin: float  # [s]
    turn: float  # [s]
    order: tuple[str, ...]  # of policies

    def at(self, time: float) -> tuple[str, float]:
        """The policy whose turn it is, and since when [s]; negative before the first turn."""
        number = min(max(int((time - self.begin) / self.turn), 0), len(self.order) - 1)
        return self.order[number], time - self.begin - number * self.turn


@dataclass
class Count:
    """What became of the samples in a policy's turns."""

    samples: int = 0
    in_time: int = 0  # answers of any kind by the deadline
    refined: list[int] = field(default_factory=lambda: [0] * (len(QUALITY) - 1))  # by then
    meant: int = 0  # to be refined in time, by a decision that was sure
    late: int = 0  # of these
    calls: int = 0
    considered: int = 0  # samples that waited when a call began
    possible: float = 0.0  # quality of what an oracle would have given these, summed

    @property
    def quality(self) -> float:
        """Mean of the answers; one after its deadline has none."""
        simple = self.in_time - sum(self.refined)
        total = QUALITY[0] * simple + sum(
            many * each for many, each in zip(self.refined, QUALITY[1:], strict=True)
        )
        return total / max(self.samples, 1)


class Turns(Governor):
    """Hands over to the policy whose turn it is; each hears of its own calls only."""

    def __init__(
        self, policies: dict[str, Policy], schedule: Schedule, profile: Profile, settling: float
    ):
        """Begin before the first turn.

        Args:
            policies: By name.
            schedule: Whose turn it is when.
            profile: Of the levels, as measured.
            settling: [s] of a turn that do not count.
        """
        super().__init__()
        self.init(profile.measured())
        self.policies, self.schedule, self.costs = policies, schedule, profile.every()
        self.settling = settling
        self.counts = {name: Count() for name in policies}
        self.bank: Bank | None = None
        self.lines: list[Line] = []  # of all streams
        self._name, self._since, self._slack = "", 0.0, 0.0
        self._open: set[Waiting] = set()  # what waited for an answer at the last decision
        self._meant = False  # that decision was to give them one in time

    def attach(self, bank: Bank, lines: list[Line]) -> None:
        """Get to know what is governed."""
        self.bank, self.lines = bank, lines
        for policy in self.policies.values():
            if isinstance(policy, Looking):
                policy.dues = bank.dues

    def decide(self, slack: float, queue: int, now: float) -> Decision:
        """As a `Policy`."""
        assert self.bank, "attach the bank first"
        name, self._since = self.schedule.at(now)
        policy = self.policies[name]
        payer = policy if isinstance(policy, Paying) else None
        if name != self._name:
            self._name = name
            for line in self.lines:  # nobody inherits another one's record
                line.hope = 1.0
            if payer and payer.budget:  # nor pays for others
                payer.budget.leave_out(now)
        found = policy.decide(slack, queue, now)
        self.wait = payer.wait if payer else 0.0
        self._slack, self._meant = slack, found.sure and found.level >= 0
        self._open = {one for one in self.bank.backlog if not one.answered}
        return found

    def observe(self, level: int, batch: int, cost: float, now: float) -> None:
        """As a `Policy`; and count."""
        self.policies[self._name].observe(level, batch, cost, now)
        if self._since < self.settling or not self.bank:
            return
        count, waited = self.counts[self._name], self._open.intersection(self.bank.taken)
        count.calls += 1
        if self._meant:
            count.meant += len(waited)
            count.late += sum(one.answered or now > one.deadline for one in waited)
        count.considered += len(waited)
        count.possible += len(waited) * possible(self.costs, level, batch, cost, self._slack)

    def failed(self, cause: str, now: float) -> None:
        """As a `Policy`."""
        self.policies[self._name].failed(cause, now)


def possible(costs: Sequence[Row], level: int, batch: int, cost: float, slack: float) -> float:
    """Estimate the quality of what an oracle would have given in place of a call.

    The call was so many times slower than nominal, and so would any other level have been: the best
    that had fitted then. It cannot know how another level would have scattered, that a
    longer call leaves less time to the next one, nor what a smaller batch had saved.
    """
    nominal = [row[min(batch, len(row)) - 1] for row in costs]
    slower = cost / nominal[level]
    fit = [v for v, each in enumerate(nominal) if slower * each <= slack]
    return QUALITY[1 + max(fit)] if fit else QUALITY[0]


@dataclass
class Tally:
    """Counts answers for the policy in whose turn they were due; an `adaptive.sinks.Sink`."""

    turns: Turns
    deadline: float  # [s] from when a sample was due to be sent
    settling: float  # [s]
    answers: int = 0

    async def write(self, results: Sequence[Result]) -> None:
        """Count."""
        now = asyncio.get_running_loop().time()
        self.answers += len(results)
        for result in results:
            name, since = self.turns.schedule.at(result.sample.time)
            if since < self.settling:
                continue
            count, level = self.turns.counts[name], result.answer.estimate.level
            count.samples += 1
            if now - result.sample.time <= self.deadline:
                count.in_time += 1
                if level >= 0:
                    count.refined[level] += 1

    async def close(self) -> None:
        """Do nothing."""


def contestants(profile: Profile, budget: Budget | None = None) -> dict[str, Policy]:
    """What is compared, by name; only the governor knows of a budget."""
    governor = Governor()
    governor.init(profile.measured(), QUALITY[1:])
    governor.budget = budget
    return {
        OURS: governor,
        SMALL: Static(profile),
        "static, largest": Static(profile, level=len(profile.costs) - 1),
        "ALERT": Alert(profile, quality=QUALITY),
        "ALERT, rarely late": Alert(profile, quality=QUALITY, miss=MISS),
        "LiteReconfig": Margin(profile),
    }


def order(names: Sequence[str], rounds: int, first: int = 0) -> tuple[str, ...]:
    """Turns: forwards from one of them on, backwards, and so on."""
    first %= len(names)
    names = [*names[first:], *names[:first]]
    return tuple(n for k in range(rounds) for n in (names if k % 2 == 0 else reversed(names)))
