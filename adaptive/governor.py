"""The budget governor: which level, which batch, and whether to learn, so that deadlines hold.

Every sample already has its mandatory answer; the governor spends what time is left on a better
one. It knows levels only by index and cost (0 is the cheapest compiled level, -1 the mandatory
answer alone), asks nobody for the time, and is plain Python: deciding and observing together
must stay below 20 us (`tests/benchmarks/bench_governor.py`). Where an agent has a budget besides
the deadline, of the levels that are in time the one is taken that is worth most after its price
(`adaptive.budget`).
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from math import exp, inf

from adaptive.budget import WORTH_STEP, Budget, Offer, offer, together
from adaptive.decision import (
    NORMAL,
    Decision,
    Mode,
    Settings,
    State,
    at_most,
    decide,
    fail,
    observe,
    typical,
)
from adaptive.demand import CRITICAL, EVERYONE, PRESSED, Demand, Whom, decide_among
from adaptive.ladder import Ladder, ladder
from adaptive.slowdown import Slowdown, Tail, beyond, margin, new, reckoned
from adaptive.thrift import Want, afford

LEARNED = {"slowdown": Slowdown, "tail": Tail}  # parts of the state


class Governor:
    """Decides and observes; holds the settings, the nominal costs and the state together.

    One call to a compiled level is in flight at a time: `decide`, then `observe` or `failed`.
    """

    def __init__(self, settings: Settings | None = None):
        self.settings, self.ladder = settings or Settings(), Ladder((), (), 0.0, 0.0)
        self.offer = Offer((), ())
        self.budget: Budget | None = None  # None: nothing but time is short
        # Says when the answers that are waited for are due [s], ascending: of each stream the next.
        self.dues: Callable[[], list[float]] | None = None
        self.wait = 0.0  # [s] for which the model does nothing, where the last decision was to WAIT
        self.state = State(Slowdown(), Tail())

    def init(
        self,
        costs: Sequence[Mapping[int, float]] | Sequence[float],
        worths: Sequence[float] = (),
    ) -> State:
        """Start anew from measured nominal costs; see `ladder`, and `offer` for the worths."""
        s = self.settings
        self.ladder = ladder(costs, s.guard_ms, s.epsilon)
        self.offer = offer(self.ladder, worths if any(worths) else ())
        base, *each = self.offer.worths
        self.ladder = self.ladder._replace(gains=tuple(worth - base for worth in each))
        self.state = State(Slowdown(), Tail())
        return self.state

    @property
    def mode(self) -> Mode:
        """The present mode."""
        return self.state.trust.mode

    @property
    def cause(self) -> str:
        """Why the mode is not NORMAL, a short constant; empty if it is."""
        return self.state.trust.cause

    def decide(self, slack: float, queue: int, now: float) -> Decision:
        """Pick level and batch for the head of the queue; see the function `decide`."""
        money = self.budget
        about = self.settings, self.ladder, self.state, slack, queue, now, None, self.dues
        # Two calls cost more than one, so where there is a price all go together.
        self.state, decision = decide(*about, parts=money is None or money.price <= 0.0)
        return decision if money is None else self._afford(decision, slack, queue, now)

    def decide_among(
        self, slack: float, queue: int, now: float, demand: Demand
    ) -> tuple[Decision, Whom]:
        """Decide where streams are not equal; see the function `decide_among`."""
        ladder, before = self.ladder, self.state

        def pick(left: float, many: int, most: int | None, later: bool) -> Decision:
            about = self.settings, ladder, before, left, many, now, most
            self.state, found = decide(*about, self.dues if later else None)
            return found

        price, few = self.budget.price if self.budget else 0.0, demand.critical.size
        apart = price > 0.0 and 0 < few < queue
        apart = apart and not together(self.offer, few, queue - few, price)
        about = len(ladder.log_costs[0]) - 1, ladder.sizes, slack, queue, demand
        takes = partial(at_most, ladder, before)  # whatever has been picked
        decision, whom = decide_among(pick, takes, *about, apart=apart)
        if whom == EVERYONE and decision.after == -inf:
            self.state = self.state._replace(budget=slack - ladder.guard)
        if self.budget is not None:
            many = {CRITICAL: few, PRESSED: demand.pressed.size}.get(whom, queue)
            exempt = whom != EVERYONE or few > 0  # who is taken along costs little
            decision = self._afford(decision, slack, many, now, exempt=exempt)
        return decision, whom

    def _afford(
        self, decision: Decision, slack: float, queue: int, now: float, *, exempt: bool = False
    ) -> Decision:
        """What of a decision the budget allows; see `adaptive.thrift`."""
        if self.budget is None or not queue:
            return decision
        level, batch, sure, after = decision
        ladder, state = self.ladder, self.state
        level, batch, self.wait = afford(
            Want(level, batch, queue, slack - ladder.guard, exempt),
            self.budget,
            self.offer,
            ladder.sizes,
            partial(typical, ladder, state),
            partial(beyond, margin=reckoned(state.slowdown, state.tail, ladder.depth)),
            now,
            now - self.state.observed,
        )
        return new(Decision, (level, batch, sure and level >= 0, after))

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
        return typical(self.ladder, self.state, level, batch), self.at_most(level, batch)

    def at_most(self, level: int, batch: int) -> float:
        """What a call made now takes, but for a share of epsilon [s]."""
        return at_most(self.ladder, self.state, level, batch)

    def may_learn(self, slack: float, queue: int, cost: float) -> bool:
        """Say whether a learning step fits, almost surely, before a call must begin.

        With nothing waiting that is a call for the next sample, at the level that is usual now.
        What waits, and what comes meanwhile, is not to have less than the highest level for it.
        Where there is a price, it must be worth that, too.

        Args:
            slack: [s] until the first of those that wait is due; with nothing waiting, how long
                one could wait that came now.
            queue: How many wait.
            cost: [s] of the step, nominal.
        """
        state, money, ladder = self.state, self.budget, self.ladder
        if money is not None:
            full = ladder.costs[0][-1]  # of which a price is
            if money.price * cost > WORTH_STEP * full or cost > money.spare:
                return False
        if state.trust.mode != NORMAL or state.slowdown.hold_left or slack <= ladder.guard:
            return False
        step = beyond(cost * exp(state.slowdown.mean), margin(state.tail, ladder.depth))
        level, batch = max(state.level, 0), 1
        if queue:
            if not state.interval:
                return False  # nobody knows what comes meanwhile
            level = len(ladder.log_costs[0]) - 1
            batch = queue + int(state.batch * (1.0 + step / state.interval))
            if batch > ladder.sizes[-1]:
                return False
        return step + self.at_most(level, batch) <= slack - ladder.guard

    def step_cost(self, nominal: float, lap: float) -> float:
        """The nominal cost of a learning step [s], after one that took so long [s].

        One that stood still counts as twice as long as nominal: else it might be the last.
        """
        seen = lap * exp(-self.state.slowdown.mean)
        return nominal + 0.1 * (min(seen, 2.0 * nominal) - nominal)

    def snapshot(self) -> dict[str, float]:
        """Return what was learned, for a checkpoint.

        Times are left out, since the next process has another clock, and so is the mode: a
        restart is a fresh chance.
        """
        flat = {"interval": self.state.interval, "batch": self.state.batch}
        for name in LEARNED:
            part = getattr(self.state, name)._asdict()
            flat |= {f"{name}.{k}": float(v) for k, v in part.items()}
        return flat

    def restore(self, snapshot: Mapping[str, float]) -> None:
        """Go on from a snapshot, after `init`; the machine may be another, so doubt its mean.

        Raises:
            ValueError: The snapshot is not of a governor.
        """
        wanted = {f"{name}.{k}" for name, kind in LEARNED.items() for k in kind._fields}
        if not wanted <= snapshot.keys():
            raise ValueError(
                f"governor: the snapshot must hold {sorted(wanted)}, got {sorted(snapshot)}. "
                "Start without it."
            )
        parts = {
            name: kind._make(snapshot[f"{name}.{k}"] for k in kind._fields)
            for name, kind in LEARNED.items()
        }
        mean, variance, drift, noise, *_ = parts["slowdown"]
        parts["slowdown"] = Slowdown(mean, max(variance, Slowdown().variance), drift, noise)
        interval, batch = snapshot.get("interval", 0.0), snapshot.get("batch", 1.0)
        self.state = State(**parts, interval=interval, batch=batch)
