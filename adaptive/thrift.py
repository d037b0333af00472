"""How a decision changes where money is short: wait for company, take what is worth its price.

A call for many costs less for each of them, so what waits anyhow waits for others as long as the
deadline leaves room. What is bought then is what brings most after its price (`adaptive.budget`).
And within a quota nothing is begun that its period has no room for.
"""

from collections.abc import Callable
from typing import NamedTuple

from adaptive.budget import SKIP, WAIT, Budget, Offer, choose

# Company is waited for until a call of the next size would take this share of the time left, or
# all of it with its margin; where the price is low, a smaller one, half of it at `CHEAP`. With .5 a
# twentieth of the samples of a slow site had to be left out when its budget was halved, with .7
# none; waiting to the last would make each call late that takes longer.
LEISURE = 0.7
CHEAP = 0.1
EARNS = 1.1  # times that company must make each sample cheaper to be waited for
NAP = 0.5e-3  # [s] that a wait takes at least
NEVER_WAIT = 2  # periods without a call after which one is made whatever the window says


class Want(NamedTuple):
    """What would be done if nothing but time were short."""

    level: int  # or `MANDATORY`
    batch: int
    queue: int  # of which the batch is the head
    slack: float  # [s] until the head is due
    size: int  # place of the batch among the sizes that were measured
    exempt: bool = False  # of prices: others pay


def shared(offer: Offer, sizes: tuple[int, ...], level: int, size: int, batch: int) -> float:
    """How many times as much a call costs for each of its samples as one for more could."""
    least = min(offer.costs[s][level] / sizes[s] for s in range(size, len(sizes)))
    return offer.costs[size][level] / batch / least


def afford(
    want: Want,
    budget: Budget,
    offer: Offer,
    sizes: tuple[int, ...],
    cost: Callable[[int, int], float],
    margin: float,
    now: float,
    idle: float,
) -> tuple[int, int, float]:
    """Say what is done of it.

    Args:
        want: What would be done.
        budget: What may be spent.
        offer: What levels are worth, and cost by nominal costs.
        sizes: Of batches, ascending.
        cost: What a call of a level at a place among the sizes takes now [s].
        margin: How many times as long it may take.
        now: [s].
        idle: Time since the last call [s].

    Returns:
        The level, or `SKIP`, or `WAIT`; how many; and how long to wait [s].
    """
    level, batch, queue, slack, size, exempt = want
    price, window = budget.look(now), budget.window
    if exempt:
        price = 0.0
    if price > 0.0 and level >= 0:
        bought = max(choose(offer, size, batch, level, price), 0)
        if size > 0 and batch < sizes[size]:
            # A batch size that is filled costs less than the next one that is not.
            smaller = offer.costs[size - 1][bought] / sizes[size - 1]
            if smaller < offer.costs[size][bought] / batch:
                size, batch = size - 1, sizes[size - 1]
        if shared(offer, sizes, bought, size, batch) > EARNS:
            dear = max(margin, 1.0 / LEISURE) * cost(bought, min(size + 1, len(sizes) - 1))
            spare = slack - dear * (price + CHEAP) / price
            if spare > NAP:
                return WAIT, 0, max(0.5 * spare, NAP)
    if price > 0.0:
        level = choose(offer, size, batch, level, price)
        if level == SKIP:
            return SKIP, batch, 0.0
    if window is None or idle > NEVER_WAIT * window.period:
        return level, batch, 0.0
    room = window.room(now)
    while level > 0 and cost(level, size) > room:
        level -= 1
    need = cost(max(level, 0), size)
    if need > room and need > 0.5 * window.limit:  # so many there may never be room for
        level = 0
        while size > 0 and need > 0.5 * window.limit:
            size -= 1
            need = cost(0, size)
        batch = min(queue, sizes[size])
    if need > room:
        budget.stopped = True
        return WAIT, 0, window.free(need, now)
    return level, batch, 0.0
