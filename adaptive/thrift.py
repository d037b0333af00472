"""How a decision changes where money is short: wait for company, take what is worth its price.

A call for many costs less for each of them, so what waits anyhow waits for others as long as the
deadline leaves room. What is bought then is what brings most after its price (`adaptive.budget`).
And within a quota nothing is begun that its period has no room for.
"""

from collections.abc import Callable, Sequence
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
# Of what a period allows, in one call: for more there may never be room, and what such a call takes
# beyond what is expected must not use up what was left over.
LARGEST = 0.5
NEVER_WAIT = 2  # periods without a call after which one is made whatever the window says


class Want(NamedTuple):
    """What would be done if nothing but time were short."""

    level: int  # or `MANDATORY`
    batch: int
    queue: int  # of which the batch is the head
    slack: float  # [s] until the head is due
    exempt: bool = False  # of prices, until others buy nothing any more


def shared(offer: Offer, sizes: Sequence[int], level: int, batch: int) -> float:
    """How many times as much a call costs for each of its samples as one for more could."""
    least = min(offer.costs[size - 1][level] / size for size in (batch, *sizes) if size >= batch)
    return offer.costs[batch - 1][level] / batch / least


def afford(
    want: Want,
    budget: Budget,
    offer: Offer,
    sizes: Sequence[int],
    cost: Callable[[int, int], float],
    beyond: Callable[[float], float],
    now: float,
    idle: float,
) -> tuple[int, int, float]:
    """Say what is done of it.

    Args:
        want: What would be done.
        budget: What may be spent.
        offer: What levels are worth, and cost by nominal costs.
        sizes: Of batches, ascending.
        cost: What a call of a level for so many takes now [s].
        beyond: What takes so long usually may take [s].
        now: [s].
        idle: Time since the last call [s].

    Returns:
        The level, or `SKIP`, or `WAIT`; how many; and how long to wait [s].
    """
    level, batch, queue, slack, exempt = want
    price, window = budget.look(now), budget.window
    paid = max(price - offer.ceiling, 0.0) if exempt else price
    if price > 0.0 and level >= 0:
        bought = max(choose(offer, batch, level, paid), 0)
        if shared(offer, sizes, bought, batch) > EARNS:
            usual = cost(bought, next((size for size in sizes if size > batch), batch))
            dear = max(beyond(usual), usual / LEISURE)
            spare = slack - dear * (price + CHEAP) / price
            if spare > NAP:
                return WAIT, 0, max(0.5 * spare, NAP)
    if paid > 0.0:
        level = choose(offer, batch, level, paid)
        if level == SKIP:
            return SKIP, batch, 0.0
    if window is None or idle > NEVER_WAIT * window.period:
        return level, batch, 0.0
    room, largest = window.room(now), LARGEST * window.limit
    while level > 0 and cost(level, batch) > min(room, largest):
        level -= 1
    fewer = [size for size in sizes if size < batch]
    while fewer and cost(max(level, 0), batch) > largest:
        batch = fewer.pop()
    need = cost(max(level, 0), batch)
    if need > room:
        budget.stopped = True
        return WAIT, 0, window.free(need, now)
    return level, batch, 0.0
