"""Decisions as pure functions: which level and batch, from what was learned of earlier calls.

Levels are known only by index and cost: 0 is the cheapest compiled one, -1 the mandatory answer
alone. Plain Python, which asks nobody for the time (`adaptive.governor`).
"""

from bisect import bisect_left
from collections.abc import Callable
from dataclasses import dataclass
from enum import IntEnum
from math import exp, inf, log
from typing import NamedTuple

from adaptive.ladder import Ladder, highest
from adaptive.slowdown import (
    OFTEN,
    SHIFT,
    STEP,
    Slowdown,
    Tail,
    beyond,
    chance,
    new,
    reckoned,
    track,
    widen,
    within,
)

PART = 0.25  # of those that wait: a higher level for fewer is not worth a call of their own
RECENT = 0.05  # weight of the newest call in what is typical


class Mode(IntEnum):
    """How far the governor trusts the compiled levels."""

    NORMAL = 0  # every level
    DEGRADED = 1  # the cheapest compiled level at most
    FALLBACK = 2  # nothing is counted on: the mandatory answer alone


NORMAL, DEGRADED, FALLBACK = Mode  # an enumeration is slow to look into


class Decision(NamedTuple):
    """What to do with the head of the queue."""

    # -1, MANDATORY: it will be too late; the model sees so many samples all the same, at level 0.
    # -2, SKIP: not worth its cost; so many are left out of the model's memory.
    # -3, WAIT: to share a call with others, or for a quota; nothing is run for `Governor.wait`.
    level: int
    batch: int  # how many to take from the head of the queue
    sure: bool = True  # else it is a try: it usually is in time, but not as often as is asked for
    after: float = -inf  # [s] take only of streams whose next answer is due then or later


@dataclass(frozen=True)
class Settings:
    """What the governor aims at.

    Attributes:
        epsilon: Accepted share of refined answers that come too late.
        guard_ms: Kept free for publishing [ms].
        utilisation: Share of the slack that draining a backlog may take.
        recover_ms: How long a failure caps the level [ms]; doubles with each further failure.
        recover_limit_ms: Longest such time [ms].
        cpu_share: What the agent may take of one core, in the long run; 0: no budget.
        power_w: What all may take [W], or the agent where that cannot be measured; 0: no budget.
        watts_per_core: What a busy core takes more than an idle one [W].
        battery_hours: How long a battery must last from when it is no longer charged [h]; 0: no
            matter.
        memory_mb: What the agent may hold [MB]; 0: what its control group may. See
            `adaptive.memory`.
    """

    epsilon: float = 1e-3
    guard_ms: float = 0.5
    utilisation: float = 0.85
    recover_ms: float = 500.0
    recover_limit_ms: float = 30_000.0
    cpu_share: float = 0.0
    power_w: float = 0.0
    watts_per_core: float = 3.0
    battery_hours: float = 0.0
    memory_mb: float = 0.0

    def __post_init__(self):
        wanted = {
            "epsilon": (0.0 < self.epsilon < OFTEN, f"between 0 and {OFTEN}; 0.001 is usual"),
            "guard_ms": (0.0 <= self.guard_ms < inf, "0 or more"),
            "utilisation": (0.0 < self.utilisation <= 1.0, "above 0 and at most 1"),
            "recover_ms": (0.0 < self.recover_ms <= self.recover_limit_ms, "in (0, its limit]"),
            "watts_per_core": (0.0 < self.watts_per_core < inf, "above 0; 1 to 10 is usual"),
        }
        for name in ("cpu_share", "power_w", "battery_hours", "memory_mb"):
            wanted[name] = 0.0 <= getattr(self, name) < inf, "above 0, or 0 for no such budget"
        for name, (good, what) in wanted.items():
            if not good:
                raise ValueError(f"governor.{name} must be {what}, got {getattr(self, name)!r}.")


class Trust(NamedTuple):
    """The mode, and what it takes to leave it."""

    mode: Mode = Mode.NORMAL
    cause: str = ""  # a short constant; empty when NORMAL
    until: float = -inf  # [s] the mode lasts until then at least
    backoff: float = 0.0  # [s] how long the last one lasted


class State(NamedTuple):
    """All that the governor remembers."""

    slowdown: Slowdown
    tail: Tail
    budget: float = 0.0  # [s] that the last decision had for its call
    level: int = -1  # of the last decision
    sure: bool = False  # whether it was
    observed: float = -inf  # [s] time of the last completion
    interval: float = 0.0  # [s] typical time between completions
    batch: float = 1.0  # typical number of samples in a call
    late: float = 0.0  # running share of sure calls that were late, over about 1000
    trust: Trust = Trust()


