"""What an agent may spend besides time: CPU-seconds and joules, by prices and never by modes.

A budget is a rate. What is spent beyond it raises a price, what is left lowers it; the governor
takes the level whose worth, less price times cost, is largest. So of many answers those that are
worth their cost are refined, whichever levels, batches or speeds there are, and what is spent comes
to the budget by itself. A quota is another thing: whoever exceeds it within one period is stopped,
so besides its price there is a window in which there must be room.

Plain Python, which asks nobody for the time: it runs with every decision (`adaptive.governor`).
"""

from collections import deque
from collections.abc import Callable, Sequence
from math import exp, expm1, inf, isfinite, log
from typing import NamedTuple

from adaptive.ladder import WORTH_FULL, WORTH_MANDATORY, Ladder, Row

MANDATORY, SKIP, WAIT = -1, -2, -3  # in place of a level, see `adaptive.decision.Decision`
MEMORY = WORTH_MANDATORY  # what it is worth that a sample is not left out of the model's memory
# What a gradient step is worth, of which one comes on 32 samples: as if each were better by .003. A
# choice: what steps gain is known of forecasts (0 to 19 % of their squared error), not of worths.
WORTH_STEP = 0.1
PRICE_MOST = log(1000.0)  # ln(1 + price); nothing is worth so much
REPAY = 4.0  # [s] within which what was spent too much, or saved, is made up for
# How long it takes to become dear when twice the budget is spent [s], and how much may be saved or
# owed [s of the rate]. A quota cannot be saved.
SPANS = {"cpu": (0.25, 2.0), "energy": (1.0, 10.0), "quota": (0.1, 0.1)}
UNITS = {"cpu": "CPU-s", "energy": "J", "quota": "CPU-s of the quota"}
# Of a quota, what is aimed at in the long run, and what may be used within a period: calls differ,
# and what the kernel hands out in slices to each core is used up before it is spent.
QUOTA_AIM, QUOTA_MOST = 0.9, 0.95


class Account(NamedTuple):
    """One budget, in its own unit."""

    rate: float  # [units/s]
    span: float  # [s]
    size: float  # [s of the rate]
    level: float = 0.0  # ln(1 + price)
    debt: float = 0.0  # [units] spent beyond the budget; negative: saved
    spent: float = 0.0  # [units] in all
    granted: float = 0.0  # [units] in all


def charge(account: Account, amount: float, elapsed: float) -> Account:
    """Book what was spent during a time.

    With y = ln(1 + price),

        dy = (spent - granted + debt dt / REPAY) / (rate span), not below 0,

    which is dual ascent, in the logarithm: whether a cost must become twice or a hundred times as
    dear, it takes about as long. The debt makes up for what was spent until the price was found, so
    that in the long run spent and granted are the same, whatever the levels cost.

    Args:
        account: As it was.
        amount: [units].
        elapsed: [s].
    """
    rate, span, size, level, debt, spent, granted = account
    grant = rate * elapsed
    most = size * rate
    debt = min(max(debt + amount - grant, -most), most)
    # After a long pause there is a reserve, and nothing more to be repaid at once.
    level += (amount - grant + debt * min(elapsed, REPAY) / REPAY) / (rate * span)
    level = min(max(level, 0.0), PRICE_MOST)
    return Account(rate, span, size, level, debt, spent + amount, granted + grant)


class Window:
    """What was spent within the last period: of any period that the kernel may count."""

    def __init__(self, limit: float, period: float):
        """Begin with nothing spent.

        Args:
            limit: CPU-seconds within a period.
            period: [s].
        """
        self.limit, self.period = limit, period
        self.seen: deque[tuple[float, float]] = deque()  # when, how much in all

    def add(self, total: float, now: float) -> None:
        """Take note of what has been spent in all [CPU-s]."""
        self.seen.append((now, total))
        while len(self.seen) > 1 and self.seen[1][0] <= now - self.period:
            self.seen.popleft()

    def room(self, now: float) -> float:
        """What may be spent at once [CPU-s]; between two readings it was spent evenly."""
        if len(self.seen) < 2:
            return self.limit
        (before, least), (after, most) = self.seen[0], self.seen[1]
        share = (now - self.period - before) / (after - before) if after > before else 1.0
        gone = least + (most - least) * min(max(share, 0.0), 1.0)
        return self.limit - (self.seen[-1][1] - gone)

    def free(self, need: float, now: float) -> float:
        """How long until there is room for so much, if nothing else is spent [s]."""
        total = self.seen[-1][1] if self.seen else 0.0
        for time, before in self.seen:
            if self.limit - (total - before) >= need:
                return max(time + self.period - now, 1e-3)
        return self.period


