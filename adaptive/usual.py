"""What is usual of a quantity that is never negative: running quantiles of its logarithm.

How far a value lies above the median, in the spread of the lower half, is comparable between
quantities of any unit. The lower half is taken because the upper one holds the anomalies: a fault
that lasts a third of all the time so far still stands out, where a running mean and standard
deviation would have taken it in.

References:
    Quantiles from a histogram of logarithms as in Masson et al., DDSketch, 2019, whose error is
    relative as well; here with a weight that grows, so that the burn-in is forgotten, and with
    pointers to three quantiles that move by a few bins a value.
"""

from array import array
from math import log

LEAST = 0.05  # values are blurred by so much: what is smaller is alike
BINS, BINS_PER_E, FIRST = 384, 32, log(LEAST)  # of the histogram of log value
FORGETTING = 1.5  # value n weighs n^(FORGETTING - 1)
LONGEST = 100_000  # values; beyond, older ones weigh exponentially less
UNSURE = 300  # values; with so many the distance is believed by half
MEDIAN, LOWER, UPPER = 0.5, 0.25, 0.9
OF_LOWER, OF_UPPER = 1 / 0.6745, 0.3  # the second for quantities that hardly ever move
LEAST_SPREAD = 0.3  # [log]
RESCALE_AT = 1e9
EVERY = 8  # values between two looks at the quantiles; at each of the first `UNSURE`


class Quantile:
    """One quantile of a histogram that grows."""

    __slots__ = ("at", "below", "share")

    def __init__(self, share: float):
        self.share = share
        self.at = 0  # the bin that holds it
        self.below = 0.0  # weight in the bins before

    def move(self, counts: array, total: float) -> float:
        """Follow the histogram; return where the quantile is now, in bins."""
        target, at, below = self.share * total, self.at, self.below
        while below > target and at > 0:
            at -= 1
            below -= counts[at]
        while at < BINS - 1 and below + counts[at] < target:
            below += counts[at]
            at += 1
        self.at, self.below = at, below
        return at + (target - below) / counts[at] if counts[at] > 0 else float(at)


def place(value: float) -> float:
    """Where a value, at least 0, lies in the histogram [bins]."""
    return min((0.5 * log(value * value + LEAST * LEAST) - FIRST) * BINS_PER_E, BINS - 0.5)


class Usual:
    """What is usual of one quantity."""

    __slots__ = ("counts", "median", "number", "quantiles", "spread", "total", "weight")

    def __init__(self) -> None:
        self.counts = array("d", bytes(8 * BINS))
        self.total = self.number = 0.0
        self.weight = 1.0  # of the next value
        self.median, self.spread = 0.0, 1.0  # [bins]
        self.quantiles = (Quantile(MEDIAN), Quantile(LOWER), Quantile(UPPER))

    @property
    def trust(self) -> float:
        """How far to believe `above`, in [0, 1): little while little is known."""
        return self.number / (self.number + UNSURE)

    def compare(self, value: float) -> float:
        """How far a value lies above the median of those counted, in their spread.

        Args:
            value: At least 0.

        Returns:
            0 while there are none, negative below the median.
        """
        return (place(value) - self.median) / self.spread if self.number else 0.0

    def above(self, value: float) -> float:
        """As `compare`; then count it."""
        at, weight = place(value), self.weight
        above, bin_ = (at - self.median) / self.spread if self.number else 0.0, int(at)
        self.counts[bin_] += weight
        self.total += weight
        self.number = number = self.number + 1
        for quantile in self.quantiles:
            if bin_ < quantile.at:
                quantile.below += weight
        self.weight = weight * (1 + max((FORGETTING - 1) / number, 1 / LONGEST))
        if weight > RESCALE_AT:
            self._rescale()
        if number < UNSURE or number % EVERY == 0:
            self._look()
        return above

    def _look(self) -> None:
        median, lower, upper = (q.move(self.counts, self.total) for q in self.quantiles)
        spread = max(OF_LOWER * (median - lower), OF_UPPER * (upper - median))
        self.median, self.spread = median, max(spread, LEAST_SPREAD * BINS_PER_E)

    def _rescale(self) -> None:
        self.counts = array("d", [c / self.weight for c in self.counts])
        self.total = sum(self.counts)
        for quantile in self.quantiles:
            quantile.below = sum(self.counts[: quantile.at])
        self.weight = 1.0

    def snapshot(self) -> list[float]:
        """Everything, as plain numbers."""
        places = [float(n) for q in self.quantiles for n in (q.at, q.below)]
        numbers = (self.number, self.total, self.weight, self.median, self.spread)
        return [*numbers, *places, *self.counts]

    def restore(self, saved: list[float]) -> None:
        """Take up where `snapshot` was made."""
        self.number, self.total, self.weight, self.median, self.spread = saved[:5]
        for i, quantile in enumerate(self.quantiles):
            quantile.at, quantile.below = int(saved[5 + 2 * i]), saved[6 + 2 * i]
        self.counts = array("d", saved[5 + 2 * len(self.quantiles) :])