def decide(
    settings: Settings,
    ladder: Ladder,
    state: State,
    slack: float,
    queue: int,
    now: float,
    most: int | None = None,
    dues: Callable[[], list[float]] | None = None,
    *,
    parts: bool = False,
) -> tuple[State, Decision]:
    """Pick the highest level that fits what slack is left, with the margin of the tail.

    The batch is all of the queue that a call takes, but for what says `in_parts`; what is done
    when no level is sure for so many says `otherwise`. With more waiting than one batch holds, the
    typical cost of draining the whole queue must fit too, unless the level is the cheapest. So for
    a given state the level that is sure for all that wait never falls when the slack grows.

    Args:
        settings: What to aim at.
        ladder: Nominal costs.
        state: What was learned from earlier completions.
        slack: [s] left until the earliest deadline in the queue.
        queue: How many wait, the head included.
        now: [s].
        most: The highest level that may be taken; any if None.
        dues: Says when the answers that are waited for are due [s], ascending.
        parts: Some may have a higher level than the others.
    """
    slowdown, tail, _, _, _, observed, interval, usual_batch, late, trust = state
    mode = trust.mode
    if mode == DEGRADED and now >= trust.until:
        mode, trust = NORMAL, trust._replace(mode=NORMAL, cause="")
    sizes, log_costs, guard, depth, *_ = ladder
    base, budget = slowdown.mean, slack - guard
    level, batch, sure, after = -1, min(queue, sizes[-1]), False, -inf
    if budget > 0.0 and queue > 0 and mode != FALLBACK:
        row = log_costs[batch - 1]
        extra = reckoned(slowdown, tail, depth)
        most_usual = within(budget, extra)
        room = log(most_usual) - base if most_usual > 0.0 else -inf
        cap = 0 if mode == DEGRADED else len(row) - 1
        if most is not None and most < cap:
            cap = most
        level = highest(row, room, cap)
        if level > 0 and queue > batch:
            rounds = -(-queue // batch)
            spare = log(settings.utilisation * budget / rounds) - base
            level = max(0, highest(row, spare, level))
        sure = level >= 0
        if parts and 0 <= level < cap and queue > 1:
            level, batch = in_parts(ladder, level, batch, queue, room, cap)
        if not sure:
            law = tail, base, extra, slowdown.hold if slowdown.hold_left else 0.0
            level, batch, sure, after = otherwise(ladder, law, budget, batch, cap, now, dues)
        if after > -inf:
            budget = after - now - guard
    if slowdown.hold_left and queue > 0:
        slowdown = slowdown._replace(hold_left=slowdown.hold_left - 1)
    about = observed, interval, usual_batch, late, trust
    state = new(State, (slowdown, tail, budget, level, sure, *about))
    return state, new(Decision, (level, batch, sure, after))


def in_parts(
    ladder: Ladder, level: int, batch: int, queue: int, room: float, cap: int
) -> tuple[int, int]:
    """Which level some of those that wait may have, so that the others can still have theirs.

    One call after the other, both within the time until the first of all is due, and as if one
    margin were that of both: two calls are seldom slow at once but for what slows both.

    Args:
        ladder: Nominal costs.
        level: That is sure for all.
        batch: How many a call for that takes.
        queue: How many wait.
        room: For the log of what all takes.
        cap: The highest level that may be taken.

    Returns:
        The level of the call to make, and how many it takes.
    """
    sizes, _, _, _, costs, gains = ladder
    total, best, most = exp(room), (level, batch), 0.0
    higher = level
    for place in range(bisect_left(sizes, batch) - 1, -1, -1):
        many = sizes[place]
        if many < PART * queue or many * (gains[cap] - gains[level]) <= most:
            break  # it only gets less
        row, rest, rounds = costs[many - 1], queue - many, 1
        if rest > sizes[-1]:
            rounds = -(-rest // sizes[-1])
            rest = sizes[-1]
        spare = total - rounds * costs[rest - 1][level]
        while higher < cap and row[higher + 1] <= spare:
            higher += 1
        if (more := many * (gains[higher] - gains[level])) > most:
            best, most = (higher, many), more
    return best


def otherwise(
    ladder: Ladder,
    law: tuple[Tail, float, float, float],
    budget: float,
    batch: int,
    cap: int,
    now: float,
    dues: Callable[[], list[float]] | None,
) -> tuple[int, int, bool, float]:
    """What is done when no level is sure to be in time for all that waits.

    Where some level usually is, all are tried at the one that promises most; or, if that is more,
    as many as can be of those that are due first are taken at the cheapest level, which then is
    sure. Where not even the cheapest usually is in time for all, what counts is how many are had
    for the time that they take: the longer a call, the more is late when it ends. Then, where it is
    known when all are due, it may be later ones that are taken, and the others are given up.

    Args:
        ladder: Nominal costs.
        law: Of the costs of calls: their tail, the log slowdown, the margin to reckon with, and the
            residual of a spike that may be the first of a step, else 0.
        budget: [s] left until the earliest deadline, above 0.
        batch: How many wait, at most as many as a call takes.
        cap: The highest level that may be taken.
        now: [s].
        dues: Says when the answers that are waited for are due [s], ascending.

    Returns:
        The level, or -1; how many; whether it is sure; and from when on the answers are due that
        are to be taken.
    """
    sizes, log_costs, guard, _, _, gains = ladder
    tail, base, extra, hold = law
    level, found, sure, after, most = -1, batch, False, -inf, 0.0
    for one in range(cap + 1):
        usual = beyond(exp(log_costs[batch - 1][one] + base), hold)
        if usual <= budget:
            promised = batch * gains[one] * chance(tail, budget, usual)
            if promised > most:
                level, most = one, promised
    overloaded = level < 0
    waits = [now + guard + budget] * batch if dues is None else dues()
    for few in (batch, *reversed(sizes[: bisect_left(sizes, batch)])):
        cost = beyond(exp(log_costs[few - 1][0] + base), extra)
        place = bisect_left(waits, now + guard + cost)
        if place and not overloaded:
            continue  # these need not be given up
        promised = min(len(waits) - place, few) * gains[0] / (cost if overloaded else 1.0)
        if promised > most:
            level, found, sure, most = 0, few, True, promised
            after = -inf if dues is None else waits[place]
    return level, found, sure, after


def at_most(ladder: Ladder, state: State, level: int, batch: int) -> float:
    """What a call made now costs, but for a share of epsilon [s]."""
    extra = reckoned(state.slowdown, state.tail, ladder.depth)
    return beyond(typical(ladder, state, level, batch), extra)


def typical(ladder: Ladder, state: State, level: int, batch: int) -> float:
    """What a call made now usually costs [s]."""
    return exp(ladder.log_costs[min(batch, ladder.sizes[-1]) - 1][level] + state.slowdown.mean)


def observe(
    settings: Settings,
    ladder: Ladder,
    state: State,
    level: int,
    batch: int,
    cost: float,
    now: float,
) -> State:
    """Learn from what a call really cost: `z = ln(cost / nominal)`.

    Every call informs every level, by the shared slowdown. The margin is corrected by what counts:
    how often a call that was sure to be in time was late. Ten times as often as accepted caps the
    level for a while (DEGRADED).

    Args:
        settings: What to aim at.
        ladder: Nominal costs.
        state: After the decision.
        level: The level that ran; nothing is learned from -1.
        batch: How many were in the call.
        cost: [s] of wall time until the result was on the host; nothing is learned from none.
        now: [s] when the call ended.
    """
    if level < 0 or not 1e-9 < cost < 1e6:
        return state
    slowdown, tail, budget, last, sure, observed, interval, usual, share, trust = state
    largest = ladder.sizes[-1]
    nominal = ladder.log_costs[(batch if batch < largest else largest) - 1][level]
    z = log(cost) - nominal
    # The slowdown drifts with the time since the last completion, in units of the usual time.
    elapsed = now - observed if observed > -inf else interval
    interval += RECENT * (elapsed - interval)
    usual += RECENT * (batch - usual)
    age = elapsed / interval if interval > 0.0 else 1.0
    age = 1.0 if age < 1.0 else 20.0 if age > 20.0 else age

    epsilon = settings.epsilon
    late = cost > budget
    slowdown, residual, kind = track(slowdown, z, age, not sure, SHIFT * exp(-nominal))
    tail = widen(tail, residual, kind, late, not sure, epsilon, last >= 0)
    if not sure:
        if trust.mode == FALLBACK and now >= trust.until:
            trust = trust._replace(mode=DEGRADED, until=now + trust.backoff)
    else:
        share += 1e-3 * ((1.0 if late and kind != STEP else 0.0) - share)
        if share > 10 * epsilon and trust.mode == NORMAL:
            trust, share = _worse(settings, trust, DEGRADED, "late", now), 0.0
    about = now, interval, usual, share, trust
    return new(State, (slowdown, tail, budget, last, sure, *about))


def _worse(settings: Settings, trust: Trust, mode: Mode, cause: str, now: float) -> Trust:
    """Enter a worse mode, for twice as long as the last time unless that was long ago."""
    first = 1e-3 * settings.recover_ms
    again = trust.mode != NORMAL or now - trust.until <= trust.backoff
    backoff = min(2 * trust.backoff, 1e-3 * settings.recover_limit_ms) if again else first
    return Trust(mode, cause, now + backoff, backoff)


def fail(settings: Settings, state: State, cause: str, now: float) -> State:
    """Cap the level after a failed call: first the cheapest level, then mandatory answers."""
    mode = DEGRADED if state.trust.mode == NORMAL else FALLBACK
    trust = _worse(settings, state.trust, mode, cause, now)
    return state._replace(trust=trust)
