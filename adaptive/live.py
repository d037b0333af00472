"""`adaptive bench governor --live`: the governor against others, on this machine, as it runs.

The real loop, the real model in a process of its own, and sensors that send when a sample is due,
whatever became of those before. The policies take turns in one run, forwards and then backwards,
each with what it learned from its own calls, so that a slow moment of the machine is everybody's.
No gradient steps are taken: only some of the policies would find time for them.

References:
    Tene, How NOT to measure latency, 2015: what is late counts from when it was due.
"""

import asyncio
import contextlib
import gc
import os
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
from rich.box import SIMPLE
from rich.table import Table

from adaptive import quota as quotas
from adaptive.bank import Bank, Track
from adaptive.budget import Budget
from adaptive.contest import QUALITY, SMALL
from adaptive.controller import Controller
from adaptive.disturbances import CPU, MEMORY, Impossible, quota, stopped, stress
from adaptive.feedback import Pending
from adaptive.isolation import Process, Remote
from adaptive.loop import SPARE_LEAST, Loop
from adaptive.meters import CpuMeter
from adaptive.policies import GUARD
from adaptive.settings import Model
from adaptive.simulation import Profile
from adaptive.turns import Count, Schedule, Tally, Turns, contestants, order
from sensors.sample import Sample, Stream
from sensors.transforms import Chain

STREAMS, RATE = 64, 20.0  # a gateway that reads its sensors one after the other; [Hz] of each
READ_AT = 0.0, 1e-3, 2e-3  # [s] when it has read a part of them
TURN, SETTLING = 2.0, 0.15  # [s] of a policy; at its beginning, which does not count
AHEAD, WARMING = 0.3, 1.0  # [s] until the first sample, and from then to the first turn
DEADLINE = 50e-3  # [s] at which most fits
ROOM = 2.2  # the tight one leaves so many times what the full level takes for all streams
BEYOND = 1e-3  # [s] that a call takes besides, on a busy machine
STEP = 3.0  # times as slow
PAUSE = 0.2  # [s] that the model's process is stopped
SHARE = 0.2  # of a processor, for both processes; half of one is more than they use,
HALF = 0.5  # and is what they may have beside a load
SECONDS = 24.0  # of each case at each deadline


@dataclass
class Sensors:
    """Samples at the times at which they are due; a `sensors.sample.Source`."""

    streams: tuple[Stream, ...]
    begin: float  # [s] on the clock of the event loop
    ticks: int  # samples of each stream

    async def __aiter__(self) -> AsyncIterator[Sample]:
        """Yield each sample when its time has come, or late."""
        clock, rng = asyncio.get_running_loop().time, np.random.default_rng(0)
        for tick in range(self.ticks):
            values = np.sin(tick / RATE) + rng.normal(0, 0.1, (len(self.streams), 1))
            for part, offset in enumerate(READ_AT):
                due = self.begin + (tick + 0.25) / RATE + offset  # none where turns meet
                if (wait := due - clock()) > 0:
                    await asyncio.sleep(wait)
                for number in range(part, len(self.streams), len(READ_AT)):
                    yield Sample(self.streams[number].name, tick, due, values[number])

    def answered(self, sample: Sample) -> None:
        """Do nothing."""


class Slowed(Remote):
    """A model whose calls can be made to take longer, by waiting after each."""

    times: Callable[[float], float] | None = None  # as slow, by the time [s]

    async def beside(self, name: str, *args: object) -> object:
        """As `Remote.beside`."""
        clock = asyncio.get_running_loop().time
        begin = clock()
        value = await super().beside(name, *args)
        if name == "run" and self.times and (times := self.times(begin)) > 1:
            await asyncio.sleep((times - 1) * (clock() - begin))
            self.process.took = clock() - begin
        return value


class Case(NamedTuple):
    """What befalls the machine."""

    about: str
    during: Callable[[list[int]], contextlib.AbstractContextManager]
    steps: bool = False  # calls take longer for half of the time
    stops: bool = False  # the model's process stops now and then


def nothing(pids: list[int]) -> contextlib.AbstractContextManager:
    """Nothing befalls it."""
    return contextlib.nullcontext()


@contextlib.contextmanager
def both(pids: list[int]) -> Iterator[Callable[[], str]]:
    """A load on every core, and a quota besides."""
    with stress(*CPU), quota(pids, HALF) as told:
        yield told