class Offer(NamedTuple):
    """What can be bought."""

    worths: Row  # of the mandatory answer, and of each level
    costs: tuple[Row, ...]  # as `Ladder.costs`, but in full answers to one sample alone
    ceiling: float = inf  # price above which nothing is bought, for however many at once


def offer(ladder: Ladder, worths: Sequence[float] = ()) -> Offer:
    """What levels are worth, and cost.

    Where that is not known, worth grows with the logarithm of the cost, from the mandatory answer,
    taken to cost half of the cheapest level, to the highest: each doubling buys as much. It is the
    plainest law of diminishing returns that takes cost alone, and for the built-in levels, which
    were measured, it is not far off: .388, .569 and .711 for .361, .502 and .711.

    Args:
        ladder: The levels.
        worths: Of each level, rising; none: unknown.

    Raises:
        ValueError: Worths that are not as many as there are levels.
    """
    levels = len(ladder.log_costs[0])
    if worths and len(worths) != levels:
        raise ValueError(
            f"budget: wanted a worth for each of {levels} levels, got {list(worths)}. Give none to "
            "have them taken from the costs."
        )
    if not worths:
        logs, most = [], -inf
        for cost in ladder.log_costs[-1]:
            most = max(most, cost)  # noise must not make a higher level worth less
            logs.append(most - ladder.log_costs[-1][0] + log(2.0))
        worths = [WORTH_MANDATORY + (WORTH_FULL - WORTH_MANDATORY) * x / logs[-1] for x in logs]
    unit = ladder.log_costs[0][-1]
    costs = tuple(tuple(exp(cost - unit) for cost in row) for row in ladder.log_costs)
    ceiling = max(
        batch * (worth + MEMORY) / cost
        for batch, row in enumerate(costs, 1)
        for worth, cost in zip(worths, row, strict=True)
    )
    return Offer((WORTH_MANDATORY, *worths), costs, ceiling)


def choose(offer: Offer, batch: int, top: int, price: float) -> int:
    """Return what brings most, of the levels up to the highest that is in time.

    What has no time for any level goes through the cheapest all the same, for the model's memory.
    Only what is not even worth that is left out of it. How much worse later answers are for that
    has not been measured; so that it is the last thing to be saved, a sample that is left out
    counts as one without any answer, though it has its mandatory one, and costs `MEMORY` besides:
    where levels are worth about as much for their cost as the cheapest is, a price that turns all
    higher ones away would else turn samples away, too.

    Args:
        offer: What can be bought.
        batch: How many samples share the cost.
        top: The highest level that is in time; `MANDATORY` if none is.
        price: Of a full answer to one sample alone.

    Returns:
        A level, `MANDATORY`, or `SKIP` if none is worth its cost.
    """
    worths, costs = offer.worths, offer.costs[batch - 1]
    best, most, each = SKIP, -MEMORY, price / batch
    for level in range(min(top, 0), top + 1):
        value = worths[level + 1] - each * costs[max(level, 0)]
        if value >= most:
            best, most = level, value
    return best


def together(offer: Offer, few: int, others: int, price: float) -> bool:
    """Whether some, who have the highest level at any price, should take others along.

    They should where what that adds to their call is worth more to the others than what these
    would buy alone.

    Args:
        offer: What can be bought.
        few: How many pay no price.
        others: How many do.
        price: Of a full answer to one sample alone.
    """
    worths, costs = offer.worths, offer.costs
    if few + others > len(costs):
        return False
    top = len(costs[0]) - 1
    alone = choose(offer, others, top, price)
    gained, added = worths[top + 1] + MEMORY, costs[few + others - 1][top] - costs[few - 1][top]
    if alone != SKIP:
        gained, added = worths[top + 1] - worths[alone + 1], added - costs[others - 1][alone]
    return others * gained >= price * added


