"""Other policies than the governor's, to be compared with it: published ones, and oracles.

All take what is in the queue at once, as the governor does, and differ in how long they expect a
call to take, and in how sure they want to be.

References:
    Wan et al., ALERT, 2020. Xu et al., LiteReconfig, 2022. Crankshaw et al., Clipper, 2017, for
    additive increase and multiplicative decrease. Lu et al., Feedback control real-time
    scheduling, 2002, for a PID controller. Khare et al., SuperServe, 2025, for SlackFit.
"""

from bisect import bisect_left
from collections.abc import Callable, Sequence
from math import erf, exp, inf, sqrt

from adaptive.budget import Budget, offer
from adaptive.decision import Decision
from adaptive.demand import Demand, Whom, decide_among
from adaptive.ladder import ladder
from adaptive.policy import Ahead
from adaptive.simulation import Profile
from adaptive.thrift import Want, afford

GUARD = 0.5e-3  # [s] as the governor's
UTILISATION = 0.85  # of the slack, where a backlog is drained


class Expecting:
    """Takes the highest level that it expects to fit, for all that waits, or for fewer."""

    def __init__(self, profile: Profile, slower: float = 1.0):
        """Know the levels.

        Args:
            profile: Of the levels.
            slower: How much slower than that they were measured to be here.
        """
        self.sizes, self.largest = profile.sizes, profile.sizes[-1]
        self.nominal = profile.every(slower)  # [levels][samples - 1] s
        self.setup()

    def setup(self) -> None:
        """Begin to learn."""

    def usual(self, level: int, batch: int) -> float:
        """The cost that is expected [s], of a call for so many."""
        return self.nominal[level][batch - 1]

    def bound(self, level: int, batch: int) -> float:
        """The cost that is reckoned with [s]."""
        return self.usual(level, batch)

    def decide(self, slack: float, queue: int, now: float) -> Decision:
        """As a `Policy`."""
        batch, budget = min(queue, self.largest), slack - GUARD
        rounds = -(-queue // self.largest)
        for level in range(len(self.nominal) - 1, -1, -1):
            fits = self.bound(level, batch) <= budget
            drains = rounds * self.usual(level, batch) <= UTILISATION * budget
            if fits and (rounds == 1 or level == 0 or drains):
                return Decision(level, batch)
        for few in reversed(self.sizes):
            if few < batch and self.bound(0, few) <= budget:
                return Decision(0, few)
        return Decision(-1, queue)

    def observe(self, level: int, batch: int, cost: float, now: float) -> None:
        """As a `Policy`."""
        self.learn(level, cost / self.nominal[level][min(batch, self.largest) - 1])

    def learn(self, level: int, ratio: float) -> None:
        """Take in a cost, as a ratio to the nominal one."""

    def failed(self, cause: str, now: float) -> None:
        """As a `Policy`."""


class Static(Expecting):
    """Always the same level, whatever it costs."""

    def __init__(self, profile: Profile, slower: float = 1.0, level: int = 0):
        """Know the level."""
        super().__init__(profile, slower)
        self.level = level

    def decide(self, slack: float, queue: int, now: float) -> Decision:
        """As a `Policy`."""
        return Decision(self.level, min(queue, self.largest))


class Alert(Expecting):
    """ALERT as published: the best expected quality, by a Kalman filter on the slowdown.

    Its constants: measurement noise .001, a floor of .1 of the process noise, whose mean forgets
    by .3; gain .5 at first.
    """

    def __init__(
        self, profile: Profile, slower: float = 1.0, quality: Sequence[float] = (), miss: float = 0
    ):
        """Know what levels are worth.

        Args:
            profile: Of the levels.
            slower: As measured here.
            quality: Of the mandatory answer, and of each level.
            miss: Accepted share of late answers: the highest level that is late no more often; 0
                for the best expected quality.
        """
        super().__init__(profile, slower)
        self.quality, self.miss = quality, miss

    def setup(self) -> None:
        """Begin to learn."""
        self.gain, self.mean, self.variance, self.process = 0.5, 1.0, 0.1, 0.1
        self.previous = 0.0

    def usual(self, level: int, batch: int) -> float:
        """Mean slowdown."""
        return self.mean * self.nominal[level][batch - 1]

    def chance(self, level: int, batch: int, budget: float) -> float:
        """Probability that a call ends in time."""
        off = (budget / self.nominal[level][batch - 1] - self.mean) / sqrt(2 * self.variance)
        return 0.5 * (1 + erf(off))

    def decide(self, slack: float, queue: int, now: float) -> Decision:
        """As a `Policy`."""
        budget = slack - GUARD
        if budget <= 0:
            return Decision(-1, queue)
        if self.miss:
            return super().decide(slack, queue, now)
        batch = min(queue, self.largest)
        base, *worth = self.quality
        expected = [
            base + (value - base) * self.chance(level, batch, budget)
            for level, value in enumerate(worth)
        ]
        best = max(range(len(worth)), key=lambda level: expected[level])
        return Decision(best, batch)

    def bound(self, level: int, batch: int) -> float:
        """With the accepted share of late answers, by a normal distribution."""
        quantile = _normal(1 - self.miss) if self.miss else 0.0
        return self.nominal[level][batch - 1] * (self.mean + quantile * sqrt(self.variance))

    def learn(self, level: int, ratio: float) -> None:
        """A step of the filter."""
        noise, floor, forget = 0.001, 0.1, 0.3
        error = ratio - self.mean
        self.process = max(floor, forget * self.process + (1 - forget) * self.previous**2)
        ahead = (1 - self.gain) * self.variance + self.process
        self.gain = ahead / (ahead + noise)
        self.previous = self.gain * error
        self.mean += self.previous
        self.variance = ahead


def _normal(share: float) -> float:
    """Quantile of the standard normal distribution, by bisection."""
    low, high = -10.0, 10.0
    for _ in range(60):
        middle = (low + high) / 2
        if 0.5 * (1 + erf(middle / sqrt(2))) < share:
            low = middle
        else:
            high = middle
    return high


class Margin(Expecting):
    """LiteReconfig: a running mean, and 30 % more."""

    def setup(self) -> None:
        """Begin to learn."""
        self.mean = 1.0

    def usual(self, level: int, batch: int) -> float:
        """Mean slowdown."""
        return self.mean * self.nominal[level][batch - 1]

    def bound(self, level: int, batch: int) -> float:
        """A third more."""
        return 1.3 * self.usual(level, batch)

    def learn(self, level: int, ratio: float) -> None:
        """A running mean."""
        self.mean += 0.2 * (ratio - self.mean)


class Quantile(Margin):
    """A running quantile of 99 % of the cost of each level, by steps up and down."""

    def setup(self) -> None:
        """Begin to learn."""
        self.mean, self.high = 1.0, [1.5] * len(self.nominal)

    def bound(self, level: int, batch: int) -> float:
        """The quantile."""
        return self.high[level] * self.nominal[level][batch - 1]

    def learn(self, level: int, ratio: float) -> None:
        """Up by 99 parts where it was exceeded, else down by one."""
        super().learn(level, ratio)
        step = 0.05 * self.high[level]
        self.high[level] += step * 0.99 if ratio > self.high[level] else -step * 0.01


class Bounded(Expecting):
    """A highest level that goes up and down with what was in time."""

    def setup(self) -> None:
        """Begin at the top."""
        self.cap, self.budget = len(self.nominal) - 1.0, inf

    def decide(self, slack: float, queue: int, now: float) -> Decision:
        """As a `Policy`."""
        self.budget = slack - GUARD
        return Decision(int(self.cap), min(queue, self.largest))

    def observe(self, level: int, batch: int, cost: float, now: float) -> None:
        """As a `Policy`."""
        self.cap = min(max(self.moved(cost / max(self.budget, 1e-6)), 0.0), len(self.nominal) - 1.0)

    def moved(self, share: float) -> float:
        """The new cap, after a call that took a share of what time there was."""
        return self.cap + 0.02 if share <= 1 else self.cap / 2


class Pid(Bounded):
    """A PID controller that wants calls to take four fifths of the time there is."""

    def setup(self) -> None:
        """No error yet."""
        super().setup()
        self.sum, self.last = 0.0, 0.0

    def moved(self, share: float) -> float:
        """Proportional, integral and differential parts."""
        error = 0.8 - min(share, 3.0)
        self.sum = min(max(self.sum + 0.02 * error, -3.0), 3.0)
        change, self.last = error - self.last, error
        middle = (len(self.nominal) - 1) / 2
        return middle + 0.5 * error + self.sum + 0.1 * change


class Oracle(Expecting):
    """Knows how long this very call would take at every level.

    It has the same budgets as the governor, and keeps them in the same way.
    """

    ahead: Ahead

    def __init__(
        self,
        profile: Profile,
        slower: float = 1.0,
        budget: Budget | None = None,
        quality: Sequence[float] = (),
    ):
        """Know what may be spent.

        Args:
            profile: Of the levels.
            slower: As measured here.
            budget: None where nothing but time is short.
            quality: Of the mandatory answer, and of each level.
        """
        super().__init__(profile, slower)
        self.budget, self.wait, self.called = budget, 0.0, -inf
        self.dues: Callable[[], list[float]] | None = None
        rungs = ladder(profile.measured(slower), 0.0, 1e-3)
        self.offer = offer(rungs, quality[1:])

    def attach(self, ahead: Ahead) -> None:
        """Get to know the world."""
        self.ahead = ahead

    def decide(self, slack: float, queue: int, now: float) -> Decision:
        """As a `Policy`: the highest level after which what is left can still be had."""
        level, batch, sure, after = self.fitting(slack, queue, now)
        if self.budget is None:
            return Decision(level, batch, sure, after)
        batch = batch if level >= 0 else min(queue, self.largest)
        level, batch, self.wait = afford(
            Want(level, batch, queue, slack),
            self.budget,
            self.offer,
            self.sizes,
            lambda level, batch: self.nominal[level][batch - 1] * exp(self.ahead.slow()),
            lambda usual: usual,
            now,
            now - self.called,
        )
        return Decision(level, batch, sure, after)

    def observe(self, level: int, batch: int, cost: float, now: float) -> None:
        """As a `Policy`: what was spent is known."""
        self.called = now
        if self.budget is not None:
            self.budget.look(now)

    def at_most(self, level: int, batch: int) -> float:
        """As `Ranking`: what such a call takes now [s]."""
        return self.ahead.takes(level, batch)

    def decide_among(
        self, slack: float, queue: int, now: float, demand: Demand
    ) -> tuple[Decision, Whom]:
        """As `Ranking`, where only time is short: by the governor's rules."""

        def pick(left: float, many: int, most: int | None, later: bool) -> Decision:
            return self.fitting(left, many, now, most, later=later)

        about = len(self.nominal) - 1, self.sizes, slack, queue, demand
        return decide_among(pick, self.at_most, *about)

    def fitting(
        self, slack: float, queue: int, now: float, most: int | None = None, *, later: bool = True
    ) -> Decision:
        """The same, if nothing but time is short.

        Where it cannot be had for all, as many as can be for the time that they take are taken at
        the cheapest level, whichever these are.
        """
        whole = min(queue, self.largest)
        fewer = (whole, *reversed(self.sizes[: bisect_left(self.sizes, whole)]))
        top = len(self.nominal) - 1 if most is None else most
        for batch in fewer:
            left, due = queue - batch, self.ahead.due(batch) if later else now + slack
            for level in range(top, -1, -1):
                end = now + self.at_most(level, batch)
                rest = self.rest(left) if left else 0.0
                if end > now + slack or (level == 0 and batch < whole):
                    continue
                if level == 0 or end + rest <= due:
                    return Decision(level, batch)
        known = self.dues if later else None
        dues, best, found = known() if known else [now + slack] * queue, 0.0, Decision(-1, queue)
        for batch in fewer:
            end = now + self.at_most(0, batch)
            place = bisect_left(dues, end)
            many = min(len(dues) - place, batch)
            if many > 0 and many / (end - now) > best:
                best = many / (end - now)
                found = Decision(0, many, True, dues[place] if known else -inf)
        return found

    def rest(self, left: int) -> float:
        """What the others in the queue take at least [s]."""
        rounds, batch = -(-left // self.largest), min(left, self.largest)
        return rounds * self.nominal[0][batch - 1] * exp(self.ahead.slow())


class Distribution(Oracle):
    """Knows how slow all is now, and how calls scatter about it, but not this one."""

    def __init__(
        self,
        profile: Profile,
        slower: float = 1.0,
        budget: Budget | None = None,
        quality: Sequence[float] = (),
        scatter: Sequence[Callable[[float], float]] = (),
    ):
        """Know the scatter.

        Args:
            profile: Of the levels.
            slower: As measured here.
            budget: None where nothing but time is short.
            quality: Of the mandatory answer, and of each level.
            scatter: For each level, how long a call almost surely takes [s], by how long it takes
                without noise and stalls [s].
        """
        super().__init__(profile, slower, budget, quality)
        self.scatter = scatter

    def at_most(self, level: int, batch: int) -> float:
        """What such a call takes now, almost surely [s]."""
        cost = self.nominal[level][min(batch, self.largest) - 1]
        return self.scatter[level](cost * exp(self.ahead.slow() + self.ahead.chill()))