CASES = {
    "quiet": Case("nothing", nothing),
    "cpu": Case("stress-ng on every core", lambda _: stress(*CPU)),
    "memory": Case("stress-ng on caches and memory", lambda _: stress(*MEMORY)),
    "steps": Case(f"calls take {STEP:g} times as long, half of the time", nothing, steps=True),
    "stops": Case(f"the model stops for {PAUSE:g} s, once a turn", nothing, stops=True),
    "quota": Case(f"{SHARE:.0%} of a processor for both", lambda pids: quota(pids, SHARE)),
    "both": Case(f"stress-ng on every core, and {HALF:.0%} of a processor for both", both),
}


class Lived(NamedTuple):
    """A case at a deadline."""

    case: str
    deadline: float  # [s]
    load: float  # of the machine when it began
    sent: int
    answered: int
    shed: int
    counts: dict[str, Count]
    note: str = ""  # about what befell the machine

    @property
    def oracle(self) -> float:
        """Quality that an oracle would have had, in the mean over all policies' calls."""
        considered = sum(count.considered for count in self.counts.values())
        return sum(count.possible for count in self.counts.values()) / max(considered, 1)


class Bench:
    """A model in its process, and what policies are told of it."""

    def __init__(self, model: Model, streams: int = STREAMS):
        """Start the process.

        Args:
            model: Of which no gradient steps are taken.
            streams: How many.

        Raises:
            ValueError: Its levels are not those whose quality is known.
        """
        model = replace(model, learn_every_samples=0)
        if len(model.ladder()) != len(QUALITY) - 1:
            raise ValueError(
                f"--config: the model must have {len(QUALITY) - 1} levels, whose quality is known, "
                f"got {len(model.ladder())}. Leave [[model.levels]] out."
            )
        self.streams = tuple(Stream(f"s{n}", ("x",), ("",), RATE) for n in range(streams))
        self.process = Process()
        self.engine = Slowed(self.process, streams, 1, model)
        self.controller = Controller(streams, 1, model, engine=self.engine)
        self.profile = Profile((), (), 0.0)

    async def prepare(self, compiled: Callable[[str], None] = lambda name: None) -> None:
        """Have the model made and measured."""
        costs, _ = await self.engine.prepare(compiled)
        sizes = tuple(sorted(costs[0]))
        self.profile = Profile(sizes, tuple(tuple(row[s] for s in sizes) for row in costs), 0.0)

    def tight(self) -> float:
        """The deadline at which levels matter [s], in whole milliseconds."""
        full = self.profile.every()[-1][len(self.streams) - 1]
        return round(ROOM * full + GUARD + BEYOND + SPARE_LEAST, 3)

    def budget(self) -> Budget | None:
        """What an agent would find that it may spend here."""
        budget, found = Budget(CpuMeter(lambda: [self.process.child.pid])), quotas.find()
        if found:
            budget.stop_at(*found)
        return budget if budget else None

    async def live(self, name: str, deadline: float, seconds: float, first: int = 0) -> Lived:
        """Let the policies live through a case, in turns.

        Args:
            name: One of `CASES`.
            deadline: [s] from when a sample is due to its answer.
            seconds: Of all turns together.
            first: The place of the policy that begins.

        Raises:
            Impossible: It cannot be had here.
            AssertionError: A sample was lost.
        """
        case, load = CASES[name], os.getloadavg()[0]
        with case.during([os.getpid(), self.process.child.pid]) as told:
            policies = contestants(self.profile, self.budget())
            rounds = max(round(seconds / TURN / len(policies)), 1)
            turn = seconds / rounds / len(policies)
            clock = asyncio.get_running_loop().time
            begin = clock() + AHEAD + WARMING
            schedule = Schedule(begin, turn, order(list(policies), rounds, first))
            settling = min(SETTLING, turn / 4)
            turns = Turns(policies, schedule, self.profile, settling)
            tally = Tally(turns, deadline, settling)
            ticks = int((WARMING + seconds) * RATE)
            source = Sensors(self.streams, begin - WARMING, ticks)
            bank = Bank(self.controller, turns)
            tracks = {
                one.name: Track(one, bank, n, deadline, Chain(), Chain().init(one), Pending(64))
                for n, one in enumerate(self.streams)
            }
            turns.attach(bank, [track.line for track in tracks.values()])
            loop = Loop([source], tracks, [bank], [tally])

            def times(now: float) -> float:
                return STEP if schedule.at(now)[1] % (turn / 2) > turn / 4 else 1.0

            self.engine.times = times if case.steps else None
            async with asyncio.TaskGroup() as group:
                stops = self._stops(schedule) if case.stops else asyncio.sleep(0)
                beside = group.create_task(stops)
                with frozen():
                    await loop.run()
                beside.cancel()
            note = told() if told else ""
        loop.check()
        counters = [track.counters for track in tracks.values()]
        shed = sum(one.given_up for one in counters)
        answered = sum(one.full + one.mandatory for one in counters)
        sent = ticks * len(self.streams)
        if not tally.answers == answered == sent - shed:
            raise AssertionError(f"of {sent} samples {answered} were answered and {shed} shed")
        return Lived(name, deadline, load, sent, answered, shed, turns.counts, note)

    async def _stops(self, schedule: Schedule) -> None:
        """Stop the model's process once in every turn."""
        clock = asyncio.get_running_loop().time
        for number in range(len(schedule.order)):
            at = schedule.begin + (number + 0.4) * schedule.turn
            await asyncio.sleep(max(at - clock(), 0.0))
            with stopped(self.process.child.pid):
                await asyncio.sleep(PAUSE)