class Budget:
    """All budgets of an agent, which its governors share."""

    def __init__(self, meter: Callable[[], float], watts: float = 1.0):
        """Have no limit yet.

        Args:
            meter: Says how much CPU time everything of the agent has taken so far [s].
            watts: What a core takes when it is busy, beyond what it takes when it is not [W].
        """
        self.meter, self.watts = meter, watts
        self.accounts: dict[str, Account] = {}
        self.window: Window | None = None
        self.price = 0.0  # as of the last look
        self.stopped = False  # since then the window has made calls wait
        self.base = 0.0  # [W] taken by what is not the agent, or that the watts leave out
        self._now, self._total = -inf, 0.0
        self._drawn = self._drawing = 0.0  # [J], [s] booked since energy was measured

    def limit(self, name: str, rate: float) -> None:
        """Set a budget, or change it.

        Args:
            name: `cpu`, `energy` or `quota`.
            rate: CPU-seconds per second, or watts; infinite: no budget any more.

        Raises:
            ValueError: The rate is not above 0.
        """
        if not rate > 0.0:
            raise ValueError(
                f"budget: the rate of {name} must be above 0, got {rate!r}. Without a budget it is "
                "infinite."
            )
        if not isfinite(rate):
            self.accounts.pop(name, None)
        elif name in self.accounts:
            self.accounts[name] = charge(self.accounts[name]._replace(rate=rate), 0.0, 0.0)
        else:
            self.accounts[name] = Account(rate, *SPANS[name])

    def stop_at(self, cpu: float, period: float) -> None:
        """Stay within a quota: so much CPU time [s] in each period [s]; infinite: there is none."""
        window = self.window
        self.limit("quota", QUOTA_AIM * cpu / period)
        if not isfinite(cpu):
            self.window = None
        elif not window or (window.limit, window.period) != (QUOTA_MOST * cpu, period):
            self.window = Window(QUOTA_MOST * cpu, period)

    def __bool__(self) -> bool:
        """Whether anything is limited."""
        return bool(self.accounts)

    def look(self, now: float) -> float:
        """Book what was spent since the last look, and return the price.

        That is of all that the agent does: what a call took, and everything else. A quota does not
        become cheaper while calls wait for it: else waits would keep what is spent below it, by
        turns with calls of the highest level, and answers that came due meanwhile were lost.

        Args:
            now: [s].
        """
        if now <= self._now:
            return self.price
        total = self.meter()
        elapsed, spent = now - self._now, total - self._total
        first, self._now, self._total = self._now == -inf, now, total
        if self.window:
            self.window.add(total, now)
        if first:
            return self.price
        price = 0.0
        for name, account in self.accounts.items():
            amount = spent
            if name == "energy":
                amount = self.watts * spent + self.base * elapsed
                self._drawn, self._drawing = self._drawn + amount, self._drawing + elapsed
            before, account = account.level, charge(account, amount, elapsed)
            if name == "quota" and self.stopped and account.level < before:
                account = account._replace(level=before)
            self.accounts[name] = account
            price += expm1(account.level)
        self.price, self.stopped = price, False
        return price

    def leave_out(self, now: float) -> None:
        """Book nothing of what was spent since the last look."""
        self._now, self._total = now, self.meter()
        if self.window:
            self.window.add(self._total, now)

    def measured(self, joules: float) -> None:
        """Put right what was booked since this was called last.

        Args:
            joules: What all has taken since then [J].
        """
        if "energy" in self.accounts and self._drawing > 0.0:
            wrong = joules - self._drawn
            self.accounts["energy"] = charge(self.accounts["energy"], wrong, 0.0)
            self.base += 0.5 * wrong / self._drawing
        self._drawn = self._drawing = 0.0

    @property
    def spare(self) -> float:
        """What might be spent at once at the last look, without being stopped [CPU-s]."""
        return self.window.room(self._now) if self.window else inf


def described(budget: Budget) -> str:
    """What was spent of what, and the price."""
    parts = [
        f"{one.spent:.1f} of {one.granted:.1f} {UNITS[name]}"
        for name, one in budget.accounts.items()
    ]
    return f"{', '.join(parts)}, price {budget.price:.2f}"
