"""The budget governor: which level, which batch, and whether to learn, so that deadlines hold.

Every sample already has its mandatory answer; the governor spends what time is left on a better
one. It knows levels only by index and cost (0 is the cheapest compiled level, -1 the mandatory
answer alone), asks nobody for the time, and is plain Python: deciding and observing together
must stay below 20 us (`tests/benchmarks/bench_governor.py`). Where an agent has a budget besides
the deadline, of the levels that are in time the one is taken that is worth most after its price
(`adaptive.budget`).
"""

from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum
from math import exp, inf, log
from typing import NamedTuple

from adaptive.budget import Budget, Offer, offer
from adaptive.ladder import Ladder, highest, ladder
from adaptive.slowdown import (
    OFTEN,
    STEP,
    Slowdown,
    Tail,
    believed,
    margin,
    new,
    track,
    widen,
)
from adaptive.thrift import Want, afford


class Mode(IntEnum):
    """How far the governor trusts the compiled levels."""

    NORMAL = 0  # every level
    DEGRADED = 1  # the cheapest compiled level at most
    FALLBACK = 2  # nothing is counted on: the mandatory answer alone


NORMAL, DEGRADED, FALLBACK = Mode  # an enumeration is slow to look into


class Decision(NamedTuple):
    """What to do with the head of the queue."""

    # -1, MANDATORY: it will be too late; whatever the model does then, it learns from it.
    # -2, SKIP: not worth its cost; so many are left out of the model's memory.
    # -3, WAIT: to share a call with others, or for a quota; nothing is run for `Governor.wait`.
    level: int
    batch: int  # how many to take from the head of the queue
    sure: bool = True  # else it is a try: it usually is in time, but not as often as is asked for


@dataclass(frozen=True)
class Settings:
    """What the governor aims at.

    Attributes:
        epsilon: Accepted share of refined answers that come too late.
        guard_ms: Kept free for publishing [ms].
        utilisation: Share of the slack that draining a backlog may take.
        clearance: Going up a level needs this ratio of room to cost; going down needs none.
        recover_ms: How long a failure caps the level [ms]; doubles with each further failure.
        recover_limit_ms: Longest such time [ms].
        cpu_share: What the agent may take of one core, in the long run; 0: no budget.
        power_w: What all may take [W], or the agent where that cannot be measured; 0: no budget.
        watts_per_core: What a busy core takes more than an idle one [W].
        battery_hours: How long a battery must last from when it is no longer charged [h]; 0: no
            matter.
    """

    epsilon: float = 1e-3
    guard_ms: float = 0.5
    utilisation: float = 0.85
    clearance: float = 1.1
    recover_ms: float = 500.0
    recover_limit_ms: float = 30_000.0
    cpu_share: float = 0.0
    power_w: float = 0.0
    watts_per_core: float = 3.0
    battery_hours: float = 0.0

    def __post_init__(self):
        wanted = {
            "epsilon": (0.0 < self.epsilon < OFTEN, f"between 0 and {OFTEN}; 0.001 is usual"),
            "guard_ms": (0.0 <= self.guard_ms < inf, "0 or more"),
            "utilisation": (0.0 < self.utilisation <= 1.0, "above 0 and at most 1"),
            "clearance": (1.0 <= self.clearance < inf, "1 or more"),
            "recover_ms": (0.0 < self.recover_ms <= self.recover_limit_ms, "in (0, its limit]"),
            "watts_per_core": (0.0 < self.watts_per_core < inf, "above 0; 1 to 10 is usual"),
        }
        for name in ("cpu_share", "power_w", "battery_hours"):
            wanted[name] = 0.0 <= getattr(self, name) < inf, "above 0, or 0 for no such budget"
        for name, (good, what) in wanted.items():
            if not good:
                raise ValueError(f"governor.{name} must be {what}, got {getattr(self, name)!r}.")


class Health(NamedTuple):
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
    late: float = 0.0  # running share of sure calls that were late, over about 1000
    health: Health = Health()