@contextlib.contextmanager
def frozen() -> Iterator[None]:
    """Collections need not look at what exists now, as in the agent."""
    gc.collect()
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


def compare(
    model: Model,
    cases: Sequence[str],
    seconds: float,
    say: Callable[[str | Table], None],
    compiled: Callable[[str], None] = lambda name: None,
) -> list[Lived]:
    """Let the policies live through the cases and print the tables.

    Args:
        model: Whose levels are called.
        cases: Of `CASES`.
        seconds: Of each case, at each of two deadlines.
        say: Called with lines and tables.
        compiled: Called with the name of each program.

    Raises:
        ValueError: There is no such case.
    """
    if unknown := set(cases) - set(CASES):
        raise ValueError(f"--cases: wanted {', '.join(CASES)}; got {', '.join(sorted(unknown))}")
    return asyncio.run(_compare(Bench(model), cases, seconds, say, compiled))


async def _compare(
    bench: Bench,
    cases: Sequence[str],
    seconds: float,
    say: Callable[[str | Table], None],
    compiled: Callable[[str], None],
) -> list[Lived]:
    found = []
    try:
        await bench.prepare(compiled)
        for name in cases:
            for deadline in (DEADLINE, bench.tight()):
                try:
                    found.append(await bench.live(name, deadline, seconds, len(found)))
                except Impossible as error:
                    say(f"{name}: left out: {error}")
                    break
                say(table(found[-1]))
    finally:
        bench.process.close()
    return found


COLUMNS = "samples", "by the deadline %", "refined %", "late %", "calls", "quality", "gap closed"


def table(lived: Lived) -> Table:
    """Lay a case out."""
    small, oracle = lived.counts[SMALL].quality, lived.oracle
    title = (
        f"{lived.case} ({CASES[lived.case].about}), deadline {1e3 * lived.deadline:.0f} ms, load "
        f"{lived.load:.1f}: {lived.sent} sent, {lived.answered} answered, {lived.shed} shed, 0 "
        f"lost; an oracle's quality {oracle:.3f}{lived.note and '; '}{lived.note}"
    )
    made = Table(title=title, title_justify="left", box=SIMPLE, padding=(0, 1, 0, 0))
    for name in ("", *COLUMNS):
        made.add_column(name, justify="right" if name else "left", no_wrap=True)
    for name, count in lived.counts.items():
        samples = max(count.samples, 1)
        gap = oracle - small
        made.add_row(
            name,
            str(count.samples),
            f"{100 * count.in_time / samples:.2f}",
            f"{100 * sum(count.refined) / samples:.1f}",
            f"{100 * count.late / max(count.meant, 1):.2f}",
            str(count.calls),
            f"{count.quality:.3f}",
            f"{(count.quality - small) / gap:.2f}" if gap > 0.01 else "-",
        )
    return made