def decide(
    settings: Settings, ladder: Ladder, state: State, slack: float, queue: int, now: float
) -> tuple[State, Decision]:
    """Pick the highest level that fits what slack is left, with the margin of the tail.

    The batch is all of the queue that a bucket holds. When not even the cheapest level fits for
    so many, fewer are taken at it; when with the margin it does not fit for any, but usually would
    for all, it is tried. With more waiting than one batch holds, the typical cost of draining the
    whole queue must fit too, unless the level is the cheapest. So for a given state the level never
    falls when the slack grows.

    Args:
        settings: What to aim at.
        ladder: Nominal costs.
        state: What was learned from earlier completions.
        slack: [s] left until the earliest deadline in the queue.
        queue: How many wait, the head included.
        now: [s].
    """
    slowdown, tail, _, last, _, observed, interval, late, health = state
    mode = health.mode
    if mode == DEGRADED and now >= health.until:
        mode, health = NORMAL, health._replace(mode=NORMAL, cause="")
    buckets, log_costs, guard, clear, depth = ladder
    base = believed(slowdown)
    budget = slack - guard
    level, batch, sure = -1, min(queue, buckets[-1]), False
    if budget > 0.0 and queue > 0 and mode != FALLBACK:
        most = bisect_left(buckets, queue)
        if most == len(buckets):
            most -= 1
        usual = log(budget) - base
        room = usual - margin(tail, depth)
        cap = 0 if mode == DEGRADED else len(log_costs[0]) - 1
        level = highest(log_costs[most], room, cap, last, clear)
        if level > 0 and queue > buckets[most]:
            rounds = -(-queue // buckets[most])
            spare = log(settings.utilisation * budget / rounds) - base
            level = max(0, highest(log_costs[most], spare, level, last, clear))
        size, sure = most, level >= 0
        while level < 0 and size > 0:
            size -= 1
            if log_costs[size][0] <= room:
                level, sure = 0, True
        if level < 0 and log_costs[most][0] <= usual:
            level, size = 0, most
        if level >= 0:
            batch = min(queue, buckets[size])
    if slowdown.hold_left and queue > 0:
        slowdown = slowdown._replace(hold_left=slowdown.hold_left - 1)
    state = new(State, (slowdown, tail, budget, level, sure, observed, interval, late, health))
    return state, new(Decision, (level, batch, sure))


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
    slowdown, tail, budget, last, sure, observed, interval, share, health = state
    buckets, log_costs, _, _, _ = ladder
    size = bisect_left(buckets, batch)
    if size == len(buckets):
        size -= 1
    z = log(cost) - log_costs[size][level]
    # The slowdown drifts with the time since the last completion, in units of the usual time.
    elapsed = now - observed if observed > -inf else interval
    interval += 0.05 * (elapsed - interval)
    age = elapsed / interval if interval > 0.0 else 1.0
    age = 1.0 if age < 1.0 else 20.0 if age > 20.0 else age

    epsilon = settings.epsilon
    late = cost > budget
    slowdown, residual, kind = track(slowdown, z, age, not sure)
    tail = widen(tail, residual, kind, late, not sure, epsilon)
    if not sure:
        if health.mode == FALLBACK and now >= health.until:
            health = health._replace(mode=DEGRADED, until=now + health.backoff)
    else:
        share += 1e-3 * ((1.0 if late and kind != STEP else 0.0) - share)
        if share > 10 * epsilon and health.mode == NORMAL:
            health, share = _worse(settings, health, DEGRADED, "late", now), 0.0
    return new(State, (slowdown, tail, budget, last, sure, now, interval, share, health))


def _worse(settings: Settings, health: Health, mode: Mode, cause: str, now: float) -> Health:
    """Enter a worse mode, for twice as long as the last time unless that was long ago."""
    first = 1e-3 * settings.recover_ms
    again = health.mode != NORMAL or now - health.until <= health.backoff
    backoff = min(2 * health.backoff, 1e-3 * settings.recover_limit_ms) if again else first
    return Health(mode, cause, now + backoff, backoff)


def fail(settings: Settings, state: State, cause: str, now: float) -> State:
    """Cap the level after a failed call: first the cheapest level, then mandatory answers."""
    mode = DEGRADED if state.health.mode == NORMAL else FALLBACK
    health = _worse(settings, state.health, mode, cause, now)
    return state._replace(health=health)


class Governor:
    """Decides and observes; holds the settings, the nominal costs and the state together.

    One call to a compiled level is in flight at a time: `decide`, then `observe` or `failed`.
    """

    def __init__(self, settings: Settings | None = None):
        self.settings, self.ladder = settings or Settings(), Ladder((), (), 0.0, 0.0, 0.0)
        self.offer = Offer((), ())
        self.budget: Budget | None = None  # None: nothing but time is short
        self.wait = 0.0  # [s] for which the model does nothing, where the last decision was to WAIT
        self.state = State(Slowdown(), Tail())

    def init(
        self,
        costs: Sequence[Mapping[int, float]] | Sequence[float],
        worths: Sequence[float] = (),
    ) -> State:
        """Start anew from measured nominal costs; see `ladder`, and `offer` for the worths."""
        s = self.settings
        self.ladder = ladder(costs, s.guard_ms, s.clearance, s.epsilon)
        self.offer = offer(self.ladder, worths if any(worths) else ())
        self.state = State(Slowdown(), Tail())
        return self.state

    @property
    def mode(self) -> Mode:
        """The present mode."""
        return self.state.health.mode

    @property
    def cause(self) -> str:
        """Why the mode is not NORMAL, a short constant; empty if it is."""
        return self.state.health.cause

    def decide(self, slack: float, queue: int, now: float) -> Decision:
        """Pick level and batch for the head of the queue; see the function `decide`."""
        self.state, decision = decide(self.settings, self.ladder, self.state, slack, queue, now)
        if self.budget is None or not queue:
            return decision
        level, batch, sure = decision
        buckets, log_costs, _, _, depth = self.ladder
        size = min(bisect_left(buckets, batch), len(buckets) - 1)
        slow, late = exp(believed(self.state.slowdown)), exp(margin(self.state.tail, depth))
        level, batch, self.wait = afford(
            Want(level, batch, queue, slack - self.ladder.guard, size),
            self.budget,
            self.offer,
            buckets,
            lambda level, size: slow * exp(log_costs[size][level]),
            late,
            now,
            now - self.state.observed,
        )
        return new(Decision, (level, batch, sure and level >= 0))

    def observe(self, level: int, batch: int, cost: float, now: float) -> None:
        """Learn from what the call cost [s]; see the function `observe`."""
        if self.budget is not None:
            self.budget.look(now)
        self.state = observe(self.settings, self.ladder, self.state, level, batch, cost, now)

    def failed(self, cause: str, now: float) -> None:
        """Take note that the call failed (crashed, not finite, compiled); caps the level."""
        self.state = fail(self.settings, self.state, cause, now)

    def predict(self, level: int, batch: int) -> tuple[float, float]:
        """Return the typical cost of a call made now, and the one held at 1 - epsilon [s]."""
        size = min(bisect_left(self.ladder.buckets, batch), len(self.ladder.buckets) - 1)
        usual = self.ladder.log_costs[size][level] + believed(self.state.slowdown)
        return exp(usual), exp(usual + margin(self.state.tail, self.ladder.depth))

    def may_learn(self, idle: float, cost: float) -> bool:
        """Say whether a learning step fits, almost surely, before the next sample needs the CPU.

        Args:
            idle: [s] predicted until then, with nothing waiting.
            cost: [s] of the step, nominal.
        """
        slowdown, money = self.state.slowdown, self.budget
        if money is not None and (money.price > 0.0 or cost > money.spare):
            return False  # it is what goes first
        budget = idle - self.ladder.guard
        if self.state.health.mode != NORMAL or slowdown.hold_left or budget <= 0.0:
            return False
        return cost * exp(slowdown.mean + margin(self.state.tail, self.ladder.depth)) <= budget

    def snapshot(self) -> dict[str, float]:
        """Return what was learned, for a checkpoint.

        Times are left out, since the next process has another clock, and so is the mode: a
        restart is a fresh chance.
        """
        flat = {f"slowdown.{k}": float(v) for k, v in self.state.slowdown._asdict().items()}
        flat |= {f"tail.{k}": float(v) for k, v in self.state.tail._asdict().items()}
        return flat | {"interval": self.state.interval}

    def restore(self, snapshot: Mapping[str, float]) -> None:
        """Go on from a snapshot, after `init`; the machine may be another, so doubt its mean.

        Raises:
            ValueError: The snapshot is not of a governor.
        """
        wanted = {f"slowdown.{k}" for k in Slowdown._fields} | {f"tail.{k}" for k in Tail._fields}
        if not wanted <= snapshot.keys():
            raise ValueError(
                f"governor: the snapshot must hold {sorted(wanted)}, got {sorted(snapshot)}. "
                "Start without it."
            )
        mean, variance, drift, noise, *_ = (
            snapshot[f"slowdown.{name}"] for name in Slowdown._fields
        )
        slowdown = Slowdown(mean, max(variance, Slowdown().variance), drift, noise)
        tail = Tail(*(snapshot[f"tail.{k}"] for k in Tail._fields))
        self.state = State(slowdown, tail, interval=snapshot.get("interval", 0.0))
